"""Folders of PNG frames and label images in the layout of the dance set.

    train/train_img/*.png  train/train_label/*.png  val/val_img/*.png  val/val_label/*.png

A file's place in its folder is the number left in its name after taking out "frame".
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from cvae_jax.data.clips import Recording
from cvae_jax.data.datasets.store import RECORD_FRAMES, RecordingsBuilder, load_prepared
from cvae_jax.errors import UserError

DEFAULT_FRAME_SIZE = (32, 64)
SCENE = "dance"
# Split: (name of the recording, folder of the frames, folder of the labels).
FOLDERS = {
    "train": ("train", "train/train_img", "train/train_label"),
    "validation": ("val", "val/val_img", "val/val_label"),
}
LAYOUT = ", ".join(folder for _, *folders in FOLDERS.values() for folder in folders)
FORMAT = "1"  # goes up when the same files would be prepared differently

Result = TypeVar("Result")


class Pair(NamedTuple):
    """One frame's file and its label's."""

    frame: pathlib.Path
    label: pathlib.Path


class FrameFolder(RecordingsBuilder):
    """A folder of PNG frames and label images, resized (bilinear, antialiased)."""

    def __init__(self, *, pairs: dict[str, list[Pair]], **keywords: Any) -> None:
        self.pairs = pairs
        super().__init__(**keywords)

    def records(self, split: str) -> Iterator[Recording]:
        """One recording per split, in pieces."""
        pairs = self.pairs[split]
        name, *_ = FOLDERS[split]
        first = {path.parent: path for path in pairs[0]}
        sizes = {folder: image_size(path) for folder, path in first.items()}

        def read(path: pathlib.Path) -> np.ndarray:
            image, size = read_image(path, self.frame_size)
            if size != sizes[path.parent]:
                width, height = sizes[path.parent]
                raise UserError(
                    f"{path} is {size[0]} x {size[1]} pixels, while {first[path.parent].name} "
                    f"beside it is {width} x {height}: give all images of a folder the same size."
                )
            return image

        with _Pool(2 * len(pairs), f"Decoding {name}") as pool:
            for start in range(0, len(pairs), RECORD_FRAMES):
                part = pairs[start : start + RECORD_FRAMES]
                yield Recording(
                    scene=SCENE,
                    name=name,
                    start=start,
                    frames=np.stack(pool.map(read, [pair.frame for pair in part])),
                    labels=np.stack(pool.map(read, [pair.label for pair in part])),
                )


def load(
    *, data_dir: str | None, cache_dir: str, frame_size: tuple[int, int] | None
) -> dict[str, list[Recording]]:
    """The frames and labels under data_dir, resized to frame_size (H, W) (None: (32, 64)).

    The images are decoded once; after that the same content is read from cache_dir. Raises
    UserError for whatever is wrong with the folder, and where cache_dir cannot be written.
    """
    size = DEFAULT_FRAME_SIZE if frame_size is None else tuple(frame_size)
    pairs = find_pairs(data_dir)
    key = _content_key(pathlib.Path(data_dir), pairs, size)
    return load_prepared(
        pathlib.Path(cache_dir) / "frame_folder" / key,
        lambda folder: FrameFolder(pairs=pairs, frame_size=size, data_dir=folder),
    )


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
        frames, labels = _numbered(root / frame_folder), _numbered(root / label_folder)
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


def _numbered(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """The folder's PNG files by number."""
    found: dict[int, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".png" or path.name.startswith("."):
            continue
        digits = path.stem.replace("frame", "")
        if not re.fullmatch("[0-9]+", digits):
            raise UserError(
                f"{path} has no number in its name: name it like frame12.png or 0012.png, since "
                "frames are ordered by number."
            )
        number = int(digits)
        if number in found:
            raise UserError(
                f"{found[number]} and {path.name} beside it have the same number {number}: rename "
                "or remove one of them."
            )
        found[number] = path
    if not found:
        raise UserError(f"{folder} holds no PNG files: put the images there, as frame0.png ...")
    return found


def read_image(path: pathlib.Path, frame_size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """One image as uint8 (H, W, 3) at frame_size (H, W), and the (width, height) of its file.

    Resized bilinearly with antialiasing. Raises UserError if the image cannot be decoded.
    """
    height, width = frame_size
    with _open_image(path) as image:
        resized = _to_rgb(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized), image.size


def image_size(path: pathlib.Path) -> tuple[int, int]:
    """The (width, height) of an image file; UserError if it is none."""
    with _open_image(path) as image:
        return image.size


def read_folder(folder: pathlib.Path, frame_size: tuple[int, int]) -> np.ndarray:
    """A folder's PNG files in the order of their numbers, uint8 (T, H, W, 3) at frame_size (H, W).

    Raises UserError where the folder is missing or empty, and for names, images or sizes that do
    not fit.
    """
    paths = list_folder(folder)
    with _Pool(len(paths), f"Decoding {folder.name}") as pool:
        read = pool.map(lambda path: read_image(path, frame_size), paths)
    for path, (_, size) in zip(paths, read):
        if size != read[0][1]:
            raise UserError(
                f"{path} is {size[0]} x {size[1]} pixels, while {paths[0].name} beside it is "
                f"{read[0][1][0]} x {read[0][1][1]}: give all images of a folder the same size."
            )
    return np.stack([image for image, _ in read])


def list_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    """A folder's PNG files in the order of their numbers; UserError if it is none or has none."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: give one that holds numbered PNG files.")
    files = _numbered(folder)
    return [files[number] for number in sorted(files)]


@contextlib.contextmanager
def _open_image(path: pathlib.Path) -> Iterator[Image.Image]:
    """Opens an image; what Pillow finds wrong with the file, here or inside, is a UserError."""
    try:
        with Image.open(path) as image:
            yield image
    # Pillow raises SyntaxError for a broken PNG chunk.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be read as an image (damaged, cut short or not a PNG): replace it "
            "with a good copy."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # a palette may hold transparency, which only RGBA takes
        image = image.convert("RGBA")
    return image.convert("RGB")


def _content_key(root: pathlib.Path, pairs: dict[str, list[Pair]], frame_size: tuple[int, int]) -> str:
    """A name for the files' content and names, whatever folder they lie in, and the frame size."""

    def hash_file(path: pathlib.Path) -> bytes:
        try:
            return hashlib.blake2b(path.read_bytes()).digest()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): make the file readable.") from error

    paths = [path for split in FOLDERS for pair in pairs[split] for path in pair]
    digest = hashlib.blake2b(f"{FORMAT} {frame_size}".encode(), digest_size=16)
    with _Pool(len(paths), "Checking files") as pool:
        for path, content in zip(paths, pool.map(hash_file, paths)):
            digest.update(os.fsencode(path.relative_to(root).as_posix()) + b"\0" + content)
    return digest.hexdigest()


class _Pool:
    """Threads that work on files behind a progress bar on standard error."""

    def __init__(self, total: int, title: str) -> None:
        self.bar = tqdm(total=total, desc=title, unit="file", file=sys.stderr, leave=False)
        self.executor = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.executor.shutdown(cancel_futures=True)
        self.bar.close()

    def map(self, work: Callable[[pathlib.Path], Result], paths: list[pathlib.Path]) -> list[Result]:
        """The results in the order of the paths; the first error in that order is raised."""
        results = []
        for result in self.executor.map(work, paths):
            results.append(result)
            self.bar.update()
        return results
