"""A video becomes a data set: pixels, times, splits, keypoints, and every sentence a user can meet."""

import errno
import itertools
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cvae_jax.data import datasets, store
from cvae_jax.data.dataset import Poses
from cvae_jax.data.datasets import prepared
from cvae_jax.data.pose import LANDMARKS, draw_pose, landmark_index
from cvae_jax.generation.transfer import transfer_labels
from cvae_jax.prepare.preparation import (
    prepare,
)
from cvae_jax.prepare.settings import Settings
from cvae_jax.runtime.errors import UserError

ROOT = Path(__file__).parent.parent.parent
WIDTH, HEIGHT = 96, 64
COUNT = 60

# A standing body, x and y from the middle of the hips, in units of its height (y downwards).
BODY = {
    "nose": (0, -0.45),
    "left_ear": (0.04, -0.45),
    "right_ear": (-0.04, -0.45),
    "left_shoulder": (0.1, -0.35),
    "right_shoulder": (-0.1, -0.35),
    "left_elbow": (0.15, -0.2),
    "right_elbow": (-0.15, -0.2),
    "left_wrist": (0.15, -0.05),
    "right_wrist": (-0.15, -0.05),
    "left_hip": (0.06, 0),
    "right_hip": (-0.06, 0),
    "left_knee": (0.06, 0.22),
    "right_knee": (-0.06, 0.22),
    "left_ankle": (0.06, 0.45),
    "right_ankle": (-0.06, 0.45),
    "left_foot_index": (0.08, 0.5),
    "right_foot_index": (-0.08, 0.5),
}


def body(t: int) -> np.ndarray:
    """The body of frame t in pixels of the video, (33, 2): 40 pixels high, going right by a pixel a frame."""
    points = np.full((len(LANDMARKS), 2), np.nan)
    for name, (x, y) in BODY.items():
        points[landmark_index(name)] = (20 + t * 0.5 + 40 * x, 32 + 40 * y)
    return points


def picture(t: int) -> np.ndarray:
    """Frame t: its number as a brightness, a bright spot in the upper left corner, a block at the body."""
    image = np.full((HEIGHT, WIDTH, 3), 40 + 2 * (t % 100), np.uint8)
    image[:16, :16] = 255
    return image


def write_video(
    path: Path, count: int = COUNT, codec: str = "libx264", times: list[int] | None = None
) -> Path:
    """A video at 30 frames a second, or with these times in units of 1/3000 s; lossless where codecs are."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"qp": "0"} if codec == "libx264" else {})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = {"gif": "rgb8"}.get(codec, "yuv420p")
        stream.time_base = Fraction(1, 3000)
        stream.codec_context.time_base = Fraction(1, 3000)
        for t in range(count):
            frame = av.VideoFrame.from_ndarray(picture(t)).reformat(format=stream.pix_fmt)
            frame.pts = 100 * t if times is None else times[t]
            frame.time_base = Fraction(1, 3000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_keypoints(path: Path, count: int = COUNT, without: tuple[int, ...] = ()) -> Path:
    """MediaPipe's form of the bodies; null in the frames without."""

    def entry(t: int) -> list | None:
        if t in without:
            return None
        return [{"x": x / WIDTH, "y": y / HEIGHT} for x, y in np.nan_to_num(body(t), nan=0.5).tolist()]

    path.write_text(json.dumps([entry(t) for t in range(count)]))
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "my däncé 1.mp4")


@pytest.fixture
def keypoints(tmp_path: Path) -> Path:
    return write_keypoints(tmp_path / "poses.json")


def run(video: Path, out: Path, keypoints: Path | None, **settings: object) -> str:
    given = None if keypoints is None else str(keypoints)
    return "\n".join(prepare(Settings(str(video), str(out), keypoints=given, **settings)))


def read(out: Path) -> dict:
    return datasets.load("prepared", data_dir=str(out), cache_dir="nowhere", frame_size=None)


