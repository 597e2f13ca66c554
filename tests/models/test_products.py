"""Products and convolutions sum in float32, and the convolutions' gradients are those that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import all_equations, tiny_config
from jax import lax

from cvae_jax.config import Components
from cvae_jax.models.products import convolve, full_precision
from cvae_jax.planning.program import Step
from cvae_jax.runtime.backend import formulated_for
from cvae_jax.train import make_controls

# Size of the map and of the kernel, and how they are convolved.
CONVOLUTIONS = {
    "valid": ((7, 9, 4), (3, 5, 4, 3), {}),
    "same": ((5, 6, 4), (3, 3, 4, 3), {"padding": "SAME"}),
    "depthwise": ((5, 6, 4), (3, 3, 1, 4), {"padding": "SAME", "depthwise": True}),
    "downsampling": ((8, 6, 4), (4, 4, 4, 3), {"strides": (2, 2), "padding": ((1, 1), (1, 1))}),
    "upsampling": ((3, 5, 4), (4, 4, 4, 3), {"padding": ((2, 2), (2, 2)), "lhs_dilation": (2, 2)}),
    "rows left over": ((8, 7, 4), (3, 2, 4, 3), {"strides": (2, 3)}),
    "padded on one side": ((5, 6, 4), (2, 3, 4, 3), {"padding": ((0, 1), (2, 0))}),
}
CRITIC = {"adversarial.weight": 0.1, "adversarial.widths": (4, 8)}
MODELS = {
    "cvae": {"model.cvae.prior": "learned"},
    "multiscale": {"model.kind": "multiscale"} | CRITIC,
    "svg": {"model.kind": "svg"},
    "svg-vgg": {"model.kind": "svg", "model.svg.backbone": "vgg", "model.svg.width": 1},
}


def derived(x, kernel, strides=(1, 1), padding="VALID", lhs_dilation=(1, 1), depthwise=False):
    """The convolution whose gradients JAX derives."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] if depthwise else 1,
        precision=full_precision(x),
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("size", "kernel", "how"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_a_convolution_and_its_gradients_are_those_that_jax_derives(size, kernel, how, precision):
    rng = np.random.default_rng(0)
    x, k = (jnp.asarray(rng.normal(size=shape), precision) for shape in ((2, *size), kernel))
    values = []
    for function in (derived, convolve):
        y, pull_back = jax.vjp(lambda x, k, function=function: function(x, k, **how), x, k)
        g = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), precision)
        values.append((y, *pull_back(g)))
    for expected, value in zip(*values, strict=True):
        assert value.dtype == precision and value.shape == expected.shape
        bound = 1e-6 if precision == "float32" else 2**-7
        expected, value = np.float32(expected), np.float32(value)
        assert np.abs(value - expected).max() <= bound * np.abs(expected).max()


def test_many_small_terms_do_not_get_lost_in_bfloat16():
    """In bfloat16, 256 + 1 is 256."""
    ones = jnp.ones((1, 40, 40, 1), jnp.bfloat16)
    assert convolve(ones, ones.reshape(40, 40, 1, 1)) == 1600
    of_kernel = jax.grad(lambda k: jnp.sum(convolve(ones, k).astype(jnp.float32)))(ones[0, :1, :1, :, None])
    assert of_kernel == 1600


@pytest.mark.parametrize("backend", ["cpu", "gpu", pytest.param("tpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=[pytest.mark.slow] if name == "svg-vgg" else []) for name in MODELS]
)
def test_every_product_of_a_bfloat16_step_sums_in_float32(model, backend):
    """Those of the gradients and of the optimizer included.

    On a GPU, convolutions are left to cuDNN, which sums in float32: asked for float32 results, XLA would
    convert their factors to float32.
    """
    config = tiny_config()
    config.precision = "bfloat16"
    config.update_from_flattened_dict(MODELS[model])
    with formulated_for(backend):
        parts = Components.build(config)
        step = Step(config, parts, make_controls(config, parts, 10), (16, 16), None)
        equations = list(all_equations(step.jaxpr(2)))
    found = [each for each in equations if each.primitive.name in ("dot_general", "conv_general_dilated")]
    half = [each for each in found if each.invars[0].aval.dtype == jnp.bfloat16]
    assert len(half) > 20
    for equation in found:
        left_alone = backend == "gpu" and equation.primitive.name == "conv_general_dilated"
        expected = equation.invars[0].aval.dtype if left_alone else jnp.float32
        assert equation.outvars[0].aval.dtype == expected, equation
