"""Data sets: what is read, in which order, and every sentence a user can meet."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from cvae_jax.data import datasets, pose, store
from cvae_jax.data.clips import Recording
from cvae_jax.data.contents import RECORD_FRAMES, Contents
from cvae_jax.data.datasets import frame_folder, real_clips
from cvae_jax.runtime.errors import UserError

SIZE = (44, 20)  # width, height of the made-up images


def write_image(path: pathlib.Path, value: int, size: tuple[int, int] = SIZE) -> None:
    """A flat image, with a gradient so that resizing is not trivial."""
    ramp = np.linspace(0, 40, size[0]).astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None] + np.uint8(value), (size[1], size[0], 3))
    Image.fromarray(np.ascontiguousarray(image)).save(path)


@pytest.fixture
def lab(tmp_path: pathlib.Path) -> pathlib.Path:
    """A tiny folder in the lab's layout, its path with a space and non-ASCII letters in it."""
    root = tmp_path / "meine Daten é"
    for _, frames, labels in frame_folder.FOLDERS.values():
        for folder, base in ((frames, 0), (labels, 100)):
            (root / folder).mkdir(parents=True)
            for number in range(12):
                write_image(root / folder / f"frame{number}.png", base + 5 * number)
    return root


@pytest.fixture
def cache(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "cache"


def load(lab: pathlib.Path | None, cache: pathlib.Path, frame_size: tuple[int, int] | None = None) -> dict:
    return datasets.load(
        "frame_folder",
        data_dir=None if lab is None else str(lab),
        cache_dir=str(cache),
        frame_size=frame_size,
    )


def refused(lab: pathlib.Path | None, cache: pathlib.Path, *words: str) -> str:
    """Loads, expects one sentence with all these words in it and nothing left in the cache."""
    with pytest.raises(UserError) as caught:
        load(lab, cache)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert message.endswith(".") and "\n" not in message
    assert not re.search(r"\. [A-Z]", message)
    if cache.is_dir():
        assert not [path for path in cache.rglob("*") if path.is_file()]
        assert not list(cache.glob("frame_folder/*"))
    return message


# The embedded clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict:
    cache = tmp_path_factory.mktemp("cache")
    return datasets.load("real_clips", data_dir=None, cache_dir=str(cache), frame_size=None)


def test_real_clips_are_split_by_time(clips: dict) -> None:
    beams = [f"beam_cam{camera}" for camera in (1, 2, 3, 4)]
    shape = {
        split: [(r.scene, r.start, len(r.frames)) for r in recordings] for split, recordings in clips.items()
    }
    assert shape == {
        "train": [(beam, 0, 80) for beam in beams] + [("star_jump", 0, 40), ("star_jump", 72, 44)],
        "validation": [(beam, 80, 20) for beam in beams] + [("star_jump", 40, 32)],
    }


def test_real_clips_are_the_committed_strips(clips: dict) -> None:
    for recordings in clips.values():
        assert len({recording.name for recording in recordings}) == len(recordings)
        for recording in recordings:
            part = slice(recording.start, recording.start + len(recording.frames))
            for kind in ("frames", "labels"):
                video = getattr(recording, kind)
                strip = real_clips.read_strip(f"{recording.scene}_{kind}.png")
                assert video.dtype == np.uint8 and video.shape[1:] == (64, 32, 3)
                np.testing.assert_array_equal(video, strip[part])


def test_a_strip_runs_from_left_to_right_then_down() -> None:
    with Image.open(real_clips.STRIPS / "star_jump_frames.png") as image:
        strip = np.asarray(image)
    frames = real_clips.read_strip("star_jump_frames.png")
    np.testing.assert_array_equal(frames[40], strip[128:192, :32])
    np.testing.assert_array_equal(frames[71], strip[192:256, 11 * 32 : 12 * 32])


def test_the_committed_labels_are_drawn_from_the_committed_keypoints() -> None:
    stored = json.loads((real_clips.STRIPS / "keypoints.json").read_text(encoding="utf-8"))
    rows = [pose.landmark_index(name) for name in stored["landmarks"]]
    for clip, entry in stored["clips"].items():
        labels = real_clips.read_strip(f"{clip}_labels.png")
        for t in (0, 50, 99):
            keypoints = np.full((33, 2), np.nan)
            keypoints[rows] = entry["keypoints"][t]
            drawn = pose.draw_pose(keypoints, frame_size=(64, 32))
            np.testing.assert_array_equal(drawn, labels[t])


def test_real_clips_refuse_another_size_and_a_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"\(64, 32\).*\(32, 64\).*frame_size"):
        datasets.load("real_clips", data_dir=None, cache_dir=str(tmp_path), frame_size=(32, 64))
    with pytest.raises(UserError, match="reads no folder, but /somewhere was given"):
        datasets.load("real_clips", data_dir="/somewhere", cache_dir=str(tmp_path), frame_size=None)


