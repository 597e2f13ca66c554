"""FVD, the Frechet video distance (Unterthiner et al., 2018): how far apart two sets of videos are.

Each set is described by the mean and the covariance of its I3D features. The distance falls as the number of
videos grows, so distances over different numbers of videos cannot be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cvae_jax.perceptual import i3d
from cvae_jax.runtime.errors import StorageError
from cvae_jax.runtime.files import replacing, user_cache_folder

DESCRIPTION = (
    "I3D on Kinetics-400, logits averaged over time; whole videos, context frames included, of {frames} "
    "frames, bilinear to 224 x 224; the first {clips} clips, prior sample 0; lower is better"
)
_RESAMPLES = 200
_NORMAL_95 = 1.96
_VERSION = "1"  # of the features that are kept


class Features:
    """Computes the features of videos of one length on the default device, one at a time."""

    def __init__(self, frames: int):
        """frames: how many frames of each video are used, from the first on; at least i3d.LEAST_FRAMES."""
        self._frames = frames
        self._weights = jax.device_put(i3d.load_weights())
        self._program = jax.jit(_features)

    def of(self, video: np.ndarray) -> np.ndarray:
        """Return the features float32 (400,) of a video uint8 (T, H, W, 3) of at least that many frames."""
        return np.asarray(self._program(self._weights, video[None, : self._frames]))[0]


def _features(weights: dict, videos: Array) -> Array:
    return i3d.logits(weights, resized(videos))


def resized(videos: Array) -> Array:
    """Return uint8 (b, T, H, W, 3) as float32 in [-1, 1], bilinear to 224 x 224.

    Pixel i of the result is sampled at i * H / 224, as in TensorFlow 1 and therefore in the original FVD.
    """
    unit = 2.0 * videos.astype(jnp.float32) / 255.0 - 1.0
    rows, columns = (jnp.asarray(_bilinear(size)) for size in videos.shape[2:4])
    return jnp.einsum("yh,bthwc,xw->btyxc", rows, unit, columns, precision=jax.lax.Precision.HIGHEST)


def _bilinear(size: int) -> np.ndarray:
    """Return the weights (224, size) of an axis."""
    place = np.arange(i3d.SIZE) * (size / i3d.SIZE)
    low = np.minimum(np.floor(place).astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    weights = np.zeros((i3d.SIZE, size), np.float32)
    np.add.at(weights, (np.arange(i3d.SIZE), low), 1.0 - (place - low))
    np.add.at(weights, (np.arange(i3d.SIZE), high), place - low)
    return weights


def kept_features(
    features_of: Callable[[np.ndarray], np.ndarray],
    videos: Iterable[np.ndarray],
    name: str,
    announce: Callable[[Iterable], Iterable] = lambda x: x,
) -> np.ndarray:
    """Return the features (n, 400) of videos, computed once and kept in the user's cache folder.

    features_of: `Features.of`. name: what the videos are, a hash of them and their length. announce shows
    progress over the videos.
    """
    key = hashlib.blake2b(f"{_VERSION}/{name}".encode(), digest_size=16).hexdigest()
    path = user_cache_folder() / "fvd" / f"{key}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # the last of an empty file
        found = np.stack([features_of(video) for video in announce(videos)])
    _keep(path, found)
    return found


def _keep(path: Path, found: np.ndarray) -> None:
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            np.save(file, found)
    except (StorageError, OSError):
        pass  # the folder cannot be written: features are computed again next time


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return |m - n|^2 + tr(S + T - 2 (S T)^(1/2)) of two sets of features (videos, d), at least 2 each.

    m, n and S, T are the means and the unbiased covariances (Dowson & Landau, 1982). With the centred
    features A and B, S = A'A and T = B'B, the trace of the root is the sum of the singular values of A B'.
    """
    (mean, a), (other_mean, b) = _moments(one), _moments(other)
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    value = np.sum((mean - other_mean) ** 2) + np.sum(a**2) + np.sum(b**2) - 2.0 * root
    return float(max(value, 0.0))  # rounding of equal sets


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean, and the centred features over the root of n - 1, in float64."""
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    return mean, (features - mean) / np.sqrt(len(features) - 1)


def interval(one: np.ndarray, other: np.ndarray, seed: int) -> tuple[float, float]:
    """Return a 95 % interval of `frechet_distance` over clips: the distance plus or minus 1.96 deviations.

    The deviation is that of a bootstrap that draws clips with replacement, the same ones from both sets. Its
    mean is not used: fewer different clips make the distance larger, so the percentiles of the bootstrap lie
    above the distance itself. For the same reason the interval does not cover the distance over more clips.
    """
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(one), size=len(one)) for _ in range(_RESAMPLES))
    spread = float(np.std([frechet_distance(one[clips], other[clips]) for clips in drawn], ddof=1))
    value = frechet_distance(one, other)
    return max(0.0, value - _NORMAL_95 * spread), value + _NORMAL_95 * spread
