"""The lab's submission: every frame of the test sequences as a row of a CSV file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from cvae_jax.data import datasets
from cvae_jax.data.load import load_data
from cvae_jax.rollout.chunks import Prompt
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import replacing


def read_prompts(config: ConfigDict, frame_size: tuple[int, int]) -> list[Prompt]:
    """Return the test sequences of the run's data set, in order, images at frame_size (H, W).

    They are what the data set's `read_test_sequences` returns, or the recordings of its split 'test'. Raises
    UserError where there are none.
    """
    read = datasets.find(config.data.name).read_test_sequences
    if read is not None:
        found = read(config.data.dir, frame_size, config.n_past)
        return [Prompt(one.name, one.given, one.labels, index) for index, one in enumerate(found)]
    recordings = load_data(config.data, config.n_past).get("test")
    if not recordings:
        others = [name for name in datasets.names() if datasets.find(name).read_test_sequences]
        raise UserError(
            f"--csv needs test sequences and the data set {config.data.name} has none; "
            f"give --config.data.name={' or '.join(others)} with --config.data.dir=FOLDER."
        )
    return [Prompt.of(r, config.n_past, i) for i, r in enumerate(recordings)]


def write_csv(path: Path, videos: Sequence[np.ndarray]) -> None:
    """Write videos uint8 (T, H, W, 3) as rows of integers, the frames of one video after the other.

    The columns are id, counted from 0 over all frames, and 0 .. 3 H W - 1: the frame in the order channel,
    row, column. The file appears whole or not at all.
    """
    values = videos[0][0].size
    rows = (frame for video in videos for frame in video)
    bar = tqdm(rows, total=sum(map(len, videos)), desc=f"Writing {path.name}", unit="row", file=sys.stderr)
    with replacing(path) as partial, partial.open("w", encoding="ascii") as file:
        file.write(",".join(["id", *map(str, range(values))]) + "\n")
        for number, frame in enumerate(bar):
            row = frame.transpose(2, 0, 1).ravel().tolist()
            file.write(",".join(map(str, [number, *row])) + "\n")
