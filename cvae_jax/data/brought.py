"""What the adapters of data sets that users bring share: finding the files, keys, sizes, messages."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from cvae_jax.runtime.errors import UserError

FRAME_SIZE = (64, 64)  # of the field's data sets


def require_folder(name: str, data_dir: str | None, expected: str) -> pathlib.Path:
    """Return the folder the user gave for the data set `name`; UserError where it is missing.

    expected: what the folder holds and where it is to be had, the end of a sentence.
    """
    if not data_dir:
        raise UserError(
            f"The data set {name} needs a folder and none was given: add --config.data.dir=FOLDER with "
            f"{expected}."
        )
    folder = pathlib.Path(data_dir)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: give --config.data.dir the folder with {expected}.")
    return folder


def require_size(
    name: str, frame_size: tuple[int, int] | None, size: tuple[int, int] = FRAME_SIZE
) -> tuple[int, int]:
    """Return the one size a data set has; UserError where another was asked for."""
    if frame_size is not None and tuple(frame_size) != size:
        raise UserError(
            f"The data set {name} has frames of {size} (height, width) and {tuple(frame_size)} was asked "
            "for: leave out --config.data.frame_size."
        )
    return size


def content_key(paths: Iterable[pathlib.Path], root: pathlib.Path, *options: object) -> str:
    """Return a name for files and options: of each file its place under root, its size and when it changed.

    Contents are not read: the field's data sets have many gigabytes.
    """
    digest = hashlib.blake2b(repr(options).encode(), digest_size=16)
    for path in sorted(paths):
        found = path.stat()
        entry = (os.fsencode(path.relative_to(root)), found.st_size, found.st_mtime_ns)
        digest.update(repr(entry).encode())
    return digest.hexdigest()


def find_tfds(root: pathlib.Path, name: str) -> pathlib.Path | None:
    """Return the folder under root that TFDS prepared the data set `name` in: the newest version, or None."""
    places = [root, *sorted(root.glob("*")), *sorted(root.glob("*/*"))]
    found = [
        place for place in places if (place / "dataset_info.json").is_file() and any(place.glob(f"{name}-*"))
    ]
    return found[-1] if found else None


def open_tfds(folder: pathlib.Path) -> Any:
    """Return the builder of a folder that TFDS prepared; UserError where it cannot be read."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(os.fspath(folder))
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{folder} cannot be read as a TFDS data set ({reason}): prepare it again."
        ) from error