def test_an_unknown_name_lists_the_known_ones(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        UserError, match="no data set named cifar.*dancer, frame_folder, kth, moving_mnist, prepared"
    ):
        datasets.load("cifar", data_dir=None, cache_dir=str(tmp_path), frame_size=None)


# The lab's layout


def test_frames_are_ordered_by_number_and_paired_with_labels(lab: pathlib.Path, cache: pathlib.Path) -> None:
    for split, recordings in load(lab, cache).items():
        (recording,) = recordings
        assert (recording.scene, recording.start) == ("dance", 0)
        assert recording.frames.shape == recording.labels.shape == (12, 32, 64, 3)
        assert recording.frames.dtype == np.uint8
        # File `number` starts at 5 * number, its label 100 higher.
        assert recording.frames[:, 0, 0, 0].tolist() == [5 * t for t in range(12)]
        assert recording.labels[:, 0, 0, 0].tolist() == [100 + 5 * t for t in range(12)]


def test_names_with_and_without_frame_and_zeros(lab: pathlib.Path, cache: pathlib.Path) -> None:
    folder = lab / "train/train_img"
    (folder / "frame2.png").rename(folder / "0002.png")
    (folder / "frame3.png").rename(folder / "3.PNG")
    (folder / "frame4.png").rename(folder / "frame0004.png")
    (folder / "notes.txt").write_text("not a frame")
    (folder / "._frame4.png").write_bytes(b"what some computers leave behind")
    frames = load(lab, cache)["train"][0].frames
    assert frames[:, 0, 0, 0].tolist() == [5 * t for t in range(12)]


def test_resizing_is_bilinear_with_antialiasing(lab: pathlib.Path, cache: pathlib.Path) -> None:
    path = lab / "train/train_img/frame0.png"
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
    Image.fromarray(noise).save(path)
    frames = load(lab, cache, frame_size=(10, 11))["train"][0].frames
    assert frames.shape == (12, 10, 11, 3)
    # Halving and quartering: triangles over twice and four times the output pixel's reach.
    taps = np.array([1, 3, 3, 1]) / 8
    rows = np.einsum("k,kwc->wc", taps, noise[5 * 2 - 1 : 5 * 2 + 3].astype(float))
    taps = np.array([1, 3, 5, 7, 7, 5, 3, 1]) / 32
    pixel = np.einsum("k,kc->c", taps, rows[5 * 4 - 2 : 5 * 4 + 6])
    np.testing.assert_allclose(frames[0, 5, 5], pixel, atol=1.5)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "I;16", "1"])
def test_other_image_modes(lab: pathlib.Path, cache: pathlib.Path, mode: str) -> None:
    path = lab / "train/train_img/frame7.png"
    if mode == "I;16":
        Image.fromarray(np.full(SIZE[::-1], 200 << 8, np.uint16)).save(path)
    elif mode == "P":
        image = Image.new("P", SIZE, 1)
        image.putpalette([0, 0, 0, 200, 200, 200])
        image.save(path, transparency=b"\x80\xff")
    else:
        value = {"RGBA": (200, 200, 200, 255), "L": 200, "1": 1}[mode]
        Image.new(mode, SIZE, value).save(path)
    frame = load(lab, cache)["train"][0].frames[7]
    assert frame.min() == frame.max() == (255 if mode == "1" else 200)


def test_labels_of_another_size_than_the_frames(lab: pathlib.Path, cache: pathlib.Path) -> None:
    for path in (lab / "train/train_label").iterdir():
        write_image(path, 0, size=(30, 30))
    assert load(lab, cache)["train"][0].labels.shape == (12, 32, 64, 3)


