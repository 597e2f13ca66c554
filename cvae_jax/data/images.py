"""Reading PNG files: one, or a folder of them in the order of the numbers in their names."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from cvae_jax.runtime.errors import UserError

Result = TypeVar("Result")


def find_numbered(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Return a folder's PNG files by number; UserError for names that do not fit, or without any file.

    A file's number is what is left of its name after taking out "frame".
    """
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
    with FilePool(len(paths), f"Decoding {folder.name}") as pool:
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
    files = find_numbered(folder)
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


class FilePool:
    """Threads that work on files behind a progress bar on standard error."""

    def __init__(self, total: int, title: str) -> None:
        self.bar = tqdm(total=total, desc=title, unit="file", file=sys.stderr, leave=False)
        self.executor = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def __enter__(self) -> FilePool:
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
