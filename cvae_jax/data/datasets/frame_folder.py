"""Folders of PNG frames and label images in the layout of the dance set.

train/train_img/*.png  train/train_label/*.png  val/val_img/*.png  val/val_label/*.png

A file's place in its folder is the number left in its name after taking out "frame". Each test sequence has
numbered folders: test/test_img/0/*.png, where only the first frames are used, and test/test_label/0/*.png.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cvae_jax.data.clips import Recording
from cvae_jax.data.contents import RECORD_FRAMES, Contents
from cvae_jax.data.dataset import DataSet, TestSequence
from cvae_jax.data.images import FilePool, find_numbered, image_size, list_folder, read_folder, read_image
from cvae_jax.data.store import load_prepared
from cvae_jax.runtime.errors import UserError

DEFAULT_FRAME_SIZE = (32, 64)
SCENE = "dance"
# Split: (name of the recording, folder of the frames, folder of the labels).
FOLDERS = {
    "train": ("train", "train/train_img", "train/train_label"),
    "validation": ("val", "val/val_img", "val/val_label"),
}
LAYOUT = ", ".join(folder for _, *folders in FOLDERS.values() for folder in folders)
FORMAT = "1"  # goes up when the same files would be prepared differently
TEST_FRAMES, TEST_LABELS = "test/test_img", "test/test_label"  # each with a numbered folder per sequence


class Pair(NamedTuple):
    """One frame's file and its label's."""

    frame: pathlib.Path
    label: pathlib.Path


def read_pairs(pairs: dict[str, list[Pair]], frame_size: tuple[int, int], split: str) -> Iterator[Recording]:
    """Yield the one recording of a split, in pieces, resized (bilinear, antialiased)."""
    own = pairs[split]
    name, *_ = FOLDERS[split]
    first = {path.parent: path for path in own[0]}
    sizes = {folder: image_size(path) for folder, path in first.items()}

    def read(path: pathlib.Path) -> np.ndarray:
        image, size = read_image(path, frame_size)
        if size != sizes[path.parent]:
            width, height = sizes[path.parent]
            raise UserError(
                f"{path} is {size[0]} x {size[1]} pixels, while {first[path.parent].name} "
                f"beside it is {width} x {height}: give all images of a folder the same size."
            )
        return image

    with FilePool(2 * len(own), f"Decoding {name}") as pool:
        for start in range(0, len(own), RECORD_FRAMES):
            part = own[start : start + RECORD_FRAMES]
            yield Recording(
                scene=SCENE,
                name=name,
                start=start,
                frames=np.stack(pool.map(read, [pair.frame for pair in part])),
                labels=np.stack(pool.map(read, [pair.label for pair in part])),
            )


def load(
    *, data_dir: str | None, cache_dir: str, frame_size: tuple[int, int] | None, options: None = None
) -> dict[str, list[Recording]]:
    """Return the frames and labels under data_dir, resized to frame_size (H, W) (None: (32, 64)).

    The images are decoded once; after that the same content is read from cache_dir. Raises
    UserError for whatever is wrong with the folder, and where cache_dir cannot be written.
    """
    size = DEFAULT_FRAME_SIZE if frame_size is None else frame_size
    pairs = find_pairs(data_dir)
    assert data_dir is not None, "refused by find_pairs"
    key = _content_key(pathlib.Path(data_dir), pairs, size)
    contents = Contents(
        name="frame_folder",
        description="A folder of PNG frames and label images, resized (bilinear, antialiased).",
        frame_size=size,
        records=functools.partial(read_pairs, pairs, size),
    )
    return load_prepared(cache_dir, key, contents)


def find_pairs(data_dir: str | None) -> dict[str, list[Pair]]:
    """Each split's files in the order of their numbers; UserError where the layout is wrong."""
    expected = f"expected are {LAYOUT}, with one label per frame"
    if not data_dir:
        raise UserError(
            "The data set frame_folder needs a folder and none was given: add "
            f"--config.data.dir=FOLDER ({expected})."
        )
    root = pathlib.Path(data_dir)
    if not root.exists():
        raise UserError(f"The data folder {root} does not exist: correct --config.data.dir.")
    if not root.is_dir():
        raise UserError(
            f"The data folder {root} is a file: give the folder that holds train and val with "
            "--config.data.dir."
        )
    pairs = {}
    for split in FOLDERS:
        _, frame_folder, label_folder = FOLDERS[split]
        for folder in (frame_folder, label_folder):
            if not (root / folder).is_dir():
                raise UserError(f"The data folder {root} lacks the sub-folder {folder}: {expected}.")
        frames, labels = find_numbered(root / frame_folder), find_numbered(root / label_folder)
        for number in sorted(frames.keys() ^ labels.keys()):
            if number in frames:
                path, other, missing = frames[number], root / label_folder, "label"
            else:
                path, other, missing = labels[number], root / frame_folder, "frame"
            raise UserError(
                f"{path} has no {missing}: add the {missing} with number {number} to {other}, or "
                "remove the file."
            )
        pairs[split] = [Pair(frames[number], labels[number]) for number in sorted(frames)]
    return pairs


