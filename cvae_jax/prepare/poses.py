"""Poses over time: gaps filled or left open, and unsteadiness removed."""

from __future__ import annotations

import numpy as np

from cvae_jax.data.pose import LANDMARKS, landmark_index
from cvae_jax.prepare.crop import USED
from cvae_jax.prepare.split import runs

LEAST_JOINTS = 8  # of those a label uses: fewer are no person


def _other_side(name: str) -> str:
    return "left".join(part.replace("left", "right") for part in name.split("right"))


OTHER_SIDE = [landmark_index(_other_side(name)) for name in LANDMARKS]


def seen(landmarks: np.ndarray) -> np.ndarray:
    """Return bool (T,): whether enough joints of (T, 33, 2) are known to speak of a person."""
    return np.isfinite(landmarks[:, USED]).all(axis=-1).sum(axis=1) >= LEAST_JOINTS


def merge_looks(looks: np.ndarray) -> np.ndarray:
    """Return one body a frame (T, 33, 2), the median of several looks (T, N, 33, 2).

    NaN where fewer than half of the looks show one. A look whose left and right fit the
    frame before better when exchanged is taken so: a single look confuses them now and then.
    """
    count = looks.shape[1]
    merged = np.full((len(looks), *looks.shape[2:]), np.nan)
    before = None
    for t, here in enumerate(looks):
        here = here[np.isfinite(here).all(axis=(1, 2))]
        if 2 * len(here) < count:
            continue
        if before is None:
            before = np.median(here, axis=0)
        other = here[:, OTHER_SIDE]
        better = _distance(other, before) < _distance(here, before)
        before = np.median(np.where(better[:, None, None], other, here), axis=0)
        merged[t] = before
    return merged


def _distance(bodies: np.ndarray, before: np.ndarray) -> np.ndarray:
    return np.abs(bodies - before)[:, USED].sum(axis=(1, 2))


def fill(landmarks: np.ndarray, longest: int) -> np.ndarray:
    """Return (T, 33, 2) with gaps of up to `longest` frames interpolated, joint by joint, not at the ends."""
    filled = landmarks.copy()
    moments = np.arange(len(landmarks))
    for joint in range(landmarks.shape[1]):
        known = np.isfinite(landmarks[:, joint]).all(axis=-1)
        for start, stop in runs(~known):
            if known.any() and 0 < start and stop < len(known) and stop - start <= longest:
                for axis in (0, 1):
                    filled[start:stop, joint, axis] = np.interp(
                        moments[start:stop], (start - 1, stop), landmarks[[start - 1, stop], joint, axis]
                    )
    return filled


def steady(landmarks: np.ndarray) -> np.ndarray:
    """Return the median of (T, 33, 2) over three frames, where all three are known."""
    result = landmarks.copy()
    three = np.stack([landmarks[:-2], landmarks[1:-1], landmarks[2:]])
    if len(landmarks) >= 3:
        median = np.median(three, axis=0)
        result[1:-1] = np.where(np.isfinite(median), median, landmarks[1:-1])
    return result
