"""The CPU formulation of every convolution equals the native one: values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.models import ops


def halves_side_by_side(*arguments):
    return jnp.concatenate(ops.dense_halves(*arguments), axis=-1)


OPERATIONS = {
    "dense": ops.dense,
    "dense_halves": halves_side_by_side,
    "conv3x3": ops.conv3x3,
    "depthwise3x3": ops.depthwise3x3,
    "conv_valid": ops.conv_valid,
}


@jax.jit
def both_formulations(arguments, cotangents):
    """{operation: {formulation: (value, gradients of x, kernel and bias)}}, in one program."""

    def run(name, formulation):
        apply = lambda *inputs: OPERATIONS[name](*inputs, formulation)  # noqa: E731
        value, pull_back = jax.vjp(apply, *arguments[name])
        return value, *pull_back(cotangents[name])

    return {name: {form: run(name, form) for form in ("plain", "cpu")} for name in OPERATIONS}


@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ((2, 5, 7, 3), 4),
        ((1, 1, 6, 2), 1),  # one row
        ((3, 4, 1, 1), 2),  # one column, one channel
        ((1, 1, 1, 1), 1),
        ((1, 2, 3, 5), 8),
        ((2, 4, 3, 5), 2),  # few outputs: the 3x3 convolution's other way
        ((1, 1, 1, 3), 1),
    ],
)
def test_cpu_formulation_equals_the_plain_one(shape, features):
    compare(shape, features, jnp.float32, rtol=1e-5, atol=2e-5)


def test_cpu_formulation_equals_the_plain_one_for_large_maps():
    """With the 3x3 convolution by Winograd's algorithm; sums of 432 products, and of 1,088 in gradients."""
    compare((1, 32, 34, 48), 49, jnp.float32, rtol=1e-5, atol=2e-4)


def test_cpu_formulation_equals_the_plain_one_in_bfloat16():
    """Within a few of bfloat16's steps (2**-8) of the sums' sizes."""
    compare((2, 5, 7, 6), 4, jnp.bfloat16, rtol=0.03, atol=0.3)


def compare(shape, features, dtype, **tolerance):
    rng = np.random.default_rng([*shape, features])
    normal = lambda *size: jnp.asarray(rng.normal(size=size), dtype)  # noqa: E731
    channels, window = shape[-1], tuple(min(3, n) for n in shape[1:3])
    kernels = {
        "dense": (1, 1, channels, features),
        "dense_halves": (1, 1, channels, 2 * features),
        "conv3x3": (3, 3, channels, features),
        "depthwise3x3": (3, 3, 1, channels),
        "conv_valid": (*window, channels, features),
    }
    bias = lambda n: jnp.asarray(rng.normal(size=n), jnp.float32)  # noqa: E731
    arguments = {k: (normal(*shape), normal(*s), bias(s[-1])) for k, s in kernels.items()}
    cotangents = {k: normal(*shape[:3], s[-1]) for k, s in kernels.items()}
    inside = [n - w + 1 for n, w in zip(shape[1:3], window, strict=True)]
    cotangents["conv_valid"] = normal(shape[0], *inside, features)
    for name, results in both_formulations(arguments, cotangents).items():
        what = ("value", "x", "kernel", "bias")
        for part, plain, cpu in zip(what, results["plain"], results["cpu"], strict=True):
            expected = jnp.float32 if part == "bias" else dtype
            assert (cpu.shape, cpu.dtype, plain.dtype) == (plain.shape, expected, expected)
            cpu, plain = (np.asarray(x, np.float32) for x in (cpu, plain))
            np.testing.assert_allclose(cpu, plain, **tolerance, err_msg=f"{name} {part}")


def test_resolve_formulation():
    assert ops.resolve_formulation("plain") == "plain"
    assert ops.resolve_formulation("cpu") == "cpu"
    assert jax.default_backend() == "cpu"  # conftest
    assert ops.resolve_formulation("auto") == "cpu"


def test_auto_is_plain_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert ops.resolve_formulation("auto") == "plain"
    assert ops.resolve_formulation("cpu") == "cpu"


def test_an_unknown_formulation_is_refused():
    with pytest.raises(ValueError, match="formulation is 'fast'; known: auto, plain, cpu"):
        ops.resolve_formulation("fast")


@pytest.mark.parametrize("formulation", ["plain", "cpu"])
def test_valid_convolution_is_the_cross_correlation(formulation):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 8, 9, 3)), rng.normal(size=(7, 7, 3, 2))
    bias = rng.normal(size=2)
    patches = np.lib.stride_tricks.sliding_window_view(x, (7, 7), axis=(1, 2))
    expected = np.einsum("nhwiyx,yxio->nhwo", patches, kernel) + bias
    value = ops.conv_valid(*(jnp.asarray(a, jnp.float32) for a in (x, kernel, bias)), formulation)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
