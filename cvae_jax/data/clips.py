"""Recordings: uninterrupted stretches of video with their labels, held in memory."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Recording:
    """An uninterrupted stretch of one scene's video and its labels.

    scene: what the camera looks at; recordings of one scene share background and person.
    name: names this stretch, unique within its split.
    start: index of its first frame in the source clip.
    frames: uint8 (T, H, W, 3).
    labels: what belongs to each frame: an image, uint8 (T, H, W, 3); or a vector, float32 (T, A), in the
      data set's own units (the action that led to the frame, say). (T, 0) means that there are no labels.
    """

    scene: str
    name: str
    start: int
    frames: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        frames, labels = self.frames, self.labels
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}")
        vectors = labels.dtype == np.float32 and labels.ndim == 2
        if not vectors and (labels.dtype != np.uint8 or labels.ndim != 4 or labels.shape[-1] != 3):
            raise ValueError(
                f"labels must be uint8 (T, H, W, 3) or float32 (T, A), got {labels.dtype} {labels.shape}"
            )
        fits = labels.shape[:1] == frames.shape[:1] if vectors else labels.shape == frames.shape
        if not fits:
            raise ValueError(f"frames {frames.shape} and labels {labels.shape} differ in shape")
        if vectors and not np.isfinite(labels).all():
            raise ValueError("labels must be finite")

    @property
    def image_labels(self) -> bool:
        """Whether labels are images, and can be shown."""
        return self.labels.ndim == 4

    @property
    def label_size(self) -> int | None:
        """The length of a label that is a vector; None: labels are images."""
        return None if self.image_labels else self.labels.shape[1]


def no_labels(length: int) -> np.ndarray:
    """Return the labels of `length` frames that have none."""
    return np.zeros((length, 0), np.float32)


def span(clip_length: int, frame_step: int) -> int:
    """Return how many frames of a recording a clip of every `frame_step`-th frame covers."""
    return (clip_length - 1) * frame_step + 1


def windows(lengths: list[int], clip_length: int, stride: int, frame_step: int = 1) -> np.ndarray:
    """Return int (n, 2): (recording, first frame) of every clip that fits, `stride` frames apart.

    A clip takes every `frame_step`-th frame. It never straddles two recordings; frames that do not fill a
    clip at the end are left out.
    """
    covered = span(clip_length, frame_step)
    starts = [
        (recording, start)
        for recording, length in enumerate(lengths)
        for start in range(0, length - covered + 1, stride)
    ]
    return np.array(starts, dtype=np.int64).reshape(-1, 2)


def extend(video: np.ndarray, length: int) -> np.ndarray:
    """Return video or labels (T, ...) with the last one repeated up to `length` of them."""
    return np.concatenate([video, np.repeat(video[-1:], length - len(video), axis=0)])


def to_unit(video: np.ndarray) -> np.ndarray:
    """Return uint8 video as float32 in [0, 1]."""
    return video.astype(np.float32) / 255


def data_hash(recordings: list[Recording]) -> str:
    """Return a short hash of the recordings' names, pixels and labels."""
    digest = hashlib.blake2b(digest_size=8)
    for recording in recordings:
        digest.update(recording.name.encode())
        digest.update(np.ascontiguousarray(recording.frames).data)
        digest.update(np.ascontiguousarray(recording.labels).data)
    return digest.hexdigest()
