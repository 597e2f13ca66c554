"""The lab's submission: every frame of the test sequences as a row of a CSV file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from cvae_jax.data.datasets import frame_folder
from cvae_jax.errors import UserError
from cvae_jax.files import replacing
from cvae_jax.sampling import Prompt
from cvae_jax.train import load_data

FRAMES, LABELS = "test/test_img", "test/test_label"  # each with a numbered folder per sequence


def read_prompts(config: ConfigDict, frame_size: tuple[int, int]) -> list[Prompt]:
    """Return the test sequences of the run's data set, in order, images at frame_size (H, W).

    A frame_folder has them as numbered folders in test/test_img (the first frame is used) and
    test/test_label; another data set as recordings of its split 'test'. Raises UserError where they are not
    there or do not fit each other.
    """
    if config.data.name == "frame_folder":
        return _read_folders(config.data.dir, frame_size, config.n_past)
    recordings = load_data(config).get("test")
    if not recordings:
        raise UserError(
            f"--csv needs test sequences and the data set {config.data.name} has none; "
            "give --config.data.name=frame_folder with --config.data.dir=FOLDER."
        )
    return [Prompt.of(r, config.n_past, i) for i, r in enumerate(recordings)]


def _read_folders(data_dir: str | None, size: tuple[int, int], n_past: int) -> list[Prompt]:
    if not data_dir:
        raise UserError(
            f"--csv needs the folder that holds {FRAMES} and {LABELS}: add --config.data.dir=FOLDER."
        )
    sequences = {kind: _sequences(Path(data_dir) / kind) for kind in (FRAMES, LABELS)}
    for number in sorted(sequences[FRAMES].keys() ^ sequences[LABELS].keys()):
        lacking = LABELS if number in sequences[FRAMES] else FRAMES
        raise UserError(f"{Path(data_dir) / lacking} lacks the sequence {number}: add or remove it in both.")
    given = {n: frame_folder.list_folder(f)[:n_past] for n, f in sorted(sequences[FRAMES].items())}
    for number, paths in given.items():
        if len(paths) < n_past:
            raise UserError(
                f"{sequences[FRAMES][number]} holds {len(paths)} frames and config.n_past={n_past} are given "
                "to the model: add the missing ones."
            )
    return [
        Prompt(
            name=str(number),
            given=np.stack([frame_folder.read_image(path, size)[0] for path in paths]),
            labels=frame_folder.read_folder(sequences[LABELS][number], size),
            index=index,
        )
        for index, (number, paths) in enumerate(given.items())
    ]


def _sequences(folder: Path) -> dict[int, Path]:
    """Return the folder's numbered sub-folders."""
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}: --csv needs a folder per sequence (0, 1, ...) in {FRAMES} and "
            f"{LABELS} of --config.data.dir."
        )
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if not (path.is_dir() and path.name.isdecimal()):
            continue
        number = int(path.name)
        if number in found:
            raise UserError(
                f"{found[number]} and {path.name} beside it have the same number {number}: rename or "
                "remove one."
            )
        found[number] = path
    if not found:
        raise UserError(f"{folder} has no folders named by numbers: add one per sequence (0, 1, ...).")
    return found


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
