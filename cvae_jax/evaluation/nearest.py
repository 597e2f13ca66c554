"""Exact nearest neighbours among images, and predictions blended of several of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cvae_jax.data.clips import Recording, to_unit

# Images are converted to float64 in chunks of at most this many images and this many bytes (of float64).
_CHUNK, _CHUNK_BYTES = 1024, 2**26
COUNTS = (1, 2, 3, 5, 8, 12, 20)  # what a blend is chosen from
WIDTHS = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0)
PARTS, QUERIES = 4, 200  # of a scene's training frames: held out one after the other; tried in all


class Neighbours(NamedTuple):
    """The images nearest to each of n queries, the nearest first: numbers and squared distances (n, k)."""

    number: np.ndarray
    distance: np.ndarray


def nearest(queries: np.ndarray, candidates: Sequence[np.ndarray], count: int = 1) -> Neighbours:
    """Return for each query image the `count` candidates nearest in L2, the first of equals first.

    queries, and each of candidates: uint8 (N, H, W, 3). A number counts candidates across all arrays. There
    are fewer than `count` where there are fewer candidates. Distances are exact: integers below 2**53 in
    float64.
    """
    found = []
    for part in chunks(queries):
        query = part.reshape(len(part), -1).astype(np.float64)
        best, least = np.zeros((len(query), 0), np.int64), np.zeros((len(query), 0))
        begin = 0
        for images in (chunk for video in candidates for chunk in chunks(video)):
            pool = images.reshape(len(images), -1).astype(np.float64)
            # Up to the query's own norm, which is the same for every candidate.
            own = np.sum(pool**2, axis=1)[None] - 2.0 * (query @ pool.T)
            numbers = np.broadcast_to(begin + np.arange(len(images)), own.shape)
            best, least = np.concatenate([best, numbers], 1), np.concatenate([least, own], 1)
            if count == 1:
                order = least.argmin(axis=1)[:, None]
            else:
                order = np.argsort(least, axis=1, kind="stable")[:, :count]
            best, least = np.take_along_axis(best, order, 1), np.take_along_axis(least, order, 1)
            begin += len(images)
        found.append(Neighbours(best, least + np.sum(query**2, axis=1)[:, None]))
    return Neighbours(*(np.concatenate(values) for values in zip(*found, strict=True)))


def chunks(video: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array of images in chunks that stay small in float64."""
    size = max(1, min(_CHUNK, _CHUNK_BYTES // (8 * video[0].size))) if len(video) else 1
    for begin in range(0, len(video), size):
        yield video[begin : begin + size]


def frames_at(videos: Sequence[np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """Return the images of numbers that count across the arrays of `videos`."""
    ends = np.cumsum([len(video) for video in videos])
    owners = np.searchsorted(ends, numbers, side="right")
    return np.stack([videos[owner][number - ends[owner]] for owner, number in zip(owners, numbers)])


@dataclasses.dataclass(frozen=True)
class Blend:
    """The mean of the `count` nearest images, weighted by exp(-d / (2 width s)).

    d is an image's squared distance beyond that of the nearest one. The scale s is the mean squared distance
    of a training label to the nearest one in other parts of its scene, so that width has no unit.
    """

    count: int
    width: float
    scale: float

    def predict(self, found: Neighbours, videos: Sequence[np.ndarray]) -> np.ndarray:
        """Return the blended images, float32 in [0, 1] (n, H, W, 3); `found` has at least `count` of each."""
        weights = self.weights(found.distance[:, : self.count])
        blended = [
            np.tensordot(own, to_unit(frames_at(videos, numbers)), 1)
            for own, numbers in zip(weights, found.number[:, : self.count], strict=True)
        ]
        return np.stack(blended)

    def weights(self, distance: np.ndarray) -> np.ndarray:
        """Return the weights float32 (n, k) of neighbours at these distances (n, k)."""
        beyond = distance - distance[:, :1]
        weights = np.exp(-beyond / (2 * self.width * max(self.scale, 1.0)))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    @property
    def definition(self) -> str:
        """What it was chosen to be."""
        return f"k = {self.count}, width {self.width:g}"


def choose_blend(recordings: Sequence[Recording]) -> Blend:
    """Return the blend with the least mean squared error on the training frames of a scene.

    Each of PARTS stretches of the scene's frames is predicted from the labels and frames of the others:
    neighbours in time would be nearly the same image.
    """
    parts = _stretches(recordings)
    errors: dict[tuple[int, float], float] = {}
    nearest_distances, cases = [], []
    for number, (frames, labels) in enumerate(parts):
        others = [part for k, part in enumerate(parts) if k != number] or [(frames, labels)]
        share = max(1, QUERIES // len(parts))
        tried = np.unique(np.linspace(0, len(frames) - 1, share).round().astype(int))
        found = nearest(labels[tried], [own for _, own in others], max(COUNTS))
        nearest_distances.append(found.distance[:, 0])
        cases.append((found, [own for own, _ in others], frames[tried]))
    scale = float(np.mean(np.concatenate(nearest_distances)))
    for found, videos, targets in cases:
        for numbers, distance, target in zip(*found, targets, strict=True):
            images = to_unit(frames_at(videos, numbers)).reshape(len(numbers), -1)
            wanted = to_unit(target).ravel()
            for count, width in itertools.product(COUNTS, WIDTHS):
                weights = Blend(count, width, scale).weights(distance[None, :count])[0]
                error = np.mean((weights @ images[:count] - wanted) ** 2)
                errors[count, width] = errors.get((count, width), 0.0) + float(error)
    count, width = min(errors, key=lambda choice: errors[choice])
    return Blend(count, width, scale)


def _stretches(recordings: Sequence[Recording]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the (frames, labels) of the scene in PARTS stretches, fewer if it has fewer frames."""
    total = sum(len(r.frames) for r in recordings)
    length = max(1, -(-total // PARTS))
    cut = []
    for recording in recordings:
        for begin in range(0, len(recording.frames), length):
            part = slice(begin, begin + length)
            cut.append((recording.frames[part], recording.labels[part]))
    return cut
