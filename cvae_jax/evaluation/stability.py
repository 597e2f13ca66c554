"""Whether long rollouts stay as they began: the drift of their PSNR, and the flicker of what stands still."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from cvae_jax.data.clips import Recording, to_unit
from cvae_jax.evaluation.averages import mean_over_scenes
from cvae_jax.metrics import person_mask

WINDOW = 100  # frames at the beginning and at the end whose PSNR is compared
_CHUNK = 64  # frames that are converted at once


def drift(rows: Sequence[dict]) -> dict[str, float]:
    """Return the mean PSNR of the last WINDOW frames minus that of the first, in dB, for each row.

    Only rows of at least 2 * WINDOW frames have one.
    """
    curves = {row["name"]: row["per_frame_psnr"] for row in rows if "scene" not in row}
    return {
        name: float(np.mean(curve[-WINDOW:]) - np.mean(curve[:WINDOW]))
        for name, curve in curves.items()
        if len(curve) >= 2 * WINDOW
    }


def background(labels: np.ndarray) -> np.ndarray:
    """Return where nobody is in two successive frames, bool (T - 1, H, W), from labels uint8 (T, H, W, 3).

    That is outside the person (`person_mask`) in both.
    """
    parts = (labels[begin : begin + _CHUNK] for begin in range(0, len(labels), _CHUNK))
    nobody = ~np.concatenate([person_mask(jnp.asarray(to_unit(part))) for part in parts])
    return nobody[1:] & nobody[:-1]


def flicker(frames: np.ndarray, still: np.ndarray) -> float | None:
    """Return the mean squared difference of successive frames where `still` is true, for values in [0, 1].

    frames: uint8 (T, H, W, 3). still: see `background`. None if it is true nowhere.
    """
    total, count = 0.0, frames.shape[-1] * int(np.sum(still))
    for begin in range(0, len(still), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        squares = np.diff(to_unit(frames[begin : begin + _CHUNK + 1]), axis=0) ** 2
        total += float(np.sum(squares[still[part]], dtype=np.float64))
    return total / count if count else None


class Flicker:
    """The flicker of the truth and of rows, clip by clip, where labels are images."""

    def __init__(self, recordings: Sequence[Recording], n_past: int):
        shown = all(r.image_labels for r in recordings)
        self._still = [background(r.labels[n_past:]) for r in recordings] if shown else []
        self._scenes = [r.scene for r in recordings]
        self._found: dict[str, list[float | None]] = {}
        for clip, recording in enumerate(recordings):
            self.add("truth", clip, recording.frames[n_past:])

    def add(self, row: str, clip: int, frames: np.ndarray) -> None:
        """Add a row's predicted frames of a clip, uint8 (P, H, W, 3); clips come in order."""
        if self._still:
            self._found.setdefault(row, []).append(flicker(frames, self._still[clip]))

    @property
    def means(self) -> dict[str, float]:
        """The mean over clips and scenes for each row that has a background in every clip."""
        known = {row: [v for v in values if v is not None] for row, values in self._found.items()}
        return {
            row: mean_over_scenes(values, self._scenes)
            for row, values in known.items()
            if len(values) == len(self._scenes)
        }
