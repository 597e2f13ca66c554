"""Recordings prepared once with TFDS and read back at memory speed, without TensorFlow.

On disk a recording is cut into records of at most RECORD_FRAMES frames in `array_record` files;
reading joins them again.
"""

from __future__ import annotations

import abc
import contextlib
import io
import itertools
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.errors import UserError

RECORD_FRAMES = 512
ABANDONED_AFTER = 24 * 60 * 60  # seconds without a change: what a killed preparation left behind
SPLITS = ("train", "validation", "test")  # all that a data set can have, in this order


class _LocalInfo(tfds.core.DatasetInfo):
    """Dataset information that is never looked up in a bucket."""

    def initialize_from_bucket(self) -> None:
        pass


class RecordingsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder of recordings; a subclass says which recordings a split has.

    frame_size: (H, W) of the frames, and of the labels where they are images.
    label_size: entries of a label that is a vector (0: there are no labels); None: labels are images.
    splits: which of SPLITS there are.
    Other keywords are those of a TFDS builder.
    """

    VERSION = tfds.core.Version("1.0.0")
    LICENSE: str | None = None
    # TFDS would look beside the code for checksums of downloads, of which there are none, and needs
    # a package for it that it does not install.
    code_path = None
    splits: tuple[str, ...] = ("train", "validation")
    label_size: int | None = None

    def __init__(self, *, frame_size: tuple[int, int], **keywords: Any) -> None:
        self.frame_size = frame_size
        super().__init__(file_format="array_record", **keywords)

    @abc.abstractmethod
    def records(self, split: str) -> Iterator[Recording]:
        """The split's recordings, cut into pieces of at most RECORD_FRAMES frames."""

    def _info(self) -> tfds.core.DatasetInfo:
        # Without an encoding a uint8 tensor is written as a list of 64-bit integers, which takes
        # a hundred times longer.
        video = tfds.features.Tensor(
            shape=(None, *self.frame_size, 3),
            dtype=np.uint8,
            encoding=tfds.features.Encoding.BYTES,
        )
        if self.label_size is None:
            labels = {"labels": video}
        elif self.label_size:
            vectors = tfds.features.Tensor(
                shape=(None, self.label_size),
                dtype=np.float32,
                encoding=tfds.features.Encoding.BYTES,
            )
            labels = {"labels": vectors}
        else:  # TFDS cannot read back an array without entries
            labels = {}
        return _LocalInfo(
            builder=self,
            description=type(self).__doc__,
            license=self.LICENSE,
            features=tfds.features.FeaturesDict(
                {
                    "scene": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "start": np.int64,
                    "frames": video,
                    **labels,
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, piece in enumerate(self.records(split)):
            labels = {} if self.label_size == 0 else {"labels": piece.labels}
            yield (
                index,
                {
                    "scene": piece.scene,
                    "name": piece.name,
                    "start": piece.start,
                    "frames": piece.frames,
                    **labels,
                },
            )


def load_prepared(
    entry: pathlib.Path, make_builder: Callable[[str], RecordingsBuilder]
) -> dict[str, list[Recording]]:
    """Reads a cache entry, which is prepared first if it is not there.

    entry: the folder of this very content; it appears at once and complete, or not at all.
    make_builder: makes the builder that prepares into the folder it is given.

    Returns the recordings of the builder's splits, sorted by scene and name. Raises UserError where the cache
    cannot be written or read, and what the builder raises.
    """
    if not entry.is_dir():
        # Another process may have been faster: its entry holds the same content.
        with contextlib.suppress(FileExistsError):
            prepare(entry, make_builder, "--config.data.cache")
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
    """Reads the recordings of a prepared folder, by split, each split sorted by scene and name.

    Raises UnreadableError for files that are missing, damaged or of another form.
    """
    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
        splits = [split for split in SPLITS if split in builder.info.splits]
        return {split: _join(builder.as_data_source(split)) for split in splits}
    except Exception as error:  # TFDS, protobuf and array_record each have their own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UnreadableError(f"damaged, or written by another version: {reason}") from error


def prepare(
    entry: pathlib.Path,
    make_builder: Callable[[str], RecordingsBuilder],
    flag: str,
    *,
    add: Callable[[pathlib.Path], None] = lambda folder: None,
    overwrite: bool = False,
) -> None:
    """Writes a folder that appears at once and complete, or not at all.

    flag: names another place, where this one cannot be written. add: puts further files into the folder
    before it appears. overwrite: the folder takes the place of one that is there.

    Raises FileExistsError where the folder is there and holds something, UserError where it cannot be
    written, and what the builder raises.
    """
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(entry)
        work = tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent)
    except OSError as error:
        raise UserError(
            f"Cannot write the prepared data to {entry.parent} ({error.strerror}): choose a "
            f"folder that can be written with {flag}=FOLDER."
        ) from error
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder = make_builder(work)
        with _quiet_tfds():
            builder.download_and_prepare(download_config=config)
        add(pathlib.Path(builder.data_dir))
        if overwrite and entry.is_dir():
            _exchange(builder.data_dir, entry, os.path.join(work, "replaced"))
        else:
            _rename(builder.data_dir, entry)
    except FileExistsError:
        raise
    except (OSError, RuntimeError) as error:
        # array_record says RuntimeError where a disk is full.
        reason = re.search(r"write\(\) failed: ([^;\n]*)", str(error))
        if not isinstance(error, OSError) and reason is None:
            raise
        why = reason.group(1) if reason else error.strerror
        raise UserError(
            f"Writing the prepared data to {entry.parent} failed ({why}): make room there, or "
            f"choose another folder with {flag}=FOLDER."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_abandoned(entry: pathlib.Path) -> None:
    """Removes the working folders of preparations of this entry that were killed long ago."""
    for work in entry.parent.glob(f".{entry.name}.*"):
        with contextlib.suppress(FileNotFoundError):  # it is at work after all, or just done
            newest = max(path.stat().st_mtime for path in (work, *work.rglob("*")))
            if time.time() - newest > ABANDONED_AFTER:
                shutil.rmtree(work, ignore_errors=True)


def _rename(source: str, target: pathlib.Path) -> None:
    """Renames a folder; FileExistsError if the target is a folder with something in it."""
    try:
        os.rename(source, target)
    except OSError as error:
        if target.is_dir():
            raise FileExistsError(error.errno, error.strerror, os.fspath(target)) from error
        raise


def _exchange(source: str, target: pathlib.Path, aside: str) -> None:
    """Puts a folder in the place of another, which goes aside; without success it stays."""
    os.rename(target, aside)
    try:
        os.rename(source, target)
    except OSError:
        os.rename(aside, target)
        raise


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Switches off TFDS's own progress bars and its messages on standard output."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def _join(source: Any) -> list[Recording]:
    pieces = [
        Recording(
            scene=record["scene"].decode(),
            name=record["name"].decode(),
            start=int(record["start"]),
            frames=record["frames"],
            labels=record["labels"] if "labels" in record else no_labels(len(record["frames"])),
        )
        for record in (source[i] for i in range(len(source)))
    ]
    pieces.sort(key=lambda piece: (piece.scene, piece.name, piece.start))
    joined = []
    for (scene, name), group in itertools.groupby(pieces, lambda p: (p.scene, p.name)):
        parts = list(group)
        joined.append(
            Recording(
                scene=scene,
                name=name,
                start=parts[0].start,
                frames=np.concatenate([part.frames for part in parts]),
                labels=np.concatenate([part.labels for part in parts]),
            )
        )
    return joined