def refused(video: Path, keypoints: Path | None, *words: str, **settings: object) -> None:
    """Prepares, expects one sentence with all these words and nothing left behind."""
    folder = video.parent / "results"
    folder.mkdir(exist_ok=True)
    with pytest.raises(UserError) as caught:
        run(video, folder / "out", keypoints, **settings)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert message.endswith(".") and "\n" not in message and not re.search(r"\. [A-Z]", message), message
    assert list(folder.iterdir()) == []


def preparation(out: Path) -> dict:
    return json.loads((out / prepared.PREPARATION).read_text())


# The data set


def test_a_video_becomes_a_data_set(video: Path, keypoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep er" / "me"
    said = run(video, out, keypoints)
    assert f"'--config.data.dir={out}'" in said and "--config.data.frame_step=8" not in said
    data = read(out)
    assert {split: [(r.scene, r.name, r.start, len(r.frames)) for r in rs] for split, rs in data.items()} == {
        "train": [("my däncé 1", "train_000", 0, 48)],
        "validation": [("my däncé 1", "validation_000", 48, 6)],
        "test": [("my däncé 1", "test_000", 54, 6)],
    }
    stored = preparation(out)
    x0, y0, x1, y1 = stored["crop"]
    assert stored["frame_size"] == [32, 64] and abs((x1 - x0) - 2 * (y1 - y0)) <= 1  # whole pixels
    assert 0 <= x0 and 0 <= y0 and x1 <= WIDTH and y1 <= HEIGHT
    for recordings in data.values():
        (recording,) = recordings
        # Each frame shows its own number: nothing is shifted, doubled or lost between splits.
        level = recording.frames[:, -1, -1].mean(axis=-1)
        np.testing.assert_allclose(level, 40 + 2 * (recording.start + np.arange(len(level))), atol=3)
        for t in range(len(level)):
            points = np.nan_to_num(body(recording.start + t), nan=0)
            points = (points - (x0, y0)) / (x1 - x0, y1 - y0)
            drawn = draw_pose(np.round(points, 4), frame_size=(32, 64))
            # The first and the last frame of the clip are their own medians over three frames.
            assert np.abs(drawn.astype(int) - recording.labels[t]).mean() < 2
    with Image.open(out / prepared.CONTACT_SHEET) as sheet:
        colors = {color for _, color in sheet.convert("RGB").getcolors(1 << 24)}
    assert {(255, 255, 0), (255, 160, 0), (48, 96, 255)} <= colors  # crop, left leg, right arm


def test_the_crop_holds_the_body_and_keeps_it_large(video: Path, keypoints: Path, tmp_path: Path) -> None:
    run(video, tmp_path / "me", keypoints, frame_size=(64, 64), margin=0.2)
    x0, y0, x1, y1 = preparation(tmp_path / "me")["crop"]
    points = np.stack([body(t) for t in range(COUNT)]).reshape(-1, 2)
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    assert x0 <= low[0] and y0 <= low[1] and x1 >= high[0] and y1 >= high[1]
    assert x1 - x0 == y1 - y0 and abs((x1 - x0) - 1.2 * max(high - low)) <= 1


def test_a_given_crop_is_grown_to_the_aspect_inside_the_picture(
    video: Path, keypoints: Path, tmp_path: Path
) -> None:
    run(video, tmp_path / "me", keypoints, crop=(10, 40, 26, 64))
    stored = preparation(tmp_path / "me")
    assert stored["frame_size"] == [64, 32]
    x0, y0, x1, y1 = stored["crop"]
    assert x0 <= 10 and y0 <= 40 and x1 >= 26 and y1 == 64 and abs((x1 - x0) * 2 - (y1 - y0)) <= 1
    refused(video, keypoints, "reaches outside", "96 pixels wide and 64 high", crop=(10, 40, 26, 65))
    refused(video, keypoints, "cannot be grown", "--frame_size", crop=(0, 0, 60, 64))


def test_labels_follow_the_frame_and_not_the_other_side(video: Path, keypoints: Path, tmp_path: Path) -> None:
    run(video, tmp_path / "me", keypoints)
    label = read(tmp_path / "me")["train"][0].labels[20].astype(int)
    warm = np.argwhere((label[..., 0] > 200) & (label[..., 2] < 100))
    cool = np.argwhere((label[..., 2] > 200) & (label[..., 0] < 100))
    assert warm[:, 1].mean() > cool[:, 1].mean()  # the person faces us: their left is on our right


@pytest.mark.parametrize(
    "ending, codec", [("mov", "libx264"), ("webm", "libvpx-vp9"), ("gif", "gif"), ("mkv", "mpeg4")]
)
def test_other_kinds_of_video(ending: str, codec: str, keypoints: Path, tmp_path: Path) -> None:
    times = [120 * t for t in range(COUNT)]  # 25 a second, which a GIF can say as well
    video = write_video(tmp_path / f"dance.{ending}", codec=codec, times=times)
    run(video, tmp_path / "me", keypoints)
    assert preparation(tmp_path / "me")["fps"] == pytest.approx(25, abs=0.1)
    level = read(tmp_path / "me")["train"][0].frames[:, -1, -1].mean(axis=-1)
    np.testing.assert_allclose(level, 40 + 2 * np.arange(len(level)), atol=40 if codec == "gif" else 8)
    assert len(level) == 48


def test_rate_and_part_are_taken_by_time(video: Path, keypoints: Path, tmp_path: Path) -> None:
    run(video, tmp_path / "me", keypoints, fps=10.0, start=0.5, end=1.5, validation=0.2, test=0.2)
    stored = preparation(tmp_path / "me")
    assert (stored["num_frames"], stored["fps"], stored["first_second"]) == (11, 10.0, 0.5)
    frames = np.concatenate([r.frames for rs in read(tmp_path / "me").values() for r in rs])
    level = frames[:, -1, -1].mean(axis=-1)
    np.testing.assert_allclose(level, 40 + 2 * (15 + 3 * np.arange(11)), atol=3)
    # The keypoints are those of the frames that were taken.
    hips = [r["keypoints"][0][stored["landmarks"].index("left_hip")][0] for r in stored["recordings"]]
    x0, _, x1, _ = stored["crop"]
    moments = [15 + 3 * r["start"] for r in stored["recordings"]]
    expected = [(body(t)[landmark_index("left_hip"), 0] - x0) / (x1 - x0) for t in moments]
    np.testing.assert_allclose(hips, expected, atol=1e-3)
    refused(video, keypoints, "--fps=60 is more than the 30", fps=60.0)
    refused(video, keypoints, "--start=9", "lasts 1.97 s", start=9.0)


def test_a_variable_rate_is_read_by_its_time_stamps(keypoints: Path, tmp_path: Path) -> None:
    # One second at 40 frames a second, then a second at 20.
    times = [75 * t for t in range(40)] + [3000 + 150 * t for t in range(20)]
    video = write_video(tmp_path / "phone.mp4", times=times)
    run(video, tmp_path / "me", keypoints, fps=20.0)
    frames = np.concatenate([r.frames for rs in read(tmp_path / "me").values() for r in rs])
    number = (frames[:, -1, -1].mean(axis=-1) - 40) / 2
    np.testing.assert_allclose(number, [*range(0, 40, 2), *range(40, 60)], atol=1.2)


def test_a_video_turned_by_its_metadata_is_put_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "turned.mp4")
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # version 0: 40 bytes lie before the matrix
    clockwise = [0, 1 << 16, 0, (-(1 << 16)) & 0xFFFFFFFF, 0, 0, HEIGHT << 16, 0, 1 << 30]
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big") for value in clockwise)
    path.write_bytes(content)
    from cvae_jax.prepare.footage import open_footage

    footage = open_footage(path)
    assert footage.size == (HEIGHT, WIDTH)
    (image,) = footage.pictures(np.array([0]))
    shown = np.asarray(image)
    assert shown.shape == (WIDTH, HEIGHT, 3)
    # What was in the upper left is in the upper right after a quarter turn clockwise.
    assert shown[4, -4].min() > 240 and shown[4, 4].max() < 100 and shown[-4, -4].max() < 100


