"""Where files are kept, and files that appear whole or not at all."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from cvae_jax.runtime.errors import StorageError, UserError


def user_cache_folder() -> Path:
    """Return the folder of everything this package keeps between runs: ~/.cache/cvae_jax on Linux.

    It follows XDG_CACHE_HOME. Nothing is created.
    """
    return platformdirs.user_cache_path("cvae_jax", appauthor=False)


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Within, an error of the disk (see `StorageError`) becomes a StorageError that names `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # TensorFlow and TensorStore each have their own
        number = StorageError.number_in(error)
        if number is None:
            raise
        raise StorageError(what, number) from error


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its place once it has been written to the disk.

    Raises StorageError where the disk is full, read-only or failing; `path` is then as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file and wait until it is on disk; where that fails, the file is as it was.

    Raises StorageError where the disk is full, read-only or failing.
    """
    with writing(path), path.open("ab", buffering=0) as file:  # a buffer would be written again by `close`
        before, left = file.tell(), memoryview(f"{line}\n".encode())
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except BaseException:  # an interrupt as well
            file.truncate(before)
            raise


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
        above = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=above, buffering=0) as file:
            file.write(b"\0")  # an empty file takes no room
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