def _content_key(root: pathlib.Path, pairs: dict[str, list[Pair]], frame_size: tuple[int, int]) -> str:
    """A name for the files' content and names, whatever folder they lie in, and the frame size."""

    def hash_file(path: pathlib.Path) -> bytes:
        try:
            return hashlib.blake2b(path.read_bytes()).digest()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): make the file readable.") from error

    paths = [path for split in FOLDERS for pair in pairs[split] for path in pair]
    digest = hashlib.blake2b(f"{FORMAT} {frame_size}".encode(), digest_size=16)
    with FilePool(len(paths), "Checking files") as pool:
        for path, content in zip(paths, pool.map(hash_file, paths)):
            digest.update(os.fsencode(path.relative_to(root).as_posix()) + b"\0" + content)
    return digest.hexdigest()


def read_test_sequences(data_dir: str | None, frame_size: tuple[int, int], n_past: int) -> list[TestSequence]:
    """Return the test sequences under data_dir, in the order of their numbers, at frame_size (H, W).

    The first n_past frames of each are read, and all of its labels. Raises UserError where the folders are
    not there or do not fit each other.
    """
    if not data_dir:
        raise UserError(
            f"--csv needs the folder that holds {TEST_FRAMES} and {TEST_LABELS}: add "
            "--config.data.dir=FOLDER."
        )
    sequences = {kind: _find_sequences(pathlib.Path(data_dir) / kind) for kind in (TEST_FRAMES, TEST_LABELS)}
    for number in sorted(sequences[TEST_FRAMES].keys() ^ sequences[TEST_LABELS].keys()):
        lacking = TEST_LABELS if number in sequences[TEST_FRAMES] else TEST_FRAMES
        raise UserError(
            f"{pathlib.Path(data_dir) / lacking} lacks the sequence {number}: add or remove it in both."
        )
    given = {n: list_folder(f)[:n_past] for n, f in sorted(sequences[TEST_FRAMES].items())}
    for number, paths in given.items():
        if len(paths) < n_past:
            raise UserError(
                f"{sequences[TEST_FRAMES][number]} holds {len(paths)} frames and config.n_past={n_past} are "
                "given to the model: add the missing ones."
            )
    return [
        TestSequence(
            name=str(number),
            given=np.stack([read_image(path, frame_size)[0] for path in paths]),
            labels=read_folder(sequences[TEST_LABELS][number], frame_size),
        )
        for number, paths in given.items()
    ]


def _find_sequences(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Return the folder's numbered sub-folders."""
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}: --csv needs a folder per sequence (0, 1, ...) in {TEST_FRAMES} "
            f"and {TEST_LABELS} of --config.data.dir."
        )
    found: dict[int, pathlib.Path] = {}
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


DATA_SET = DataSet(
    load=load,
    image_labels=True,
    default_frame_size=lambda data_dir: DEFAULT_FRAME_SIZE,
    read_test_sequences=read_test_sequences,
)