def test_frames_come_one_by_one_repeated_where_wanted_and_again_from_the_beginning(video: Path) -> None:
    from cvae_jax.prepare.footage import open_footage

    footage = open_footage(video)
    given = footage.pictures(np.array([3, 3, 7]))
    first, second = itertools.islice(given, 2)
    assert first is second and np.asarray(first)[-1, -1, 0] == pytest.approx(46, abs=2)
    assert np.asarray(next(given))[-1, -1, 0] == pytest.approx(54, abs=2)
    assert len(list(footage.pictures(np.arange(COUNT)))) == COUNT  # again from the beginning


# Folders of frames


def write_folder(folder: Path, count: int = COUNT) -> Path:
    folder.mkdir()
    for t in range(count):
        Image.fromarray(picture(t)).save(folder / f"take2_frame{t}.png")
    return folder


def test_a_folder_of_frames_is_ordered_by_number(keypoints: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames")
    (folder / "notes.txt").write_text("not a frame")
    run(folder, tmp_path / "me", keypoints, source_fps=24.0)
    assert preparation(tmp_path / "me")["fps"] == pytest.approx(24)
    frames = read(tmp_path / "me")["train"][0].frames
    np.testing.assert_allclose(frames[:, -1, -1, 0], 40 + 2 * np.arange(48), atol=1)


def test_what_can_be_wrong_with_a_folder(keypoints: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames")
    path = folder / "take2_frame30.png"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    refused(folder, keypoints, str(path), "cannot be read as an image")
    Image.fromarray(picture(30)[:, :50]).save(path)
    refused(folder, keypoints, str(path), "50 x 64", "96 x 64", "same size")
    path.rename(folder / "take2_frame031.png")
    refused(folder, keypoints, "same number 31")
    (folder / "take2_frame031.png").rename(folder / "last.png")
    refused(folder, keypoints, "last.png has no number")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, keypoints, str(empty), "holds no images")


# Frames without a person


def test_short_gaps_are_closed_and_long_ones_cut(video: Path, tmp_path: Path) -> None:
    gaps = (*range(5, 9), *range(20, 35))
    poses = write_keypoints(tmp_path / "gaps.json", without=gaps)
    said = run(video, tmp_path / "me", poses)
    assert "Nobody was seen in 19 frames (0.17-0.27 s, 0.67-1.13 s): in 4 of them" in said
    stored = preparation(tmp_path / "me")
    assert stored["frames_without_person"] == list(gaps)
    spans = [(r["name"], r["start"], r["stop"]) for r in stored["recordings"]]
    assert spans == [
        ("train_000", 0, 20),
        ("train_001", 35, 52),
        ("validation_000", 52, 56),
        ("test_000", 56, 60),
    ]
    hip = stored["landmarks"].index("left_hip")
    path = [frame[hip][0] for frame in stored["recordings"][0]["keypoints"]]
    np.testing.assert_allclose(np.diff(path), np.diff(path).mean(), atol=1e-3)  # a straight walk
    train = read(tmp_path / "me")["train"]
    assert [len(r.frames) for r in train] == [20, 17]
    assert abs(float(train[1].frames[0, -1, -1].mean()) - (40 + 2 * 35)) < 3
    run(video, tmp_path / "other", poses, max_gap=0.1)
    assert preparation(tmp_path / "other")["recordings"][0]["stop"] == 5


def test_too_few_frames_and_nobody(video: Path, tmp_path: Path) -> None:
    nobody = write_keypoints(tmp_path / "nobody.json", without=tuple(range(COUNT)))
    refused(video, nobody, "shows nobody")
    few = write_keypoints(tmp_path / "few.json", without=tuple(range(9, COUNT)))
    refused(video, few, "seen in 9 frames", "split validation")


# Bad videos


def test_videos_that_cannot_be_read(video: Path, keypoints: Path, tmp_path: Path) -> None:
    refused(tmp_path / "absent.mp4", keypoints, "no file or folder", "absent.mp4")
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    refused(empty, keypoints, str(empty), "0 bytes")
    text = tmp_path / "text.mp4"
    text.write_text("this is no video\n" * 100)
    refused(text, keypoints, str(text), "cannot be opened as a video")
    content = video.read_bytes()
    no_end = tmp_path / "no_end.mp4"
    no_end.write_bytes(content[: len(content) // 2])
    refused(no_end, keypoints, str(no_end), "its end is missing")
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused(sound, keypoints, str(sound), "holds no pictures")
    refused(video, keypoints, "--source_fps is of a folder", source_fps=10.0)


@pytest.mark.parametrize("ending, codec", [("webm", "libvpx-vp9"), ("mkv", "libx264"), ("avi", "mpeg4")])
def test_a_video_cut_short_tells_how_far_it_could_be_read(
    ending: str, codec: str, keypoints: Path, tmp_path: Path
) -> None:
    content = write_video(tmp_path / f"whole.{ending}", count=150, codec=codec).read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(content[: len(content) // 2])
    refused(cut, keypoints, str(cut), "cut short after", "frames", f"ffmpeg -i cut.{ending}")


# The folder that is written


def test_what_is_there_is_kept_unless_overwritten(video: Path, keypoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "me"
    run(video, out, keypoints)
    before = (out / prepared.PREPARATION).read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        run(video, out, keypoints)
    assert (out / prepared.PREPARATION).read_bytes() == before
    run(video, out, keypoints, overwrite=True, test=0.0)
    assert list(read(out)) == ["train", "validation"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="something else than a prepared data set"):
            run(video, other, keypoints, overwrite=overwrite)
    assert [path.name for path in other.iterdir()] == ["chapter.txt"]


def test_a_failure_while_writing_keeps_the_old_and_leaves_nothing_new(
    video: Path, keypoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results" / "out"
    run(video, out, keypoints)
    from cvae_jax.prepare import preparation as module

    def full(*_: object, **__: object) -> np.ndarray:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "draw_pose", full)
        with pytest.raises(UserError, match="No space left on device.*--out=FOLDER"):
            run(video, out, keypoints, overwrite=True)

        # array_record's way to say so
        def record(*_: object, **__: object) -> np.ndarray:
            raise RuntimeError("write() failed: No space left on device; writing x")

        patch.setattr(module, "draw_pose", record)
        with pytest.raises(UserError, match="No space left on device.*--out=FOLDER"):
            run(video, out, keypoints, overwrite=True)
    assert [path.name for path in out.parent.iterdir()] == ["out"] and len(read(out)["train"]) == 1


def test_an_exchange_that_fails_half_way_puts_the_old_back(
    video: Path, keypoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results" / "out"
    run(video, out, keypoints)
    before = (out / prepared.PREPARATION).read_bytes()
    rename = os.rename

    def second_fails(source: object, target: object) -> None:
        if Path(str(target)) == out and Path(str(source)).name != "replaced":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(store.os, "rename", second_fails)
    with pytest.raises(UserError, match="Input/output error"):
        run(video, out, keypoints, overwrite=True, test=0.0)
    assert (out / prepared.PREPARATION).read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody can write to")
def test_a_folder_that_cannot_be_written_is_refused_first(video: Path, keypoints: Path) -> None:
    with pytest.raises(UserError, match="Cannot write to /proc"):
        run(video, Path("/proc/me"), keypoints)


# Reading it


def test_reading_refuses_what_is_not_its_own(video: Path, keypoints: Path, tmp_path: Path) -> None:
    def fails(words: str, out: Path | None, size: tuple[int, int] | None = None) -> None:
        with pytest.raises(UserError, match=words):
            given = None if out is None else str(out)
            datasets.load("prepared", data_dir=given, cache_dir="", frame_size=size)

    out = tmp_path / "me"
    run(video, out, keypoints)
    fails("none was given", None)
    fails("does not exist", tmp_path / "absent")
    fails("was not made by prepare.py", tmp_path)
    fails(r"frames of \(32, 64\).*\(16, 16\).*--frame_size=16,16", out, (16, 16))
    (shard,) = out.glob("*train*")
    content = shard.read_bytes()
    shard.unlink()
    fails("damaged, or written by another version.*prepare it again", out)
    shard.write_bytes(content[:100])
    fails("damaged, or written by another version.*prepare it again", out)
    stored = preparation(out)
    for version, age in ((0, "older"), (2, "newer")):
        (out / prepared.PREPARATION).write_text(json.dumps(stored | {"format": version}))
        fails(f"{age} version.*prepare it again", out)
    (out / prepared.PREPARATION).write_text("{")
    fails("damaged", out)


def test_motion_transfer_works_with_it(video: Path, tmp_path: Path) -> None:
    poses = write_keypoints(tmp_path / "gap.json", without=tuple(range(20, 35)))
    out = tmp_path / "me"
    run(video, out, poses)
    data = read(out)
    poses, every = Poses.of_scenes(lambda: prepared.read_keypoints(str(out))), [*data["train"], *data["test"]]
    for recording in every:
        labels = transfer_labels(poses, every, recording, recording)
        np.testing.assert_array_equal(labels, recording.labels)


def test_transfer_needs_ankles(video: Path, tmp_path: Path) -> None:
    poses = json.loads(write_keypoints(tmp_path / "poses.json").read_text())
    for frame in poses[40:45]:
        frame[landmark_index("left_ankle")] = {"x": None, "y": None}
    (tmp_path / "poses.json").write_text(json.dumps(poses))
    run(video, tmp_path / "me", tmp_path / "poses.json", max_gap=0.0)
    (train,) = read(tmp_path / "me")["train"]
    with pytest.raises(UserError, match="pose of train_000 is not known well enough"):
        transfer_labels(
            Poses.of_scenes(lambda: prepared.read_keypoints(str(tmp_path / "me"))), [train], train, train
        )


# The door


def door(*given: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "prepare.py"), *given]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "given, named",
    [
        (["--out=x", "--crop=1,2,3", "--video=nothing.mp4"], "--crop=1,2,3 is not x0,y0,x1,y1"),
        (["my.mp4"], "'my.mp4' is not a flag; write --video=FILE and --out=FOLDER"),
    ],
)
def test_mistakes_at_the_door(given: list[str], named: str) -> None:
    done = door(*given)
    assert done.returncode == 2 and named in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_door_prepares_without_jax(video: Path, keypoints: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['prepare.py', *sys.argv[1:]]; import runpy\n"
        "try: runpy.run_path('prepare.py', run_name='__main__')\n"
        "finally: print('jax' in sys.modules)"
    )
    out = tmp_path / "me"
    flags = [f"--video={video}", f"--out={out}", f"--keypoints={keypoints}", "--frame_size=16,32"]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert read(out)["train"][0].frames.shape[1:3] == (16, 32)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"fps": 0.0}, "--fps is 0.0"),
        ({"fps": float("nan")}, "--fps is nan"),
        ({"start": -1.0}, "--start is -1.0"),
        ({"start": 2.0, "end": 1.0}, "--end=1.0 is not after"),
        ({"validation": 0.0}, "--validation is 0.0"),
        ({"test": 1.0}, "--test is 1.0"),
        ({"validation": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"crop": (5, 5, 5, 9)}, "is empty"),
        ({"frame_size": (0, 32)}, "out of range"),
    ],
)
def test_settings_out_of_range(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        Settings("a.mp4", "b", **settings)
