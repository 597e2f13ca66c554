"""Normalisation with a batch's own statistics, and its gradient in closed form."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

SPACE = (1, 2, 3)  # the axes of a step's clips and pixels


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalise(
    x: Float[Array, "g b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    mask: Float[Array, "g b"],
    epsilon: float,
    axis_name: str | None,
) -> tuple[Float[Array, "g b h w c"], Float[Array, "g c"], Float[Array, "g c"], Float[Array, " g"]]:
    """Return x normalised per step, and each step's mean, biased variance and number of values.

    Statistics are over the (b, h, w) of a step where `mask` is 1, in float32, summed over the devices of
    `axis_name`. A step whose mask is 0 throughout becomes `bias`. No gradient flows through the returned
    statistics or into the mask.
    """
    return _forward(x, scale, bias, mask, epsilon, axis_name)[0]


def _forward(x, scale, bias, mask, epsilon, axis_name):
    wide, weight = x.astype(jnp.float32), mask[:, :, None, None, None]
    count = _total(jnp.sum(mask, axis=1), axis_name) * (x.shape[2] * x.shape[3])
    n = jnp.maximum(count, 1)[:, None]
    mean = _total(jnp.sum(wide * weight, axis=SPACE), axis_name) / n
    centred = wide - _spread(mean)
    var = _total(jnp.sum(centred**2 * weight, axis=SPACE), axis_name) / n
    factor = scale[None] * _inverse(var, count, epsilon)
    y = (centred * _spread(factor) + bias[(None,) * 4]).astype(x.dtype)
    return (y, mean, var, count), (x, scale, mask, mean, var, count)


def _backward(epsilon, axis_name, residuals, cotangents):
    x, scale, mask, mean, var, count = residuals
    n = jnp.maximum(count, 1)[:, None]
    dy, weight = cotangents[0].astype(jnp.float32), mask[:, :, None, None, None]
    centred = x.astype(jnp.float32) - _spread(mean)
    inverse = _inverse(var, count, epsilon)
    of_bias, of_scale = jnp.sum(dy, axis=SPACE), jnp.sum(dy * centred, axis=SPACE)
    if x.shape[2] * x.shape[3] == 1:
        rest = _rest_of_vectors(dy, centred, weight, n, epsilon, axis_name)
    else:
        along = _total(of_scale, axis_name) / n * inverse**2
        rest = dy - weight * (_spread(_total(of_bias, axis_name) / n) + centred * _spread(along))
    dx = (rest * _spread(scale[None] * inverse)).astype(x.dtype)
    return dx, jnp.sum(of_scale * inverse, axis=0), jnp.sum(of_bias, axis=0), jnp.zeros_like(mask)


def _rest_of_vectors(dy, centred, weight, n, epsilon, axis_name):
    """Return dy without its parts along 1 and along x, but for the share of the latter that epsilon leaves.

    With two clips that share is all that is left, and subtracting cancels all but a few digits. Each part is
    therefore subtracted twice (as in Gram-Schmidt), and the share is computed without a subtraction.
    """

    def mean(values):
        return _spread(_total(jnp.sum(values * weight, axis=SPACE), axis_name) / n)

    centred = centred - mean(centred)
    var = mean(centred**2)
    for _ in range(2):
        dy = dy - weight * mean(dy)
    along = jnp.zeros_like(var)
    for _ in range(2):
        more = mean(dy * centred) / jnp.maximum(var, jnp.finfo(jnp.float32).tiny)
        dy, along = dy - weight * centred * more, along + more
    return dy + weight * centred * along * (epsilon / (var + epsilon))


def _inverse(var: Float[Array, "g c"], count: Float[Array, " g"], epsilon: float) -> Float[Array, "g c"]:
    """Return 1 / standard deviation, and 0 for a step that is all padding.

    The variance of such a step is 0, and each layer of a deep network would make its values 300 times larger.
    """
    return jnp.where(count[:, None] > 0, lax.rsqrt(var + epsilon), 0.0)


def _spread(statistic: Float[Array, "g c"]) -> Float[Array, "g 1 1 1 c"]:
    return statistic[:, None, None, None, :]


def _total(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else lax.psum(x, axis_name)


normalise.defvjp(_forward, _backward)
