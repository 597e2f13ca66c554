"""Predictions without a model: what any model must beat. Frames are uint8 (T, H, W, 3)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np

from cvae_jax.data.clips import Recording, extend, to_unit
from cvae_jax.evaluation.measures import Measures
from cvae_jax.evaluation.rows import ClipScores
from cvae_jax.runtime.progress import clip_bar

# Frames are converted to float64 in chunks of at most this many frames and this many bytes (of float64).
_CHUNK, _CHUNK_BYTES = 1024, 2**26
_SCORED_AT_ONCE = 32  # frames of each baseline


class Baselines:
    """The baselines of a training set; a scene that the training set lacks uses all training frames.

    copy_first repeats the given frame, or the last one if there are several; copy_previous repeats the true
    previous frame (it sees the video it is scored on); mean_frame is the mean of the scene's training frames;
    nearest_pose is the scene's training frame whose label image is nearest in L2 (absent where labels are not
    images). Besides the recordings, memory holds a few chunks of frames.
    """

    def __init__(self, train: list[Recording]):
        self._train = train
        self._means: dict[str, np.ndarray] = {}

    def predict(self, recording: Recording, n_past: int = 1) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, prediction float32 in [0, 1] (T - n_past, H, W, 3)) for each baseline."""
        truth = to_unit(recording.frames)
        steps = len(truth) - n_past
        yield "copy_first", np.repeat(truth[n_past - 1 : n_past], steps, axis=0)
        yield "copy_previous", truth[n_past - 1 : -1]
        same = [r for r in self._train if r.scene == recording.scene] or self._train
        if recording.scene not in self._means:
            self._means[recording.scene] = mean_frame([r.frames for r in same])
        yield "mean_frame", np.repeat(self._means[recording.scene][None], steps, axis=0)
        if recording.image_labels:
            found = nearest(recording.labels[n_past:], *(r.labels for r in same))
            ends = np.cumsum([len(r.frames) for r in same])
            owners = np.searchsorted(ends, found, side="right")
            chosen = [same[owner].frames[index - ends[owner]] for owner, index in zip(owners, found)]
            yield "nearest_pose", to_unit(np.stack(chosen))


def mean_frame(videos: list[np.ndarray]) -> np.ndarray:
    """Return the mean of all frames of videos uint8 (T, H, W, 3), float32 in [0, 1] (H, W, 3)."""
    total = np.zeros(videos[0].shape[1:])
    for video in videos:
        for part in _chunks(video):
            total += part.sum(axis=0, dtype=np.float64)  # exact: integers below 2**53
    return (total / sum(map(len, videos))).astype(np.float32) / 255


def nearest(queries: np.ndarray, *candidates: np.ndarray) -> np.ndarray:
    """Return for each query image the index of the candidate nearest in L2, the first of equals.

    queries, and each of candidates: uint8 (N, H, W, 3). An index counts candidates across all arrays.
    Distances are exact: integers below 2**53 in float64.
    """
    found = []
    for part in _chunks(queries):
        query = part.reshape(len(part), -1).astype(np.float64)
        best, least = np.zeros(len(query), np.int64), np.full(len(query), np.inf)
        begin = 0
        for images in (chunk for video in candidates for chunk in _chunks(video)):
            pool = images.reshape(len(images), -1).astype(np.float64)
            # Up to the query's own norm, which is the same for every candidate.
            distance = np.sum(pool**2, axis=1)[None] - 2.0 * (query @ pool.T)
            index = distance.argmin(axis=1)
            value = distance[np.arange(len(query)), index]
            closer = value < least
            best, least = np.where(closer, begin + index, best), np.where(closer, value, least)
            begin += len(images)
        found.append(best)
    return np.concatenate(found)


def _chunks(video: np.ndarray) -> Iterator[np.ndarray]:
    size = max(1, min(_CHUNK, _CHUNK_BYTES // (8 * video[0].size))) if len(video) else 1
    for begin in range(0, len(video), size):
        yield video[begin : begin + size]


def score_baselines(
    train: list[Recording], recordings: list[Recording], n_past: int, measures: Measures = Measures(ssim=True)
) -> dict[str, list[ClipScores]]:
    """Return {row: a ClipScores per clip} of the baselines."""
    baselines = Baselines(train)
    scores: dict[str, list[ClipScores]] = {}
    with clip_bar(len(recordings)) as bar:
        bar.set_description("scoring the baselines")
        for recording in recordings:
            predicted = dict(baselines.predict(recording, n_past))
            found = _measured(measures, np.stack(list(predicted.values())), recording, n_past)
            for row, name in enumerate(predicted):
                values = {metric: of_rows[row] for metric, of_rows in found.items()}
                scores.setdefault(name, []).append(ClipScores(recording.scene, values))
            bar.update()
    return scores


def _measured(
    measures: Measures, predicted: np.ndarray, recording: Recording, n_past: int
) -> dict[str, np.ndarray]:
    """Return {metric: (rows, P)} of predictions float32 (rows, P, H, W, 3) of one recording."""
    program, weights = _program(measures)
    parts = []
    for begin in range(n_past, len(recording.frames), _SCORED_AT_ONCE):
        chunk = slice(begin, begin + _SCORED_AT_ONCE)
        frames = predicted[:, begin - n_past : begin - n_past + _SCORED_AT_ONCE]
        real = frames.shape[1]
        batch = {
            "videos": extend(recording.frames[chunk], _SCORED_AT_ONCE)[None],
            "labels": extend(recording.labels[chunk], _SCORED_AT_ONCE)[None],
            "frames": np.stack([extend(video, _SCORED_AT_ONCE) for video in frames]),
            "owner": np.zeros(len(frames), np.int32),
        }
        parts.append({name: np.asarray(v)[:, :real] for name, v in program(weights, batch).items()})
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


@functools.cache
def _program(measures: Measures) -> tuple:
    """Return the compiled program of the measures and its weights on the default device."""
    return jax.jit(measures.of), jax.device_put(measures.weights)
