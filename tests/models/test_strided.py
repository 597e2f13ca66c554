"""The convolutions that change the size of a map: against the plain formulation, and definitions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.models import strided


def draw(shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


# Function, size of the map, of the kernel, of the result; few outputs take a path of their own.
CASES = [
    (strided.downsample4x4, (6, 10, 3), (4, 4, 3, 8), (3, 5, 8)),
    (strided.downsample4x4, (6, 4, 3), (4, 4, 3, 1), (3, 2, 1)),
    (strided.upsample4x4, (3, 5, 4), (4, 4, 4, 3), (6, 10, 3)),
    (strided.upsample4x4, (3, 2, 40), (4, 4, 40, 1), (6, 4, 1)),
    (strided.enlarged_conv3x3, (3, 5, 4), (3, 3, 4, 3), (6, 10, 3)),
    (strided.conv3x3, (3, 5, 4), (3, 3, 4, 3), (3, 5, 3)),
    (strided.to_vector, (2, 3, 4), (2, 3, 4, 5), (1, 1, 5)),
    (strided.from_vector, (1, 1, 4), (2, 3, 4, 5), (2, 3, 5)),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("function", "size", "kernel", "result"), CASES)
def test_formulations_agree(function, size, kernel, result, precision):
    """Forward and both gradients."""
    x, k, g = draw((2, *size), 0, precision), draw(kernel, 1, precision), draw((2, *result), 2, precision)

    def values(formulation):
        y, pull_back = jax.vjp(lambda x, k: function(x, k, formulation), x, k)
        return (y, *pull_back(g))

    plain, cpu = jax.jit(lambda: (values("plain"), values("cpu")))()
    for expected, value in zip(plain, cpu, strict=True):
        assert value.dtype == precision and value.shape == expected.shape
        expected, value = np.float32(expected), np.float32(value)
        bound = 1e-5 if precision == "float32" else 0.02
        assert np.abs(value - expected).max() <= bound * np.abs(expected).max()


def test_a_transposed_convolution_is_the_transpose_of_the_convolution():
    x, kernel, y = draw((1, 8, 6, 3)), draw((4, 4, 3, 5), 1), draw((1, 4, 3, 5), 2)
    down = strided.downsample4x4(x, kernel, "plain")
    up = strided.upsample4x4(y, kernel.swapaxes(2, 3), "plain")
    np.testing.assert_allclose(jnp.sum(down * y), jnp.sum(x * up), rtol=1e-4)


def test_max_pooling_gives_the_gradient_to_the_first_of_equal_values():
    x = draw((2, 6, 4, 3))
    np.testing.assert_array_equal(strided.max_pool2x2(x), nn.max_pool(x, (2, 2), (2, 2)))
    ties = jnp.ones((1, 4, 4, 1)).at[0, 0, 0].set(0.0)
    gradient = jax.grad(lambda x: jnp.sum(strided.max_pool2x2(x)))(ties)[0, :, :, 0]
    expected = [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(gradient, expected)


def test_blocks_of_pixels_become_channels_and_back():
    x = draw((2, 4, 6, 3))
    blocks = strided.space_to_depth(x)
    np.testing.assert_array_equal(blocks[0, 1, 2, 3:6], x[0, 2, 5])
    np.testing.assert_array_equal(strided.depth_to_space(blocks), x)
