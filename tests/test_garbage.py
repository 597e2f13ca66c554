"""Whatever lies where something is read: a reader returns what it promises, or says one sentence."""

import gzip
import json
import pathlib
import shutil
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import default
from cvae_jax import config as config_files
from cvae_jax import submission
from cvae_jax.data import datasets
from cvae_jax.data.datasets import (
    frame_folder,
    kth,
    moving_mnist,
    prepared,
    stochastic_moving_mnist,
)
from cvae_jax.errors import UserError
from cvae_jax.prepare.footage import open_footage
from cvae_jax.prepare.keypoints import read_keypoints

SIZE = (12, 14)
# The same examples every time: a change is not blamed for garbage that nobody had thought of before. To look
# for such, raise max_examples and leave out derandomize.
MANY = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def one_sentence(error: BaseException) -> None:
    message = str(error)
    assert message and "\n" not in message and message[0].isupper() | message.startswith(("/", "-", "config"))
    assert "Traceback" not in message


def picture(folder: pathlib.Path) -> bytes:
    """A good PNG of noise."""
    path = folder / "good.png"
    noise = np.random.default_rng(0).integers(256, size=(9, 11, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.unlink()
    return data


@MANY
@given(data=st.data())
def test_a_damaged_png_is_a_picture_or_a_sentence(tmp_path: pathlib.Path, data: st.DataObject) -> None:
    good = picture(tmp_path)
    path = tmp_path / "frame 0 ä.png"
    kind = data.draw(st.sampled_from(["garbage", "cut", "changed"]))
    if kind == "garbage":
        path.write_bytes(data.draw(st.binary(max_size=200)))
    elif kind == "cut":
        path.write_bytes(good[: data.draw(st.integers(0, len(good)))])
    else:
        place, byte = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 255))
        path.write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
    try:
        image, _ = frame_folder.read_image(path, SIZE)
    except UserError as error:
        one_sentence(error)
        assert str(path) in str(error)
    else:
        assert image.shape == (*SIZE, 3) and image.dtype == np.uint8


NAMES = st.one_of(
    st.from_regex(r"(frame)?[0-9]{1,4}\.(png|PNG)", fullmatch=True),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12),
)


@MANY
@given(names=st.lists(NAMES, max_size=6, unique=True))
def test_a_folder_of_any_names_is_ordered_by_number_or_a_sentence(
    tmp_path: pathlib.Path, names: list[str]
) -> None:
    folder = tmp_path / "frames"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    good = picture(tmp_path)
    for name in names:
        if name not in (".", ".."):
            (folder / name).write_bytes(good)
    try:
        video = frame_folder.read_folder(folder, SIZE)
        paths = frame_folder.list_folder(folder)
    except UserError as error:
        one_sentence(error)
    else:
        numbers = [int(path.stem.replace("frame", "")) for path in paths]
        assert numbers == sorted(set(numbers)) and video.shape == (len(paths), *SIZE, 3)


@MANY
@given(content=st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60)))
def test_any_config_json_is_a_config_or_a_sentence(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / config_files.FILE).write_bytes(content)
    try:
        config = config_files.load(tmp_path, default.get_config())
    except UserError as error:
        one_sentence(error)
    else:
        assert config.to_dict().keys() == default.get_config().to_dict().keys()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("cache")
    load(folder)
    return folder


def load(cache: pathlib.Path) -> dict:
    return datasets.load("real_clips", data_dir=None, cache_dir=str(cache), frame_size=None)


@settings(MANY, max_examples=25)
@given(data=st.data())
def test_a_damaged_cache_is_data_or_a_sentence(
    tmp_path: pathlib.Path, cache: pathlib.Path, data: st.DataObject
) -> None:
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(cache, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.name != "LICENSE")
    victim = data.draw(st.sampled_from(files))
    content = victim.read_bytes()
    kind = data.draw(st.sampled_from(["missing", "cut", "garbage"]))
    if kind == "missing":
        victim.unlink()
    elif kind == "cut":
        victim.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        start = data.draw(st.integers(0, len(content) - 1))
        victim.write_bytes(content[:start] + data.draw(st.binary(min_size=1, max_size=50)))
    try:
        recordings = load(copy)
    except UserError as error:
        one_sentence(error)
        assert "delete that folder" in str(error)
    else:
        assert {"train", "validation"} <= recordings.keys()


