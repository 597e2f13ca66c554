"""Digests of the files of a checkpoint, by which damage on the disk is noticed before anything is used."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import sync

FILE = "digests.json"
FORMAT = 2  # of a checkpoint; those of format 1 have no digests and are taken as they are
_FILLED_LATER = "_CHECKPOINT_METADATA"  # after the digests are taken
_OWN = "checksum"  # of digests.json itself; the first version of format 2 did not write it


class Damage(NamedTuple):
    """What is wrong with a checkpoint: with which of its files, and why."""

    file: str
    kind: Literal["missing", "changed", "unreadable"]

    def __str__(self) -> str:
        why = {
            "missing": "is missing",
            "changed": "has changed since it was written",
            "unreadable": "cannot be read",
        }
        return f"{self.file} {why[self.kind]}"


def write(folder: Path) -> None:
    """Write the digests of all files of a checkpoint beside them, and wait until all of it is on disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _FILLED_LATER)
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    content = {"format": FORMAT, "blake2b": digests}
    content[_OWN] = _checksum(content)
    (folder / FILE).write_text(json.dumps(content, indent=1) + "\n")
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    for path in [*files, folder / FILE, *folders, folder]:
        sync(path)


def damage(folder: Path, only: str = "") -> Damage | None:
    """Return what is wrong with the files of a checkpoint, or None.

    only: look at no other files than those whose path in the folder begins like this.

    Raises UserError for a checkpoint of a later format, whose digests.json has a checksum of the same form.
    """
    try:
        stored = json.loads((folder / FILE).read_text())
        form, digests, own = stored["format"], dict(stored["blake2b"]), stored.pop(_OWN, None)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Damage(FILE, "unreadable")
    except OSError as error:
        return _unreadable(FILE, error)
    if own is None and (form != FORMAT or len(stored) > 2) or own not in (None, _checksum(stored)):
        return Damage(FILE, "changed")
    if isinstance(form, int) and form > FORMAT:
        raise UserError(
            f"The checkpoint {folder} has the format {form}, and this version of the program knows formats "
            f"up to {FORMAT}; use the version that wrote it."
        )
    for name, digest in digests.items():
        if not name.startswith(only):
            continue
        try:
            found = _digest(folder / name)
        except FileNotFoundError:
            return Damage(name, "missing")
        except OSError as error:
            return _unreadable(name, error)
        if found != digest:
            return Damage(name, "changed")
    return None


def is_sound(folder: Path) -> bool:
    """Return whether a checkpoint has digests and its files agree with them."""
    return (folder / FILE).exists() and damage(folder) is None


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _unreadable(name: str, error: OSError) -> Damage:
    """Return what is wrong with a file on a failing disk; raise other errors, such as too many open files."""
    if error.errno != errno.EIO:
        raise error
    return Damage(name, "unreadable")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