def test_long_recordings_are_cut_on_disk_and_joined(
    lab: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(lab, cache / "whole")["train"][0]
    monkeypatch.setattr(frame_folder, "RECORD_FRAMES", 5)
    assert RECORD_FRAMES == 512
    joined = load(lab, cache / "cut")["train"]
    assert len(joined) == 1 and joined[0].start == 0
    np.testing.assert_array_equal(joined[0].frames, whole.frames)
    np.testing.assert_array_equal(joined[0].labels, whole.labels)
    (info,) = (cache / "cut").rglob("dataset_info.json")
    lengths = {s["name"]: s["shardLengths"] for s in json.loads(info.read_text())["splits"]}
    assert lengths == {"train": ["3"], "validation": ["3"]}


# The cache


def test_unchanged_content_is_not_decoded_again(
    lab: pathlib.Path,
    cache: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = load(lab, cache)
    assert capsys.readouterr().out == ""
    moved = lab.rename(lab.parent / "moved")  # content counts, not the place
    with monkeypatch.context() as patch:
        patch.setattr(frame_folder, "read_image", None)
        again = load(moved, cache)
    np.testing.assert_array_equal(again["train"][0].frames, first["train"][0].frames)
    assert len(list((cache / "frame_folder").iterdir())) == 1

    write_image(moved / "val/val_img/frame3.png", 77)
    changed = load(moved, cache)
    assert changed["validation"][0].frames[3, 0, 0, 0] == 77
    load(moved, cache, frame_size=(16, 16))
    assert len(list((cache / "frame_folder").iterdir())) == 3


def test_a_failure_half_way_leaves_nothing_and_can_be_mended(
    lab: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_folder, "RECORD_FRAMES", 2)  # several records are written before
    path = lab / "val/val_label/frame9.png"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    refused(lab, cache, str(path), "cut short", "good copy")
    path.write_bytes(good)
    assert load(lab, cache)["validation"][0].labels[9, 0, 0, 0] == 145


def test_what_a_killed_preparation_left_is_removed_a_day_later(
    lab: pathlib.Path, cache: pathlib.Path
) -> None:
    load(lab, cache)
    (entry,) = [path for path in (cache / "frame_folder").iterdir() if path.is_dir()]
    works = [entry.parent / f".{entry.name}.preparing-{name}" for name in ("long_ago", "just_now")]
    for work in works:
        (work / "part").mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    for path in (works[0] / "part", works[0]):
        os.utime(path, (two_days_ago, two_days_ago))
    shutil.rmtree(entry)
    load(lab, cache)
    assert entry.is_dir() and [work.exists() for work in works] == [False, True]


def test_several_at_once_prepare_one_entry(lab: pathlib.Path, cache: pathlib.Path) -> None:
    program = (
        "import sys; from cvae_jax.data import datasets; "
        "data = datasets.load('frame_folder', data_dir=sys.argv[1], cache_dir=sys.argv[2], "
        "frame_size=None); print(data['train'][0].frames[:, 0, 0, 0].tolist())"
    )
    command = [sys.executable, "-c", program, str(lab), str(cache)]
    root = pathlib.Path(__file__).parent.parent.parent

    def start(_: int) -> str:
        return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(start, range(2)))
    assert outputs == [f"{[5 * t for t in range(12)]}\n"] * 2
    assert len(list((cache / "frame_folder").iterdir())) == 1


def test_losing_the_race_keeps_the_winner(
    lab: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = store._rename

    def late(source: str, target: pathlib.Path) -> None:
        shutil.copytree(source, target)
        rename(source, target)

    monkeypatch.setattr(store, "_rename", late)
    assert len(load(lab, cache)["train"][0].frames) == 12
    assert len(list((cache / "frame_folder").iterdir())) == 1


def test_reading_prepared_data_needs_no_tensorflow(tmp_path: pathlib.Path) -> None:
    program = (
        "import sys; from cvae_jax.data import datasets; "
        "data = datasets.load('real_clips', data_dir=None, cache_dir=sys.argv[1], "
        "frame_size=None); assert len(data['train']) == 6; "
        "assert 'tensorflow' not in sys.modules"
    )
    root = pathlib.Path(__file__).parent.parent.parent
    for _ in ("prepare", "read"):
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=True)


# What a user can get wrong


def test_a_missing_folder(lab: pathlib.Path, cache: pathlib.Path) -> None:
    refused(None, cache, "none was given", "--config.data.dir", "val/val_label")
    refused(lab / "absent", cache, str(lab / "absent"), "does not exist")
    refused(lab / "train/train_img/frame0.png", cache, "frame0.png is a file")


@pytest.mark.parametrize("folder", ["train/train_img", "train/train_label", "val/val_img", "val/val_label"])
def test_a_missing_or_empty_sub_folder(lab: pathlib.Path, cache: pathlib.Path, folder: str) -> None:
    shutil.rmtree(lab / folder)
    refused(lab, cache, str(lab), f"lacks the sub-folder {folder}", frame_folder.LAYOUT)
    (lab / folder).mkdir()
    refused(lab, cache, f"{lab / folder} holds no PNG files")


def test_a_frame_without_label_and_a_label_without_frame(lab: pathlib.Path, cache: pathlib.Path) -> None:
    (lab / "train/train_label/frame5.png").unlink()
    path = lab / "train/train_img/frame5.png"
    refused(lab, cache, f"{path} has no label", str(lab / "train/train_label"))
    path.unlink()
    write_image(lab / "val/val_label/frame12.png", 0)
    refused(lab, cache, f"{lab / 'val/val_label/frame12.png'} has no frame")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"hello", "half", "wrong bytes"])
