"""Where files are kept, and files that appear whole or not at all."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from cvae_jax.runtime.errors import UserError


def user_cache_folder() -> Path:
    """Return the folder of everything this package keeps between runs: ~/.cache/cvae_jax on Linux.

    It follows XDG_CACHE_HOME. Nothing is created.
    """
    return platformdirs.user_cache_path("cvae_jax", appauthor=False)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its place once it has been written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def nan_to_null(value: Any) -> Any:
    """Return a JSON value with null where a number is infinite or not a number, which JSON does not have."""
    if isinstance(value, dict):
        return {name: nan_to_null(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [nan_to_null(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_writable(folder: Path, advice: str) -> None:
    """Raise UserError ending with `advice` where a folder cannot be written, or made; nothing is made."""
    try:
        with tempfile.TemporaryFile(dir=next(path for path in (folder, *folder.parents) if path.exists())):
            pass
    except OSError as error:
        raise UserError(f"Cannot write to the folder {folder} ({error.strerror}): {advice}.") from error


@contextmanager
def exclusive(folder: Path, held: str) -> Iterator[None]:
    """Hold a folder, made if it is not there, against other processes while the context lasts.

    Raises UserError with the sentence `held` where another process holds it, and where it cannot be written.
    """
    lock = filelock.FileLock(folder / ".lock", timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise UserError(held) from None
    except OSError as error:
        raise UserError(
            f"Cannot write to the folder {folder} ({error.strerror}); give --workdir another place."
        ) from error
    try:
        yield
    finally:
        lock.release()
