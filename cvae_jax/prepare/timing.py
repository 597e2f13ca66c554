"""Which frame of a video is shown at each moment of the data set."""

from __future__ import annotations

import dataclasses

import numpy as np

from cvae_jax.prepare.footage import Footage
from cvae_jax.runtime.errors import UserError

HIGHEST_DEFAULT = 30.0  # frames per second
TOLERANCE = 1.01  # 30 may be asked of a video of 29.97


@dataclasses.dataclass(frozen=True)
class Timing:
    """The data set's clock.

    fps: frames per second. indices: int64 (T,), the video's frame of each moment, never falling.
    times: float64 (T,), seconds from the video's first frame.
    """

    fps: float
    indices: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


def resample(footage: Footage, fps: float | None, start: float | None, end: float | None) -> Timing:
    """Return the frames nearest in time to a steady clock from start to end (seconds; None: all).

    fps: None: the video's own mean rate, at most 30. Raises UserError for a rate above the video's own
    and for a part that holds fewer than two frames.
    """
    own, last = footage.fps, float(footage.times[-1])
    if fps is None:
        fps = min(own, HIGHEST_DEFAULT)
    if fps > own * TOLERANCE:
        raise UserError(
            f"--fps={fps:g} is more than the {own:.4g} frames a second of {footage.path}: give at most that, "
            "or leave it out."
        )
    first = start or 0.0
    stop = last if end is None else min(end, last)
    if first >= stop:
        raise UserError(
            f"--start={first:g} is not before the end of {footage.path}, which lasts {last:.2f} s: "
            "give an earlier second."
        )
    count = int(np.floor((stop - first) * fps + 1e-6)) + 1
    if count < 2:
        raise UserError(f"At {fps:g} frames a second only one frame of {footage.path} is left: raise --fps.")
    times = first + np.arange(count) / fps
    return Timing(fps, nearest(footage.times, times), times)


def nearest(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return for each moment (T,) the index of the nearest of the rising times (N,), the earlier of two."""
    right = np.clip(np.searchsorted(times, moments), 1, len(times) - 1)
    # Halves of a frame are decided by rounding of time stamps otherwise.
    earlier = moments - times[right - 1] <= times[right] - moments + 1e-4
    return np.where(earlier, right - 1, right).astype(np.int64)
