"""Recordings prepared once with TFDS and read back at memory speed, without TensorFlow.

On disk a recording is cut into records of at most `contents.RECORD_FRAMES` frames in `array_record` files;
reading joins them again. TFDS takes long to import, so this module does so only where it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.data.contents import SPLITS, Contents
from cvae_jax.runtime.errors import UserError

ABANDONED_AFTER = 24 * 60 * 60  # seconds without a change: what a killed preparation left behind
PREPARING = ".preparing-"  # in the name of a working folder, which is removed when it was abandoned
KEPT = ".kept-"  # in the name of a folder that holds a data set while another takes its place


def load_prepared(cache_dir: str | os.PathLike, key: str, contents: Contents) -> dict[str, list[Recording]]:
    """Return the recordings of a cache entry, by split and sorted by scene and name; prepare it if need be.

    The entry is the folder `cache_dir/<contents.name>/<key>`; it appears at once and complete, or not at all.

    key: differs between any two contents of one name; a hash of all they depend on.

    Raises UserError where the cache cannot be written or read, and what `contents.records` raises.
    """
    entry = pathlib.Path(cache_dir) / contents.name / key
    if not entry.is_dir():
        # Another process may have been faster: its entry holds the same content.
        with contextlib.suppress(FileExistsError):
            prepare(entry, contents, "--config.data.cache")
    try:
        return read(entry)
    except UnreadableError as error:
        raise UserError(
            f"The prepared data in {entry} cannot be read ({error}): delete that folder, and they are "
            "prepared again."
        ) from error


class UnreadableError(Exception):
    """A folder holds no recordings that this version can read; the message says why, in a few words."""


def read(folder: pathlib.Path) -> dict[str, list[Recording]]:
    """Return the recordings of a prepared folder, by split, each split sorted by scene and name.

    Raises UnreadableError for files that are missing, damaged or of another form.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
        splits = [split for split in SPLITS if split in builder.info.splits]
        return {split: _join(builder.as_data_source(split)) for split in splits}
    except Exception as error:  # TFDS, protobuf and array_record each have their own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UnreadableError(f"damaged, or written by another version: {reason}") from error


def prepare(
    entry: pathlib.Path,
    contents: Contents,
    flag: str,
    *,
    add: Callable[[pathlib.Path], None] = lambda folder: None,
    overwrite: bool = False,
) -> None:
    """Write a folder that appears at once and complete, or not at all.

    flag: names another place, where this one cannot be written. add: puts further files into the folder
    before it appears. overwrite: the folder takes the place of one that is there.

    Raises FileExistsError where the folder is there and holds something, UserError where it cannot be
    written, and what `contents.records` raises.
    """
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(entry)
        work = tempfile.mkdtemp(prefix=f".{entry.name}{PREPARING}", dir=entry.parent)
    except OSError as error:
        raise UserError(
            f"Cannot write the prepared data to {entry.parent} ({error.strerror}): choose a "
            f"folder that can be written with {flag}=FOLDER."
        ) from error
    try:
        from cvae_jax.data import writer

        written = writer.write(contents, work)
        add(written)
        if overwrite and entry.is_dir():
            _exchange(written, entry)
        else:
            _rename(written, entry)
    except FileExistsError:
        raise
    except (OSError, RuntimeError) as error:
        # array_record says RuntimeError where a disk is full.
        reason = re.search(r"write\(\) failed: ([^;\n]*)", str(error))
        if reason:
            why = reason.group(1)
        elif isinstance(error, OSError):
            why = error.strerror or str(error).partition(".")[0]  # TFDS has no number for a full disk
        else:
            raise
        raise UserError(
            f"Writing the prepared data to {entry.parent} failed ({why}): make room there, or "
            f"choose another folder with {flag}=FOLDER."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_abandoned(entry: pathlib.Path) -> None:
    """Remove the working folders of preparations of this entry that were killed long ago."""
    own = re.compile(re.escape(f".{entry.name}{PREPARING}") + "[a-z0-9_]{8}")  # as mkdtemp names them
    for work in entry.parent.iterdir():
        if own.fullmatch(work.name) and work.is_dir() and not work.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # it is at work after all, or just done
                newest = max(path.stat().st_mtime for path in (work, *work.rglob("*")))
                if time.time() - newest > ABANDONED_AFTER:
                    shutil.rmtree(work, ignore_errors=True)


def _rename(source: os.PathLike, target: pathlib.Path) -> None:
    """Rename a folder; FileExistsError if the target is a folder with something in it."""
    try:
        os.rename(source, target)
    except OSError as error:
        if target.is_dir():
            raise FileExistsError(error.errno, error.strerror, os.fspath(target)) from error
        raise


def _exchange(source: os.PathLike, target: pathlib.Path) -> None:
    """Put a folder in the place of another, which is removed once that is done.

    Meanwhile the old folder is kept where nothing else removes it. If the new one cannot take its place the
    old one is put back and the error raised; if that fails too, a UserError says where it is kept.
    """
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}{KEPT}", dir=target.parent))
    old = aside / "replaced"
    try:
        os.rename(target, old)
        os.rename(source, target)
    except BaseException as error:  # an interrupt between the two as well
        if old.is_dir() and not target.exists():
            _put_back(old, target, error)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _put_back(old: pathlib.Path, target: pathlib.Path, reason: BaseException) -> None:
    try:
        os.rename(old, target)
    except OSError as error:
        why = getattr(reason, "strerror", None) or type(reason).__name__
        raise UserError(
            f"Writing the prepared data to {target} failed ({why}) and the data set that was there could "
            f"not be put back ({error.strerror}): it is kept in {old}, move it to {target}."
        ) from error


def _join(source: Sequence[dict[str, Any]]) -> list[Recording]:
    """Return the recordings whose pieces `source` holds, sorted by scene and name.

    A recording of one piece is used as it was read. The others are joined one at a time and their pieces
    released, so that beside the data no more than one recording is held a second time.
    """
    pieces: dict[tuple[str, str], list[Recording]] = {}
    for index in range(len(source)):
        piece = _to_recording(source[index])
        pieces.setdefault((piece.scene, piece.name), []).append(piece)
    joined = []
    for key in sorted(pieces):
        parts = sorted(pieces.pop(key), key=lambda part: part.start)
        joined.append(
            parts[0]
            if len(parts) == 1
            else dataclasses.replace(
                parts[0],
                frames=np.concatenate([part.frames for part in parts]),
                labels=np.concatenate([part.labels for part in parts]),
            )
        )
    return joined


def _to_recording(record: dict[str, Any]) -> Recording:
    frames = record["frames"]
    return Recording(
        scene=record["scene"].decode(),
        name=record["name"].decode(),
        start=int(record["start"]),
        frames=frames,
        labels=record["labels"] if "labels" in record else no_labels(len(frames)),
    )
