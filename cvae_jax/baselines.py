"""Predictions without a model: what any model must beat. Frames are uint8 (T, H, W, 3)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cvae_jax.data.clips import Recording, to_unit

_CHUNK = 64


class Baselines:
    """The baselines of a training set; a scene the training set lacks uses all its frames.

    copy_first repeats the given frame, the last of them if there are several; copy_previous repeats the true
    previous frame (it sees the video it is scored on); mean_frame is the mean of the scene's training frames;
    nearest_pose is the scene's training frame whose label image is nearest in L2 (absent where labels are no
    images).
    """

    def __init__(self, train: list[Recording]):
        self._train = train
        self._scenes: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def predict(self, recording: Recording, n_past: int = 1) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, prediction float32 in [0, 1] (T - n_past, H, W, 3)) for each baseline."""
        frames, labels = self._scene(recording.scene)
        truth = to_unit(recording.frames)
        steps = len(truth) - n_past
        yield "copy_first", np.repeat(truth[n_past - 1 : n_past], steps, axis=0)
        yield "copy_previous", truth[n_past - 1 : -1]
        mean = np.mean(frames, axis=0, dtype=np.float64).astype(np.float32) / 255
        yield "mean_frame", np.repeat(mean[None], steps, axis=0)
        if recording.image_labels:
            yield "nearest_pose", to_unit(frames[nearest(recording.labels[n_past:], labels)])

    def _scene(self, scene: str) -> tuple[np.ndarray, np.ndarray]:
        if scene not in self._scenes:
            same = [r for r in self._train if r.scene == scene] or self._train
            self._scenes[scene] = (
                np.concatenate([r.frames for r in same]),
                np.concatenate([r.labels for r in same]),
            )
        return self._scenes[scene]


def nearest(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return for each query image the index of the candidate nearest in L2 (uint8 images, the first of
    equals)."""
    pool = candidates.reshape(len(candidates), -1).astype(np.float32)
    norms = np.concatenate(
        [
            np.sum(pool[begin : begin + _CHUNK].astype(np.float64) ** 2, axis=1)
            for begin in range(0, len(pool), _CHUNK)
        ]
    )
    found = []
    for begin in range(0, len(queries), _CHUNK):
        query = queries[begin : begin + _CHUNK].reshape(-1, pool.shape[1]).astype(np.float32)
        found.append(np.argmin(norms[None] - 2.0 * (query @ pool.T), axis=1))
    return np.concatenate(found)
