"""FVD between the clips of a split and a model's predictions of them, computed as samples are streamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from cvae_jax.data.clips import Recording, data_hash
from cvae_jax.perceptual import fvd, i3d
from cvae_jax.report import columns
from cvae_jax.report.columns import NOT_MEASURED
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.progress import clip_bar


class VideoDistance:
    """Receives prior sample 0 of the first clips of a split, and keeps only its features.

    The features of the clips themselves are the same for every model: they are kept in the user's cache.
    Videos are as long as the shortest of the clips.
    """

    def __init__(self, recordings: list[Recording], clips: int, n_past: int):
        """clips: how many; see `check`."""
        self._recordings, self._n_past = recordings[:clips], n_past
        length = shortest(self._recordings)
        self._features = fvd.Features(length)
        name = f"{data_hash(self._recordings)}/{length}"
        videos = (recording.frames for recording in self._recordings)
        self._true = fvd.kept_features(self._features.of, videos, name, self._announce)
        self._predicted: dict[int, np.ndarray] = {}

    def _announce(self, videos: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        with clip_bar(len(self._recordings)) as bar:
            bar.set_description("features of the true clips (the first compiles)")
            for video in videos:
                yield video
                bar.update()

    def add(self, clip: int, frames: np.ndarray) -> None:
        """Add the predicted frames uint8 (P, H, W, 3) of a clip; clips beyond the chosen ones are ignored."""
        if clip < len(self._recordings):
            given = self._recordings[clip].frames[: self._n_past]
            self._predicted[clip] = self._features.of(np.concatenate([given, frames]))

    def fields(self, seed: int) -> dict:
        """Return the row's fields fvd_<clips> and its interval over clips."""
        predicted = np.stack([self._predicted[clip] for clip in range(len(self._recordings))])
        name = columns.fvd(len(self._recordings)).name
        finite = np.isfinite(predicted).all()
        return {
            name: fvd.frechet_distance(self._true, predicted) if finite else None,
            f"{name}_ci95": list(fvd.interval(self._true, predicted, seed)) if finite else None,
        }


def shortest(recordings: list[Recording]) -> int:
    """Return the number of frames of the shortest recording."""
    return min(len(recording.frames) for recording in recordings)


def check(recordings: list[Recording], clips: int, split: str) -> str:
    """Return the definition of FVD for the protocol, or why it is not measured.

    Raises UserError if there are fewer clips than that, or if they are too short.
    """
    if not clips:
        return f"{NOT_MEASURED}: config.eval.fvd_clips is 0"
    if clips > len(recordings):
        raise UserError(
            f"config.eval.fvd_clips is {clips}, but the split {split} has {len(recordings)} clips; give at "
            "most that many."
        )
    length = shortest(recordings[:clips])
    if length < i3d.LEAST_FRAMES:
        raise UserError(
            f"config.eval.fvd_clips is {clips}, but the shortest of these clips has {length} frames and FVD "
            f"needs {i3d.LEAST_FRAMES}: set config.eval.fvd_clips to 0."
        )
    return fvd.DESCRIPTION.format(frames=length, clips=clips)
