"""The store: how much memory reading takes, what it may delete, and that nothing it replaces is lost."""

import dataclasses
import errno
import os
import pathlib
import re
import time
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from cvae_jax.data import store
from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.data.contents import Contents
from cvae_jax.runtime.errors import UserError

SIZE = (16, 16)


def contents(value: int = 0) -> Contents:
    """One recording per split, all pixels of one value."""

    def records(split: str):
        frames = np.full((3, *SIZE, 3), value, np.uint8)
        yield Recording("s", split, 0, frames, no_labels(3))

    return Contents("flat", "Flat frames.", records, SIZE, label_size=0)


def value_of(folder: pathlib.Path) -> int:
    (recording,) = store.read(folder)["train"]
    return int(recording.frames.max())


class Records(Sequence):
    """What TFDS reads from a split: a new array whenever a record is asked for."""

    def __init__(self, recordings: int, pieces: int, length: int = 64) -> None:
        self.recordings, self.pieces, self.length = recordings, pieces, length

    def __len__(self) -> int:
        return self.recordings * self.pieces

    def __getitem__(self, index: int) -> dict:
        recording, piece = divmod(index, self.pieces)
        return {
            "scene": b"s",
            "name": f"{recording:03d}".encode(),
            "start": piece * self.length,
            "frames": np.full((self.length, 64, 64, 3), index, np.uint8),
        }


def test_reading_holds_the_data_and_one_recording_more() -> None:
    for pieces in (1, 4):
        source = Records(recordings=12 // pieces, pieces=pieces)
        tracemalloc.start()
        recordings = store._join(source)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        data = sum(r.frames.nbytes for r in recordings)
        largest = max(r.frames.nbytes for r in recordings)
        assert data == 12 * 64 * 64 * 64 * 3
        assert peak < data + 1.2 * largest, pieces
        for number, recording in enumerate(recordings):
            values = recording.frames[:: source.length, 0, 0, 0]
            assert values.tolist() == [number * pieces + piece for piece in range(pieces)]


def test_a_recording_of_one_record_is_not_copied() -> None:
    records = [Records(2, 1)[index] for index in (1, 0)]
    joined = store._join(records)
    assert [r.name for r in joined] == ["000", "001"]
    assert joined[0].frames is records[1]["frames"] and joined[1].frames is records[0]["frames"]


def test_pieces_are_joined_in_their_order_whatever_order_they_lie_in() -> None:
    records = Records(1, 3)
    (joined,) = store._join([records[index] for index in (2, 0, 1)])
    assert joined.start == 0 and joined.frames[::64, 0, 0, 0].tolist() == [0, 1, 2]


def test_only_abandoned_working_folders_are_removed(tmp_path: pathlib.Path) -> None:
    theirs = [
        ".me.backup",
        ".me.preparing-",
        ".me.preparing-notes.txt",
        ".me.preparing-abcd1234.old",
        ".you.preparing-abcd1234",
        ".me.kept-abcd1234",
        "me.preparing-abcd1234",
    ]
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    for name in (*theirs, ".me.preparing-abcd1234"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        for path in (tmp_path / name / "file", tmp_path / name):
            os.utime(path, (two_days_ago, two_days_ago))
    store.prepare(tmp_path / "me", contents(), "--out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*theirs, "me"])
    assert all((tmp_path / name / "file").exists() for name in theirs)


def failing_renames(monkeypatch: pytest.MonkeyPatch, target: pathlib.Path) -> None:
    """Nothing can be put where the target was any more."""
    rename = os.rename

    def fails(source, destination) -> None:
        if pathlib.Path(destination) == target:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr(store.os, "rename", fails)


def test_the_old_data_survive_an_exchange_that_cannot_be_undone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "me"
    store.prepare(target, contents(7), "--out")
    with monkeypatch.context() as patch:
        failing_renames(patch, target)
        with pytest.raises(UserError, match=f"it is kept in .*, move it to {target}\\.$") as caught:
            store.prepare(target, contents(8), "--out", overwrite=True)
    kept = pathlib.Path(re.search(r"it is kept in (.*), move", str(caught.value))[1])
    assert value_of(kept) == 7 and not target.exists()
    # Another preparation, days later, leaves them alone.
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    for path in (*kept.rglob("*"), kept, kept.parent):
        os.utime(path, (two_days_ago, two_days_ago))
    store.prepare(target, contents(9), "--out")
    assert value_of(kept) == 7 and value_of(target) == 9


def test_an_exchange_leaves_nothing_beside_the_new_data(tmp_path: pathlib.Path) -> None:
    for value in (1, 2):
        store.prepare(tmp_path / "me", contents(value), "--out", overwrite=True)
        assert value_of(tmp_path / "me") == value
        assert [path.name for path in tmp_path.iterdir()] == ["me"]
    with pytest.raises(FileExistsError):
        store.prepare(tmp_path / "me", contents(3), "--out")
    assert value_of(tmp_path / "me") == 2


def test_the_files_have_the_names_of_the_data_set(tmp_path: pathlib.Path) -> None:
    """Entries that earlier versions wrote are found and read: these are their places and names."""
    named = dataclasses.replace(contents(), name="real_clips", license="BSD-3-Clause")
    store.load_prepared(tmp_path, "key", named)
    files = {path.name for path in (tmp_path / "real_clips" / "key").iterdir()}
    assert {
        "dataset_info.json",
        "features.json",
        "real_clips-train.array_record-00000-of-00001",
        "real_clips-validation.array_record-00000-of-00001",
    } <= files
