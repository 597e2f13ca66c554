"""Winograd's algorithm equals a direct 3x3 convolution, and is about as exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.models import ops, winograd


@pytest.mark.parametrize(
    ("shape", "features"), [((1, 2, 2, 1), 1), ((2, 4, 6, 5), 3), ((3, 2, 8, 2), 7), ((1, 10, 4, 3), 2)]
)
def test_equals_the_direct_convolution(shape, features):
    """With the gradients of the map and the kernel."""
    x, kernel, g = maps(shape, features)

    def run(convolution):
        y, pull_back = jax.vjp(convolution, x, kernel)
        return y, *pull_back(g)

    own, direct = run(winograd.conv3x3), run(ops._native_conv3x3)
    for a, b in zip(own, direct, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_is_about_as_exact_as_the_direct_convolution():
    """Beside float64: the result and both gradients have at most twice its root of the mean squared error."""
    x, kernel, g = maps((1, 16, 32, 96), 96)
    taps = [(i, j) for i in range(3) for j in range(3)]
    wide = {name: np.asarray(array, np.float64) for name, array in zip("xkg", (x, kernel, g), strict=True)}

    def shifted(array):
        padded = np.pad(array, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return {(i, j): padded[:, i : i + 16, j : j + 32] for i, j in taps}

    near_x, near_g = shifted(wide["x"]), shifted(wide["g"])
    exact = (
        sum(near_x[tap] @ wide["k"][tap] for tap in taps),
        sum(near_g[i, j] @ wide["k"][2 - i, 2 - j].T for i, j in taps),
        np.stack([np.einsum("nhwi,nhwo->io", near_x[tap], wide["g"]) for tap in taps]).reshape(3, 3, 96, 96),
    )

    def errors(convolution):
        y, pull_back = jax.vjp(convolution, x, kernel)
        found = zip((y, *pull_back(g)), exact, strict=True)
        return [np.sqrt(np.mean((np.asarray(a) - b) ** 2)) for a, b in found]

    for own, direct in zip(errors(winograd.conv3x3), errors(ops._native_conv3x3), strict=True):
        assert own < 2 * direct


def test_takes_four_ninths_of_the_multiplications():
    x, kernel, _ = maps((2, 32, 64, 48), 64)
    text = jax.jit(winograd.conv3x3).lower(x, kernel).as_text()
    gradients = jax.jit(jax.grad(lambda *inputs: winograd.conv3x3(*inputs).sum(), argnums=(0, 1)))
    assert gradients.lower(x, kernel).as_text().count("stablehlo.dot_general") == 8
    assert text.count("stablehlo.dot_general") == 4  # products of (4, 2 * 16 * 32, 48) and (4, 48, 64)
    assert text.count("(tensor<4x1024x48xf32>, tensor<4x48x64xf32>) -> tensor<4x1024x64xf32>") == 4
    assert "convolution" not in text


@pytest.mark.parametrize(
    ("shape", "features", "dtype", "is_chosen"),
    [
        ((1, 32, 32, 48), 48, "float32", True),
        ((1, 32, 32, 48), 48, "bfloat16", False),
        ((1, 33, 32, 48), 48, "float32", False),
        ((1, 32, 33, 48), 48, "float32", False),
        ((1, 30, 32, 48), 48, "float32", False),
        ((1, 32, 32, 47), 48, "float32", False),
        ((1, 32, 32, 48), 47, "float32", False),
    ],
)
def test_the_cpu_formulation_chooses_it_for_large_convolutions(shape, features, dtype, is_chosen):
    x, kernel, _ = (array.astype(dtype) for array in maps(shape, features))
    bias = np.zeros(features, np.float32)
    run = jax.value_and_grad(lambda *inputs: ops.conv3x3(*inputs, "cpu").sum(), argnums=(0, 1, 2))
    text = jax.jit(run).lower(x, kernel, bias).as_text()
    assert ("stablehlo.convolution" not in text) == is_chosen


def maps(shape, features):
    """Return a map, a kernel and a gradient of the result."""
    rng = np.random.default_rng([*shape, features])
    sizes = shape, (3, 3, shape[-1], features), (*shape[:-1], features)
    return [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]
