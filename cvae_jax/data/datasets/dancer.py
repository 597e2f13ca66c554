"""A procedural dancer before a still studio, made on first use: any length, any frame size, any seed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import sys
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.data.contents import RECORD_FRAMES, Contents
from cvae_jax.data.dancer.scene import Scene
from cvae_jax.data.dancer.workers import Job, render_all
from cvae_jax.data.dataset import Ceiling, DataSet, Poses, require_at_least, require_seed
from cvae_jax.data.store import load_prepared
from cvae_jax.runtime.errors import UserError

NAME = "dancer"
DEFAULT_FRAME_SIZE = (32, 64)
FORMAT = "4"  # goes up when the same options would give other pixels
JOB_FRAMES = 64  # painted by one process at a time; divides RECORD_FRAMES
CEILING_DRAWS = 16


@dataclasses.dataclass(frozen=True)
class Options:
    """The section `config.data.dancer`; by default sizes are those of the lab's set, 30 frames a second."""

    seed: int = 0  # of person, clothes, studio and dance
    train_frames: int = 23410  # length of the one training recording
    validation_frames: int = 630  # length of the one validation sequence
    test_sequences: int = 5  # 0 = no test split
    test_frames: int = 630  # length of each test sequence

    def __post_init__(self) -> None:
        require_seed(NAME, self)
        require_at_least(NAME, self, train_frames=1, validation_frames=2, test_sequences=0, test_frames=2)

    @property
    def lengths(self) -> dict[str, list[int]]:
        """The length of each sequence, by split."""
        lengths = {"train": [self.train_frames], "validation": [self.validation_frames]}
        if self.test_sequences:
            lengths["test"] = [self.test_frames] * self.test_sequences
        return lengths


def paint(scene: Scene, lengths: dict[str, list[int]], split: str, draws: int = 0) -> Iterator[Recording]:
    """Yield the recordings of a split, one per sequence, in pieces.

    draws: instead of the frames, their means over so many draws of chance, without labels (see `ceiling`).
    """
    own = lengths[split]
    jobs = [
        Job(split, sequence, start, min(start + JOB_FRAMES, length), draws)
        for sequence, length in enumerate(own)
        for start in range(0, length, JOB_FRAMES)
    ]
    title = f"Painting the dancer ({split}{f', means of {draws} draws' if draws else ''})"
    with tqdm(total=sum(own), desc=title, unit="frame", file=sys.stderr, leave=False) as bar:

        def painted() -> Iterator[tuple[Job, np.ndarray]]:
            for job, pixels in zip(jobs, render_all(scene, jobs), strict=True):
                bar.update(len(pixels))
                yield job, pixels

        for (sequence, record), parts in itertools.groupby(
            painted(), lambda part: (part[0].sequence, part[0].start // RECORD_FRAMES)
        ):
            pixels = np.concatenate([pixels for _, pixels in parts])
            yield Recording(
                scene=NAME,
                name=f"{split}_{sequence:03d}" if len(own) > 1 else split,
                start=record * RECORD_FRAMES,
                frames=pixels[:, 0],
                labels=no_labels(len(pixels)) if draws else pixels[:, 1],
            )


def load(
    *, data_dir: str | None, cache_dir: str, frame_size: tuple[int, int] | None, options: Options
) -> dict[str, list[Recording]]:
    """Return the dancer of a seed at frame_size (H, W) (None: (32, 64)), split by sequence.

    One recording of train_frames, one of validation_frames, and under 'test' test_sequences of test_frames
    each (no such key if there are none). They are painted once; after that they are read from cache_dir.
    Raises UserError for a data_dir (nothing is read), and where cache_dir cannot be written.
    """
    if data_dir:
        raise UserError(
            f"The data set dancer is made by the program and reads no folder, but {data_dir} was "
            "given: add --config.data.name=frame_folder to read that folder."
        )
    size = DEFAULT_FRAME_SIZE if frame_size is None else frame_size
    lengths = options.lengths
    content = repr((FORMAT, size, options.seed, lengths))
    contents = Contents(
        name=NAME,
        description="One procedural dancer before a still studio, with pose labels.",
        frame_size=size,
        splits=tuple(lengths),
        records=functools.partial(paint, Scene(options.seed, size), lengths),
    )
    return load_prepared(cache_dir, _key(content), contents)


def ceiling(*, split: str, cache_dir: str, frame_size: tuple[int, int] | None, options: Options) -> Ceiling:
    """Return the mean of each frame of a split over other draws of cloth and light, painted once.

    No prediction from the labels does better in mean squared error than the mean over all draws; that over
    `CEILING_DRAWS` of them comes close to it from below.
    """
    size = DEFAULT_FRAME_SIZE if frame_size is None else frame_size
    lengths = {split: options.lengths[split]}
    content = repr(("ceiling", FORMAT, size, options.seed, lengths, CEILING_DRAWS))
    contents = Contents(
        name=f"{NAME}_ceiling",
        description=f"The dancer's frames as means over {CEILING_DRAWS} draws of cloth and light.",
        frame_size=size,
        label_size=0,
        splits=(split,),
        records=lambda split: paint(Scene(options.seed, size), lengths, split, CEILING_DRAWS),
    )
    return Ceiling(
        load_prepared(cache_dir, _key(content), contents)[split],
        f"mean of each frame over {CEILING_DRAWS} other draws of cloth and light, given the pose",
    )


def poses(*, data_dir: str | None, frame_size: tuple[int, int] | None, options: Options) -> Poses:
    """Return the keypoints of the dancer of a seed."""
    scene = Scene(options.seed, DEFAULT_FRAME_SIZE if frame_size is None else frame_size)

    def keypoints(recording: Recording) -> np.ndarray:
        split, _, sequence = recording.name.partition("_")
        frames = range(recording.start, recording.start + len(recording.frames))
        return np.stack([scene.keypoints(split, int(sequence or 0), index) for index in frames])

    return Poses(keypoints, scene.label_style)


def _key(content: str) -> str:
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


DATA_SET = DataSet(
    load=load,
    options=Options,
    image_labels=True,
    default_frame_size=lambda data_dir: DEFAULT_FRAME_SIZE,
    ceiling=ceiling,
    poses=poses,
)
