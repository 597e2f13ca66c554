"""Digests of the files of a checkpoint, by which damage on the disk is noticed before anything is used."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

from cvae_jax.runtime.errors import UserError

FILE = "digests.json"
FORMAT = 2  # of a checkpoint; those of format 1 have no digests and are taken as they are
_FILLED_LATER = "_CHECKPOINT_METADATA"  # after the digests are taken


def write(folder: Path) -> None:
    """Write the digests of all files of a checkpoint beside them, and wait until all of it is on disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _FILLED_LATER)
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    (folder / FILE).write_text(json.dumps({"format": FORMAT, "blake2b": digests}, indent=1) + "\n")
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    for path in [*files, folder / FILE, *folders, folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def damage(folder: Path, only: str = "") -> str | None:
    """Return what is wrong with the files of a checkpoint, or None.

    only: look at no other files than those whose path in the folder begins like this.

    Raises UserError for a checkpoint of a later format.
    """
    try:
        stored = json.loads((folder / FILE).read_text())
        form, digests = stored["format"], dict(stored["blake2b"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return f"{FILE} cannot be read"
    except OSError as error:
        return _unreadable(FILE, error)
    if isinstance(form, int) and form > FORMAT:
        raise UserError(
            f"The checkpoint {folder} has the format {form}, and this version of the program knows formats "
            f"up to {FORMAT}; use the version that wrote it."
        )
    if form != FORMAT:
        return f"{FILE} gives the format {form!r}"
    for name, digest in digests.items():
        if not name.startswith(only):
            continue
        try:
            found = _digest(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return _unreadable(name, error)
        if found != digest:
            return f"{name} is not as it was written"
    return None


def is_sound(folder: Path) -> bool:
    """Return whether a checkpoint has digests and its files agree with them."""
    return (folder / FILE).exists() and damage(folder) is None


def _unreadable(name: str, error: OSError) -> str:
    """Return what is wrong with a file on a failing disk; raise other errors, such as too many open files."""
    if error.errno != errno.EIO:
        raise error
    return f"{name} cannot be read"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
