"""What a prepared folder of recordings is to hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from cvae_jax.data.clips import Recording

RECORD_FRAMES = 512
SPLITS = ("train", "validation", "test")  # all that a data set can have, in this order


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is written into a prepared folder.

    Attributes:
      name: of the data set, in lower case with underscores; the files are named after it.
      description: one sentence for the folder's information file.
      records: a function that yields the recordings of a split, those of more than RECORD_FRAMES frames in
        consecutive pieces of at most so many.
      frame_size: (H, W) of the frames, and of the labels where they are images.
      label_size: entries of a label that is a vector (0: there are no labels); None: labels are images.
      splits: which of SPLITS there are.
      license: the name of the licence, or None.
    """

    name: str
    description: str
    records: Callable[[str], Iterator[Recording]]
    frame_size: tuple[int, int]
    label_size: int | None = None
    splits: tuple[str, ...] = ("train", "validation")
    license: str | None = None
