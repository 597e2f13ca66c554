"""The Moving MNIST test set (Srivastava et al., 2015): 10,000 sequences of 20 frames, two bouncing digits."""

from __future__ import annotations

import functools
import os
import pathlib
import sys
from collections.abc import Iterator

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
from cvae_jax.data.dataset import DataSet
from cvae_jax.data.store import load_prepared
from cvae_jax.runtime.errors import UserError

NAME = "moving_mnist"
FORMAT = "1"  # goes up when the same files would be prepared differently
FILE = "mnist_test_seq.npy"
FRAMES = 20
SPLIT_AT = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}  # shares of the sequences
EXPECTED = f"{FILE} (http://www.cs.toronto.edu/~nitish/unsupervised_video/), or what TFDS made of it"


def read_recordings(source: pathlib.Path, split: str) -> Iterator[Recording]:
    """Yield one recording per sequence, in the order of the file."""
    count, videos = read_videos(source)
    start, stop = (round(share * count) for share in SPLIT_AT[split])
    bar = tqdm(total=stop, desc=f"Reading {NAME} ({split})", unit="clip", file=sys.stderr, leave=False)
    with bar:
        for index, video in enumerate(videos):
            if index >= stop:
                break
            bar.update()
            if index >= start:
                frames = np.repeat(video[..., None], 3, axis=-1)
                yield Recording(NAME, f"{index:05d}", 0, frames, no_labels(len(frames)))


def read_videos(source: pathlib.Path) -> tuple[int, Iterator[np.ndarray]]:
    """Return how many sequences there are, and them, uint8 (20, 64, 64); UserError for a wrong file."""
    if source.is_dir():
        import tensorflow_datasets as tfds

        builder = open_tfds(source)
        (split,) = builder.info.splits.values()
        examples = tfds.as_numpy(builder.as_dataset(split=split.name, shuffle_files=False))
        return split.num_examples, (example["image_sequence"][..., 0] for example in examples)
    try:
        videos = np.load(source, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy reads the header as a Python expression
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{source} cannot be read ({reason}): get the file again.") from error
    if videos.ndim != 4 or videos.shape[0] != FRAMES or videos.shape[2:] != FRAME_SIZE:
        raise UserError(
            f"{source} has the shape {videos.shape}, not ({FRAMES}, sequences, 64, 64): get the file again."
        )
    return videos.shape[1], (np.asarray(videos[:, i], np.uint8) for i in range(videos.shape[1]))


def load(
    *, data_dir: str | None, cache_dir: str, frame_size: tuple[int, int] | None, options: None = None
) -> dict[str, list[Recording]]:
    """Return the sequences, split by number: 80 % train, 10 % validation, 10 % test.

    Raises UserError where the file is missing or damaged, and where cache_dir cannot be written.
    """
    require_size(NAME, frame_size)
    root = require_folder(NAME, data_dir, EXPECTED)
    source = root / FILE if (root / FILE).is_file() else find_tfds(root, NAME)
    if source is None:
        raise UserError(f"{root} does not hold {EXPECTED}: correct --config.data.dir.")
    files = [source] if source.is_file() else [p for p in source.iterdir() if p.is_file()]
    contents = Contents(
        name=NAME,
        description="The Moving MNIST test set, 64 x 64, without labels.",
        frame_size=FRAME_SIZE,
        label_size=0,
        splits=tuple(SPLIT_AT),
        records=functools.partial(read_recordings, source),
    )
    key = content_key(files, pathlib.Path(os.path.commonpath([root, source])), FORMAT)
    return load_prepared(cache_dir, key, contents)


DATA_SET = DataSet(load=load, default_frame_size=lambda data_dir: FRAME_SIZE, label_size=lambda options: 0)
