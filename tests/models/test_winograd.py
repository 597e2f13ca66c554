"""Winograd's algorithm equals a direct 3x3 convolution, and is as exact."""

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


def test_is_as_exact_as_the_direct_convolution():
    """Beside float64: the largest error of both, and the square root of the mean square."""
    x, kernel, _ = maps((1, 16, 32, 96), 96)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = sum(
        padded[:, i : i + 16, j : j + 32] @ np.asarray(kernel[i, j], np.float64)
        for i in range(3)
        for j in range(3)
    )
    own, direct = (np.asarray(c(x, kernel)) - exact for c in (winograd.conv3x3, ops._native_conv3x3))
    assert np.abs(own).max() < 1.5 * np.abs(direct).max()
    assert np.sqrt(np.mean(own**2)) < 1.5 * np.sqrt(np.mean(direct**2))


def test_takes_four_ninths_of_the_multiplications():
    x, kernel, _ = maps((2, 32, 64, 48), 64)
    text = jax.jit(winograd.conv3x3).lower(x, kernel).as_text()
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
    gradients = jax.grad(lambda *inputs: ops.conv3x3(*inputs, "cpu").sum(), argnums=(0, 1, 2))
    text = jax.jit(gradients).lower(x, kernel, bias).as_text()
    assert ("stablehlo.convolution" not in text) == is_chosen


def maps(shape, features):
    """Return a map, a kernel and a gradient of the result."""
    rng = np.random.default_rng([*shape, features])
    sizes = shape, (3, 3, shape[-1], features), (*shape[:-1], features)
    return [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]
