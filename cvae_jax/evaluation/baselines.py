"""Predictions without a model: what any model must beat. Frames are uint8 (T, H, W, 3)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cvae_jax.data.clips import Recording, to_unit

# Frames are converted to float64 in chunks of at most so many, and so many bytes (of float64).
_CHUNK, _CHUNK_BYTES = 1024, 2**26


class Baselines:
    """The baselines of a training set; a scene the training set lacks uses all its frames.

    copy_first repeats the given frame, the last of them if there are several; copy_previous repeats the true
    previous frame (it sees the video it is scored on); mean_frame is the mean of the scene's training frames;
    nearest_pose is the scene's training frame whose label image is nearest in L2 (absent where labels are no
    images). Beside the recordings, memory holds a few chunks of frames.
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

    queries, and each of candidates: uint8 (N, H, W, 3). An index counts the candidates of all arrays.
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
