"""BAIR robot pushing, small (Ebert et al., 2017): a robot arm pushes things about; 30 frames of 64 x 64.

Read from what TFDS prepared as `bair_robot_pushing_small`. The label of frame t is the action that led to
it, that of time t - 1, in standard deviations from the training actions' mean; frame 0 has zeros.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.data.datasets.brought import (
    FRAME_SIZE,
    content_key,
    find_tfds,
    open_tfds,
    require_folder,
    require_size,
)
from cvae_jax.data.datasets.store import RecordingsBuilder, load_prepared
from cvae_jax.errors import UserError

NAME = "bair"
TFDS_NAME = "bair_robot_pushing_small"
FORMAT = "1"  # goes up when the same files would be prepared differently
ACTION_SIZE = 4
LABELS = ("action", "none")
EXPECTED = f"what `tfds build {TFDS_NAME}` made (30 GB to download)"


class Bair(RecordingsBuilder):
    """BAIR robot pushing, small, with actions for labels."""

    splits = ("train", "validation", "test")

    def __init__(
        self, *, source: pathlib.Path, label_size: int, train: int | None, validation: int, **keywords: Any
    ) -> None:
        self.source, self.label_size = source, label_size
        self.train, self.validation = train, validation
        self._scale: tuple[np.ndarray, np.ndarray] | None = None
        super().__init__(frame_size=FRAME_SIZE, **keywords)

    def records(self, split: str) -> Iterator[Recording]:
        """One recording per sequence; validation sequences are the last of the training ones."""
        count = self._source().info.splits["train"].num_examples
        train = count - self.validation if self.train is None else self.train
        parts = {
            "train": f"train[:{train}]",
            "validation": f"train[{count - self.validation}:]",
            "test": "test",
        }
        examples = self._read(parts[split], {"image_main": True, "action": True})
        title = f"Reading BAIR ({split})"
        bar = tqdm(examples, total=len(examples), desc=title, unit="clip", file=sys.stderr, leave=False)
        for index, example in enumerate(bar):
            frames = np.asarray(example["image_main"], np.uint8)
            yield Recording(NAME, f"{split}_{index:05d}", 0, frames, self._labels(example["action"]))

    def _labels(self, actions: np.ndarray) -> np.ndarray:
        if not self.label_size:
            return no_labels(len(actions))
        if self._scale is None:
            known = np.concatenate([e["action"] for e in self._read("train", {"action": True})])
            deviation = known.std(axis=0, dtype=np.float64)
            self._scale = known.mean(axis=0, dtype=np.float64), np.where(deviation > 0, deviation, 1.0)
        mean, deviation = self._scale
        return led_here((actions - mean) / deviation)

    def _source(self) -> tfds.core.DatasetBuilder:
        return open_tfds(self.source)

    def _read(self, split: str, wanted: dict[str, bool]) -> Any:
        data = self._source().as_dataset(
            split=split, shuffle_files=False, decoders=tfds.decode.PartialDecoding(wanted)
        )
        return tfds.as_numpy(data)


def led_here(actions: np.ndarray) -> np.ndarray:
    """Return the action before each frame, float32 (T, A): that of time t - 1, and zeros for frame 0."""
    return np.concatenate([np.zeros((1, actions.shape[1])), actions[:-1]]).astype(np.float32)


def load(
    *,
    data_dir: str | None,
    cache_dir: str,
    frame_size: tuple[int, int] | None,
    labels: str,
    train_sequences: int | None,
    validation_sequences: int,
) -> dict[str, list[Recording]]:
    """The sequences of the main camera: training, validation (the last training ones) and test.

    labels: 'action' or 'none'. train_sequences: how many of them, None for all (16 GB in memory). Raises
    UserError where the data are missing or cannot be read, for more sequences than there are, and where
    cache_dir cannot be written.
    """
    if labels not in LABELS:
        raise UserError(f"config.data.bair.labels is {labels!r}; choose one of {', '.join(LABELS)}.")
    require_size(NAME, frame_size)
    root = require_folder(NAME, data_dir, EXPECTED)
    source = find_tfds(root, TFDS_NAME)
    if source is None:
        raise UserError(f"{root} does not hold {EXPECTED}: correct --config.data.dir.")
    count = open_tfds(source).info.splits["train"].num_examples
    if validation_sequences + (train_sequences or 1) > count:
        raise UserError(
            f"config.data.bair asks for {train_sequences or 'all'} training and {validation_sequences} "
            f"validation sequences and {source} has {count} of both together: lower one of them."
        )
    files = [path for path in source.iterdir() if path.is_file()]
    key = content_key(files, source, FORMAT, labels, train_sequences, validation_sequences)
    return load_prepared(
        pathlib.Path(cache_dir) / NAME / key,
        lambda folder: Bair(
            source=source,
            label_size=ACTION_SIZE if labels == "action" else 0,
            train=train_sequences,
            validation=validation_sequences,
            data_dir=folder,
        ),
    )
