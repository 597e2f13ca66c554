"""Whether long rollouts stay as they began: the drift of their PSNR, and the flicker of what stands still."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from cvae_jax.data.clips import Recording, to_unit
from cvae_jax.evaluation.averages import mean_over_scenes
from cvae_jax.metrics import person_mask

WINDOW = 100  # frames at the beginning and at the end whose PSNR is compared
_CHUNK = 64  # frames whose differences are taken at once


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


def flicker(frames: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the mean squared difference of successive frames where nobody is, for values in [0, 1].

    frames, labels: uint8 (T, H, W, 3). A pixel counts where it is outside the person (`person_mask`) in both
    frames. None if there is no such pixel.
    """
    total, count = 0.0, 0
    for begin in range(0, len(frames) - 1, _CHUNK):
        part = slice(begin, begin + _CHUNK + 1)
        background = ~np.asarray(person_mask(jnp.asarray(to_unit(labels[part]))))
        still = background[1:] & background[:-1]
        squares = np.diff(to_unit(frames[part]), axis=0) ** 2
        total += float(np.sum(squares[still], dtype=np.float64))
        count += squares.shape[-1] * int(np.sum(still))
    return total / count if count else None


class Flicker:
    """The flicker of the truth and of rows, clip by clip, where labels are images."""

    def __init__(self, recordings: Sequence[Recording], n_past: int):
        self._labels = [r.labels[n_past:] for r in recordings]
        self._scenes = [r.scene for r in recordings]
        self._shown = all(r.image_labels for r in recordings)
        self._found: dict[str, list[float | None]] = {}
        for clip, recording in enumerate(recordings):
            self.add("truth", clip, recording.frames[n_past:])

    def add(self, row: str, clip: int, frames: np.ndarray) -> None:
        """Add a row's predicted frames of a clip, uint8 (P, H, W, 3); clips come in order."""
        if self._shown:
            self._found.setdefault(row, []).append(flicker(frames, self._labels[clip]))

    @property
    def means(self) -> dict[str, float]:
        """The mean over clips and scenes for each row that has a background in every clip."""
        known = {row: [v for v in values if v is not None] for row, values in self._found.items()}
        return {
            row: mean_over_scenes(values, self._scenes)
            for row, values in known.items()
            if len(values) == len(self._scenes)
        }
