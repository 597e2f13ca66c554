"""Random numbers addressed by what they are for, not consumed from a stream.

The noise of a step is a function of (seed, stream, ..., clip, t): it does not depend on the batch, the
devices, the chunks a video is rolled out in, or on how often a run was resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Integer, Key, Num, Scalar

# NumPy, so that importing this module does not start a backend.
TRAINING_STREAM = np.uint32(0)
EVALUATION_STREAM = np.uint32(1)
AUGMENTATION_STREAM = np.uint32(2)

Noise = Callable[[Scalar], Array]
"""t -> standard normal noise of step t, (b, *latent_shape)."""


def derive_keys(seed: Integer[Array, ""], *parts: Num[Array | np.number, ...]) -> Key[Array, ...]:
    """Fold integers into the key of `seed`, one after the other; array parts (b,) give one key per entry."""
    key = jax.random.key(seed)
    for part in parts:
        if key.ndim == 0 and part.ndim == 1:
            key = jax.vmap(jax.random.fold_in, (None, 0))(key, part)
        elif key.ndim == 1:
            key = jax.vmap(jax.random.fold_in, (0, None if part.ndim == 0 else 0))(key, part)
        else:
            key = jax.random.fold_in(key, part)
    return key


def clip_noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Noise:
    """Return t -> standard normal noise (b, *shape) addressed by (key of the clip, t)."""

    def noise(t: Scalar) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)

    return noise


def correlated(
    noise: Noise, correlation: float, start: Scalar, count: int, before: Array
) -> tuple[Noise, Array]:
    """Return noise that changes slowly: at steps k apart it has the correlation correlation**k.

    It is standard normal at every step: a first-order autoregression, the "progressive" noise of Ge et al.
    (ICCV 2023).

    Args:
      noise: independent between steps.
      correlation: in [0, 1).
      start, count: noise is made for the steps start + 1 to start + count.
      before: the noise of step `start`; for the first steps of a clip, any standard normal noise.

    Returns:
      (the noise of these steps as a function of t, the noise of the last step).
    """
    if not correlation:
        return noise, before

    def advance(previous: Array, t: Scalar) -> tuple[Array, Array]:
        current = correlation * previous + math.sqrt(1 - correlation**2) * noise(t)
        return current, current

    last, series = lax.scan(advance, before, start + 1 + jnp.arange(count))
    return lambda t: lax.dynamic_index_in_dim(series, t - start - 1, keepdims=False), last
