"""What videos are predicted from, and what they are compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cvae_jax.data.clips import Recording, extend

TRUTH = ("videos", "labels")  # what a measure is given of each prompt


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a video is predicted from.

    Attributes:
      name: for files and messages.
      given: the context frames, uint8 (n_past, H, W, 3).
      labels: one per frame of the video, uint8 (T, H, W, 3) or float32 (T, A).
      index: the clip's number, which addresses its noise.
      frames: the true video, uint8 (T, H, W, 3); None where there is none.
    """

    name: str
    given: np.ndarray
    labels: np.ndarray
    index: int = 0
    frames: np.ndarray | None = None

    @classmethod
    def of(cls, recording: Recording, n_past: int, index: int, scored: bool = False) -> Prompt:
        """Return what a recording's own video is predicted from; scored: its frames are compared with."""
        frames = recording.frames
        return cls(recording.name, frames[:n_past], recording.labels, index, frames if scored else None)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.given.shape[1:3]

    @property
    def label_size(self) -> int | None:
        """The length of labels that are vectors; None: they are images."""
        return None if self.labels.ndim == 4 else self.labels.shape[1]


def parts(rows: list, count: int) -> list[list]:
    """Return the rows of each of `count` devices."""
    size = len(rows) // count
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def truth(
    prompts: Sequence[Prompt], rows: list[int], count: int, most: int, length: int
) -> dict[str, np.ndarray]:
    """Return the videos and labels of the prompts of some rows, and to which of them each row belongs.

    count: of the devices, each of which is given `most` prompts. length: that videos are extended to.
    """
    videos, labels, owners = [], [], []
    for part in parts(rows, count):
        own = list(dict.fromkeys(part))
        owners += [own.index(p) for p in part]
        for p in [*own, *[own[0]] * (most - len(own))]:
            videos.append(extend(true_frames(prompts[p]), length))
            labels.append(extend(prompts[p].labels, length))
    found = {"videos": np.stack(videos), "labels": np.stack(labels)}
    return {f"true_{name}": found[name] for name in TRUTH} | {"owner": np.array(owners, np.int32)}


def true_frames(prompt: Prompt) -> np.ndarray:
    """Return a prompt's true video; ValueError where it has none."""
    if prompt.frames is None:
        raise ValueError("posterior and scores need the frames to predict; give prompts with their frames.")
    return prompt.frames
