"""BatchNorm's gradient in closed form against autodiff, and where float32 leaves autodiff few digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.models.normalisation import normalise

EPSILON = 1e-5


def by_definition(x, scale, bias, mask):
    weight = mask[:, :, None, None, None]
    n = jnp.sum(weight, axis=(1, 2, 3), keepdims=True) * x.shape[2] * x.shape[3]
    mean = jnp.sum(x * weight, axis=(1, 2, 3), keepdims=True) / n
    var = jnp.sum((x - mean) ** 2 * weight, axis=(1, 2, 3), keepdims=True) / n
    return (x - mean) / jnp.sqrt(var + EPSILON) * scale[(None,) * 4] + bias[(None,) * 4]


@pytest.mark.parametrize("size", [(3, 2), (1, 1)], ids=["maps", "vectors"])
def test_gradients_are_those_of_the_definition(size):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    x, scale, bias = draw(2, 5, *size, 3), draw(3), draw(3)
    mask = jnp.ones((2, 5)).at[1, 3].set(0.0)
    weight = draw(*x.shape) * mask[:, :, None, None, None]  # no loss is taken of padding

    def gradients(function):
        return jax.value_and_grad(lambda *a: jnp.sum(function(*a) * weight), argnums=(0, 1, 2))(
            x, scale, bias
        )

    ours = gradients(lambda *a: normalise(*a, mask, EPSILON, None)[0])
    theirs = gradients(lambda *a: by_definition(*a, mask))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("size", [(3, 2), (1, 1)], ids=["maps", "vectors"])
def test_steps_of_padding_stay_finite(size):
    """However large their values are, and whatever is done with the result: 0 times infinity would be NaN."""
    x = jnp.full((2, 3, *size, 4), 1e15).at[0].set(jax.random.normal(jax.random.key(0), (3, *size, 4)))
    mask, bias = jnp.ones((2, 3)).at[1].set(0.0), jnp.arange(4.0)
    y, pull_back = jax.vjp(lambda x, s, b: normalise(x, s, b, mask, EPSILON, None)[0], x, jnp.ones(4), bias)
    np.testing.assert_array_equal(y[1], jnp.broadcast_to(bias, y[1].shape))
    gradients = pull_back(jnp.ones_like(y))
    assert all(np.isfinite(leaf).all() for leaf in (y, *gradients)) and not gradients[0][1].any()


def test_two_vectors_that_are_nearly_equal():
    """All but a ten-thousandth of the gradient cancels; in closed form it is (h e / (d^2 + e)^1.5, -...)."""
    half, middle, g = np.float32(0.3), np.float32(1.7), np.float32([0.4, -0.9])
    x = jnp.asarray([middle + half, middle - half])[None, :, None, None, None]
    function = lambda x: normalise(x, jnp.ones(1), jnp.zeros(1), jnp.ones((1, 2)), EPSILON, None)[0]  # noqa: E731
    gradient = jax.jit(lambda x: jax.vjp(function, x)[1](jnp.asarray(g)[None, :, None, None, None])[0])(x)
    d = (np.float64(x[0, 0, 0, 0, 0]) - np.float64(x[0, 1, 0, 0, 0])) / 2
    expected = (np.float64(g[0]) - np.float64(g[1])) / 2 * EPSILON / (d**2 + EPSILON) ** 1.5
    np.testing.assert_allclose(np.ravel(gradient), [expected, -expected], rtol=1e-5)