@MANY
@given(
    names=st.lists(st.sampled_from(["0", "1", "02", "x", "３"]), unique=True, max_size=4),
    files=st.booleans(),
)
def test_any_folders_of_sequences_are_prompts_or_a_sentence(
    tmp_path: pathlib.Path, names: list[str], files: bool
) -> None:
    shutil.rmtree(tmp_path / "test", ignore_errors=True)
    good = picture(tmp_path)
    for kind in (submission.FRAMES, submission.LABELS):
        for name in names:
            (tmp_path / kind / name).mkdir(parents=True)
            if files:
                (tmp_path / kind / name / "0.png").write_bytes(good)
    config = default.get_config()
    config.data.name, config.data.dir, config.data.frame_size = "frame_folder", str(tmp_path), SIZE
    try:
        prompts = submission.read_prompts(config, SIZE)
    except UserError as error:
        one_sentence(error)
    else:
        assert files and all(prompt.given.shape == (1, *SIZE, 3) for prompt in prompts)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good MP4 of twelve frames of noise."""
    path = tmp_path_factory.mktemp("film") / "good.mp4"
    noise = np.random.default_rng(0).integers(256, size=(12, 32, 48, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for picture in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def damaged(good: bytes, data: st.DataObject) -> bytes:
    kind = data.draw(st.sampled_from(["garbage", "cut", "changed"]))
    if kind == "garbage":
        return data.draw(st.binary(max_size=200))
    if kind == "cut":
        return good[: data.draw(st.integers(0, len(good)))]
    start = data.draw(st.integers(0, len(good) - 1))
    new = data.draw(st.binary(min_size=1, max_size=60))
    return good[:start] + new + good[start + len(new) :]


@MANY
@given(data=st.data(), ending=st.sampled_from(["mp4", "gif", "webm", "avi"]))
def test_a_damaged_video_is_frames_or_a_sentence(
    tmp_path: pathlib.Path, film: bytes, data: st.DataObject, ending: str
) -> None:
    path = tmp_path / f"my dance ä.{ending}"
    path.write_bytes(damaged(film, data))
    try:
        footage = open_footage(path)
        pictures = list(footage.pictures(np.arange(len(footage.times))))
    except UserError as error:
        one_sentence(error)
        assert str(path) in str(error)
    else:
        assert len(pictures) == len(footage.times) >= 2
        assert all(picture.size == footage.size for picture in pictures)


@MANY
@given(data=st.data())
def test_a_damaged_kth_video_is_frames_or_a_sentence(
    tmp_path: pathlib.Path, film: bytes, data: st.DataObject
) -> None:
    path = tmp_path / "person01_boxing_d1_uncomp.avi"
    path.write_bytes(damaged(film, data))
    try:
        frames = kth.decode(path, SIZE)
    except UserError as error:
        one_sentence(error)
        assert str(path) in str(error)
    else:
        assert frames.shape[1:] == (*SIZE, 3) and len(frames)


NUMBERS = st.none() | st.floats() | st.integers()
POINT = st.one_of(
    st.fixed_dictionaries({"x": NUMBERS, "y": NUMBERS}), st.lists(NUMBERS, max_size=4), JSON
)
BODY = st.one_of(
    st.lists(POINT, min_size=33, max_size=33),
    st.fixed_dictionaries({"people": st.lists(st.fixed_dictionaries({
        "pose_keypoints_2d": st.lists(NUMBERS, min_size=75, max_size=75) | st.lists(NUMBERS, max_size=5)
    }) | JSON, max_size=3) | JSON}),
    JSON,
)  # fmt: skip


@MANY
@given(content=st.lists(BODY, max_size=3) | JSON)
def test_any_keypoints_are_landmarks_or_a_sentence(tmp_path: pathlib.Path, content) -> None:
    path = tmp_path / "poses.json"
    path.write_text(json.dumps(content))
    try:
        landmarks = read_keypoints(path, 2, (48, 32))
    except UserError as error:
        one_sentence(error)
    else:
        assert landmarks.shape == (2, 33, 2) and not np.isinf(landmarks).any()


@MANY
@given(content=st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60)))
def test_any_preparation_is_read_or_a_sentence(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / prepared.PREPARATION).write_bytes(content)
    with pytest.raises(UserError) as caught:  # no shard is there, whatever it says
        datasets.load("prepared", data_dir=str(tmp_path), cache_dir="", frame_size=None)
    one_sentence(caught.value)


@MANY
@given(data=st.data())
def test_damaged_mnist_files_are_digits_or_a_sentence(tmp_path: pathlib.Path, data: st.DataObject) -> None:
    header = struct.pack(">4i", 2051, 3, 28, 28)
    path = tmp_path / "images.gz"
    path.write_bytes(damaged(gzip.compress(header + bytes(3 * 784)), data))
    stochastic_moving_mnist.read_idx.cache_clear()
    try:
        digits = stochastic_moving_mnist.read_idx(path)
    except UserError as error:
        one_sentence(error)
        assert str(path) in str(error)
    else:
        assert digits.shape == (3, 28, 28)


@MANY
@given(data=st.data())
def test_a_damaged_array_is_videos_or_a_sentence(tmp_path: pathlib.Path, data: st.DataObject) -> None:
    path = tmp_path / "mnist_test_seq.npy"
    np.save(path, np.zeros((20, 2, 64, 64), np.uint8))
    path.write_bytes(damaged(path.read_bytes(), data))
    try:
        count, videos = moving_mnist.read_videos(path)
        frames = list(videos)
    except UserError as error:
        one_sentence(error)
        assert str(path) in str(error)
    else:
        assert count == len(frames) and all(video.shape == (20, 64, 64) for video in frames)
