"""Random numbers addressed by what they are for, not consumed from a stream.

The noise of a step is a function of (seed, stream, ..., clip, t): it does not depend on the batch, the
devices, the chunks a video is rolled out in, or on how often a run was resumed.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
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
