"""Recordings: the stretches of a clip in which the person is known, divided by time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvae_jax.runtime.errors import UserError

SHORTEST = 2  # frames of a recording: one is given and one is predicted


class Stretch(NamedTuple):
    """Frames start to stop (excluded) of the resampled clip, all in one split."""

    split: str
    name: str
    start: int
    stop: int


def runs(known: np.ndarray) -> list[tuple[int, int]]:
    """Return (start, stop) of each run of true values in bool (T,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(int)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def divide(known: np.ndarray, validation: float, test: float) -> list[Stretch]:
    """Return the recordings of a clip in the order of time: training, validation, test.

    known: bool (T,), frames with a pose. validation, test: shares of these frames. Runs are cut where the
    splits meet; what is shorter than two frames is left out. Raises UserError where a split gets nothing.
    """
    count = int(known.sum())
    last = count - round(count * test)
    ends = {"train": last - round(count * validation), "validation": last}
    if test:
        ends["test"] = count
    moments = np.flatnonzero(known)
    stretches = []
    begin = 0
    for split, end in ends.items():
        own = np.zeros_like(known)
        own[moments[begin:end]] = True
        parts = [part for part in runs(own) if part[1] - part[0] >= SHORTEST]
        if not parts:
            raise UserError(
                f"The person is seen in {count} frames, too few for the split {split}: give a longer video, "
                "a higher --fps, or larger --validation and --test."
            )
        stretches += [Stretch(split, f"{split}_{i:03d}", *part) for i, part in enumerate(parts)]
        begin = end
    return stretches
