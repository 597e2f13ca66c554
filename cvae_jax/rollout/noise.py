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
from jaxtyping import Array, Integer, Key, Num, Scalar

# NumPy, so that importing this module does not start a backend.
TRAINING_STREAM = np.uint32(0)
EVALUATION_STREAM = np.uint32(1)
AUGMENTATION_STREAM = np.uint32(2)

_LEAST_WEIGHT = 0.05  # of the terms of `correlated`, against the largest

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


def correlated(noise: Noise, correlation: float) -> Noise:
    """Return noise that changes slowly: each step's is standard normal, that of k steps apart correlates.

    The correlation is correlation**k, as of a first-order autoregression (the "progressive" noise of Ge et
    al., ICCV 2023). It is written as a weighted sum of the independent noise of the step and of those after
    it, so that it remains a function of t. Terms of little weight are left out, which lowers the correlation
    by less than 0.003.

    correlation: in [0, 1); 0 returns `noise` itself.
    """
    if not correlation:
        return noise
    count = math.ceil(math.log(_LEAST_WEIGHT) / math.log(correlation))
    weights = correlation ** np.arange(count)
    unit = np.float32(weights / np.linalg.norm(weights))
    return lambda t: jnp.tensordot(unit, jax.vmap(noise)(t + jnp.arange(count)), axes=1)
