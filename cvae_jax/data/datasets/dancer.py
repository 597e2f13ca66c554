"""A procedural dancer before a still studio, made on first use: any length, any frame size, any seed."""

from __future__ import annotations

import hashlib
import itertools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from cvae_jax.data.clips import Recording
from cvae_jax.data.dancer.scene import Scene
from cvae_jax.data.dancer.workers import Job, render_all
from cvae_jax.data.datasets.store import RECORD_FRAMES, RecordingsBuilder, load_prepared
from cvae_jax.errors import UserError

DEFAULT_FRAME_SIZE = (32, 64)
SCENE = "dancer"
FORMAT = "4"  # goes up when the same options would give other pixels
JOB_FRAMES = 64  # painted by one process at a time; divides RECORD_FRAMES


class Dancer(RecordingsBuilder):
    """One procedural dancer before a still studio, with pose labels."""

    def __init__(
        self, *, seed: int, lengths: dict[str, list[int]], frame_size: tuple[int, int], **keywords: Any
    ) -> None:
        self.scene = Scene(seed, frame_size)
        self.lengths = lengths
        self.splits = tuple(lengths)
        super().__init__(frame_size=frame_size, **keywords)

    def records(self, split: str) -> Iterator[Recording]:
        """One recording per sequence, in pieces."""
        lengths = self.lengths[split]
        jobs = [
            Job(split, sequence, start, min(start + JOB_FRAMES, length))
            for sequence, length in enumerate(lengths)
            for start in range(0, length, JOB_FRAMES)
        ]
        title = f"Painting the dancer ({split})"
        with tqdm(total=sum(lengths), desc=title, unit="frame", file=sys.stderr, leave=False) as bar:

            def painted() -> Iterator[tuple[Job, np.ndarray]]:
                for job, pixels in zip(jobs, render_all(self.scene, jobs), strict=True):
                    bar.update(len(pixels))
                    yield job, pixels

            for (sequence, record), parts in itertools.groupby(
                painted(), lambda part: (part[0].sequence, part[0].start // RECORD_FRAMES)
            ):
                pixels = np.concatenate([pixels for _, pixels in parts])
                yield Recording(
                    scene=SCENE,
                    name=f"{split}_{sequence:03d}" if len(lengths) > 1 else split,
                    start=record * RECORD_FRAMES,
                    frames=pixels[:, 0],
                    labels=pixels[:, 1],
                )


def load(
    *,
    data_dir: str | None,
    cache_dir: str,
    frame_size: tuple[int, int] | None,
    seed: int,
    train_frames: int,
    validation_frames: int,
    test_sequences: int,
    test_frames: int,
) -> dict[str, list[Recording]]:
    """The dancer of a seed at frame_size (H, W) (None: (32, 64)), split by sequence.

    One recording of train_frames, one of validation_frames, and under 'test' test_sequences of test_frames
    each (no such key if there are none). They are painted once; after that they are read from cache_dir.
    Raises UserError for a data_dir (nothing is read), and where cache_dir cannot be written.
    """
    if data_dir:
        raise UserError(
            f"The data set dancer is made by the program and reads no folder, but {data_dir} was "
            "given: add --config.data.name=frame_folder to read that folder."
        )
    size = DEFAULT_FRAME_SIZE if frame_size is None else tuple(frame_size)
    lengths = {"train": [train_frames], "validation": [validation_frames]}
    if test_sequences:
        lengths["test"] = [test_frames] * test_sequences
    content = repr((FORMAT, size, seed, lengths))
    key = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    return load_prepared(
        pathlib.Path(cache_dir) / "dancer" / key,
        lambda folder: Dancer(seed=seed, lengths=lengths, frame_size=size, data_dir=folder),
    )