@pytest.mark.parametrize("name", ["frame0.png", "frame6.png"])
def test_a_damaged_image(lab: pathlib.Path, cache: pathlib.Path, content: bytes | str, name: str) -> None:
    path = lab / "train/train_img" / name
    good = path.read_bytes()
    if content == "half":
        content = good[: len(good) // 2]
    elif content == "wrong bytes":
        content = good[:45] + bytes(40) + good[85:]
    path.write_bytes(content)
    refused(lab, cache, str(path), "cannot be read as an image")


def test_an_odd_sized_image(lab: pathlib.Path, cache: pathlib.Path) -> None:
    path = lab / "val/val_img/frame4.png"
    write_image(path, 0, size=(45, 20))
    refused(lab, cache, f"{path} is 45 x 20 pixels", "frame0.png", "44 x 20")


@pytest.mark.parametrize("name", ["frame.png", "frame_12.png", "cover.png", "frame-3.png"])
def test_a_name_without_a_number(lab: pathlib.Path, cache: pathlib.Path, name: str) -> None:
    path = lab / "train/train_img" / name
    write_image(path, 0)
    refused(lab, cache, f"{path} has no number")


def test_two_files_with_one_number(lab: pathlib.Path, cache: pathlib.Path) -> None:
    write_image(lab / "train/train_img/0007.png", 0)
    refused(lab, cache, "0007.png and frame7.png", "same number 7")


def test_a_cache_that_cannot_be_written(lab: pathlib.Path, tmp_path: pathlib.Path) -> None:
    blocker = tmp_path / "a file"
    blocker.write_text("")
    refused(lab, blocker, f"to {blocker / 'frame_folder'} (", "--config.data.cache")


def test_a_full_disk(tmp_path: pathlib.Path) -> None:
    program = (
        "import resource, sys; from cvae_jax.data import datasets; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40960, 40960)); "
        "datasets.load('real_clips', data_dir=None, cache_dir=sys.argv[1], frame_size=None)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = pathlib.Path(__file__).parent.parent.parent
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    folder = tmp_path / "real_clips"
    assert last.startswith(f"cvae_jax.runtime.errors.UserError: Writing the prepared data to {folder}")
    assert "(File too large): make room" in last
    assert not list(folder.iterdir())


@pytest.mark.parametrize("size", [0, 3])
def test_vector_labels_come_back_from_the_store(tmp_path: pathlib.Path, size: int) -> None:
    rng = np.random.default_rng(0)
    recording = Recording(
        scene="s",
        name="a",
        start=2,
        frames=rng.integers(256, size=(700, 11, 12, 3), dtype=np.uint8),
        labels=rng.normal(size=(700, size)).astype(np.float32),
    )

    def records(split):
        for start in (0, RECORD_FRAMES):
            part = slice(start, start + RECORD_FRAMES)
            yield dataclasses.replace(
                recording, start=2 + start, frames=recording.frames[part], labels=recording.labels[part]
            )

    contents = Contents("vectors", "Vectors for labels.", records, (11, 12), label_size=size)
    data = store.load_prepared(tmp_path, "entry", contents)
    (back,) = data["train"]
    np.testing.assert_array_equal(back.labels, recording.labels)
    np.testing.assert_array_equal(back.frames, recording.frames)
    assert back.labels.dtype == np.float32 and not back.image_labels and back.start == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((4, 2)), "float64"),
        (np.zeros((3, 2), np.float32), "differ in shape"),
        (np.zeros((4, 12, 12, 3), np.uint8), "differ in shape"),
        (np.full((4, 2), np.nan, np.float32), "finite"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recording("s", "a", 0, np.zeros((4, 11, 12, 3), np.uint8), labels)
