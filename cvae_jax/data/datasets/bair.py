"""BAIR robot pushing, small (Ebert et al., 2017): a robot arm pushes things about; 30 frames of 64 x 64.

Read from what TFDS prepared as `bair_robot_pushing_small`. The label of frame t is the action that led to
it, that of time t - 1, in standard deviations from the training actions' mean; frame 0 has zeros.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from cvae_jax.data.brought import (
    FRAME_SIZE,
    content_key,
    find_tfds,
    open_tfds,
    require_folder,
    require_size,
)
from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.data.contents import Contents
from cvae_jax.data.dataset import DataSet, require_at_least, require_choice
from cvae_jax.data.store import load_prepared
from cvae_jax.runtime.errors import UserError

NAME = "bair"
TFDS_NAME = "bair_robot_pushing_small"
FORMAT = "1"  # goes up when the same files would be prepared differently
ACTION_SIZE = 4
LABELS = ("action", "none")
EXPECTED = f"what `tfds build {TFDS_NAME}` made (30 GB to download)"


@dataclasses.dataclass(frozen=True)
class Options:
    """The section `config.data.bair`."""

    labels: str = "action"  # action (of the arm, as a vector), or none
    train_sequences: int | None = None  # None = all (16 GB in memory)
    validation_sequences: int = 256  # taken from the end of the training ones

    def __post_init__(self) -> None:
        require_choice(NAME, self, labels=LABELS)
        require_at_least(NAME, self, train_sequences=1, validation_sequences=1)

    @property
    def label_size(self) -> int:
        """The length of a label."""
        return ACTION_SIZE if self.labels == "action" else 0


def read_recordings(source: pathlib.Path, options: Options, split: str) -> Iterator[Recording]:
    """Yield one recording per sequence; validation sequences are the last of the training ones."""
    count = count_sequences(source)
    validation = count - options.validation_sequences
    train = validation if options.train_sequences is None else options.train_sequences
    parts = {"train": f"train[:{train}]", "validation": f"train[{validation}:]", "test": "test"}
    examples = _read(source, parts[split], "image_main", "action")
    scale = measure_actions(source) if options.labels == "action" else None
    title = f"Reading BAIR ({split})"
    bar = tqdm(examples, total=len(examples), desc=title, unit="clip", file=sys.stderr, leave=False)
    for index, example in enumerate(bar):
        frames = np.asarray(example["image_main"], np.uint8)
        labels = no_labels(len(frames))
        if scale is not None:
            mean, deviation = scale
            labels = led_here((example["action"] - mean) / deviation)
        yield Recording(NAME, f"{split}_{index:05d}", 0, frames, labels)


def count_sequences(source: pathlib.Path) -> int:
    """Return how many training sequences a folder of TFDS has, validation included."""
    return open_tfds(source).info.splits["train"].num_examples


def measure_actions(source: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the training actions' mean and standard deviation (1 where it is 0), float64 (4,)."""
    known = np.concatenate([example["action"] for example in _read(source, "train", "action")])
    deviation = known.std(axis=0, dtype=np.float64)
    return known.mean(axis=0, dtype=np.float64), np.where(deviation > 0, deviation, 1.0)


def _read(source: pathlib.Path, split: str, *fields: str) -> Any:
    import tensorflow_datasets as tfds

    decoding = tfds.decode.PartialDecoding(dict.fromkeys(fields, True))
    data = open_tfds(source).as_dataset(split=split, shuffle_files=False, decoders=decoding)
    return tfds.as_numpy(data)


def led_here(actions: np.ndarray) -> np.ndarray:
    """Return the action before each frame, float32 (T, A): that of time t - 1, and zeros for frame 0."""
    return np.concatenate([np.zeros((1, actions.shape[1])), actions[:-1]]).astype(np.float32)


def load(
    *, data_dir: str | None, cache_dir: str, frame_size: tuple[int, int] | None, options: Options
) -> dict[str, list[Recording]]:
    """Return the sequences of the main camera: training, validation (the last training ones) and test.

    Raises UserError where the data are missing or cannot be read, for more sequences than there are, and
    where cache_dir cannot be written.
    """
    require_size(NAME, frame_size)
    root = require_folder(NAME, data_dir, EXPECTED)
    source = find_tfds(root, TFDS_NAME)
    if source is None:
        raise UserError(f"{root} does not hold {EXPECTED}: correct --config.data.dir.")
    count = count_sequences(source)
    train, validation = options.train_sequences, options.validation_sequences
    if validation + (train or 1) > count:
        raise UserError(
            f"config.data.bair asks for {train or 'all'} training and {validation} validation sequences and "
            f"{source} has {count} of both together: lower one of them."
        )
    contents = Contents(
        name=NAME,
        description="BAIR robot pushing, small, with actions for labels.",
        frame_size=FRAME_SIZE,
        label_size=options.label_size,
        splits=("train", "validation", "test"),
        records=functools.partial(read_recordings, source, options),
    )
    files = [path for path in source.iterdir() if path.is_file()]
    key = content_key(files, source, FORMAT, options.labels, train, validation)
    return load_prepared(cache_dir, key, contents)


DATA_SET = DataSet(
    load=load,
    options=Options,
    default_frame_size=lambda data_dir: FRAME_SIZE,
    label_size=lambda options: options.label_size,
)
