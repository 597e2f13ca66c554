"""Whatever lies where something is read: a reader returns what it promises, or says one sentence."""

import gzip
import json
import pathlib
import shutil
import struct
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cvae_jax import config as config_files
from cvae_jax import defaults
from cvae_jax.data import datasets
from cvae_jax.data.datasets import (
    frame_folder,
    kth,
    moving_mnist,
    prepared,
    stochastic_moving_mnist,
)
from cvae_jax.generation import submission
from cvae_jax.prepare.footage import open_footage
from cvae_jax.prepare.keypoints import read_keypoints
from cvae_jax.runtime.errors import UserError

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


class Damage(NamedTuple):
    """What happens to a file: it is replaced, cut, or changed at a place in [0, 1]."""

    kind: str
    place: float
    content: bytes

    def done_to(self, good: bytes) -> bytes:
        """The file afterwards."""
        place = min(int(self.place * len(good)), len(good) - 1)
        if self.kind == "replaced":
            return self.content
        if self.kind == "cut":
            return good[:place]
        return good[:place] + self.content + good[place + len(self.content) :]


DAMAGE = st.builds(
    Damage, st.sampled_from(["replaced", "cut", "changed"]), st.floats(0, 1), st.binary(max_size=60)
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
@given(damage=DAMAGE)
def test_a_damaged_png_is_a_picture_or_a_sentence(tmp_path: pathlib.Path, damage: Damage) -> None:
    path = tmp_path / "frame 0 ä.png"
    path.write_bytes(damage.done_to(picture(tmp_path)))
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
        config = config_files.load(tmp_path, defaults.get_config())
    except UserError as error:
        one_sentence(error)
    else:
        assert config.to_dict().keys() == defaults.get_config().to_dict().keys()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("cache")
    load(folder)
    return folder


def load(cache: pathlib.Path) -> dict:
    return datasets.load("real_clips", data_dir=None, cache_dir=str(cache), frame_size=None)


@settings(MANY, max_examples=25)
@given(damage=DAMAGE, which=st.integers(0, 3), missing=st.booleans())
def test_a_damaged_cache_is_data_or_a_sentence(
    tmp_path: pathlib.Path, cache: pathlib.Path, damage: Damage, which: int, missing: bool
) -> None:
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(cache, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.name != "LICENSE")
    victim = files[which]
    if missing:
        victim.unlink()
    else:
        victim.write_bytes(damage.done_to(victim.read_bytes()))
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
    for kind in (frame_folder.TEST_FRAMES, frame_folder.TEST_LABELS):
        for name in names:
            (tmp_path / kind / name).mkdir(parents=True)
            if files:
                (tmp_path / kind / name / "0.png").write_bytes(good)
    config = defaults.get_config()
    config.data.name, config.data.dir, config.data.frame_size = "frame_folder", str(tmp_path), SIZE
    try:
        prompts = submission.read_prompts(config, SIZE)
    except UserError as error:
        one_sentence(error)
    else:
        assert files and all(prompt.given.shape == (1, *SIZE, 3) for prompt in prompts)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A good MP4 of twelve frames of noise."""
    path = tmp_path_factory.mktemp("film") / "good.mp4"
    noise = np.random.default_rng(0).integers(256, size=(12, 32, 48, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for picture in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@MANY
@given(damage=DAMAGE, ending=st.sampled_from(["mp4", "gif", "webm", "avi"]))
def test_a_damaged_video_is_frames_or_a_sentence(
    tmp_path: pathlib.Path, film: pathlib.Path, damage: Damage, ending: str
) -> None:
    path = tmp_path / f"my dance ä.{ending}"
    path.write_bytes(damage.done_to(film.read_bytes()))
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
@given(damage=DAMAGE)
def test_a_damaged_kth_video_is_frames_or_a_sentence(
    tmp_path: pathlib.Path, film: pathlib.Path, damage: Damage
) -> None:
    path = tmp_path / "person01_boxing_d1_uncomp.avi"
    path.write_bytes(damage.done_to(film.read_bytes()))
    try:
        frames = kth.decode(path, SIZE)
    except UserError as error:
        one_sentence(error)
        assert str(path) in str(error)
    else:
        assert frames.shape[1:] == (*SIZE, 3) and len(frames)


NUMBERS = st.none() | st.floats() | st.integers()
POINT = st.one_of(st.fixed_dictionaries({"x": NUMBERS, "y": NUMBERS}), st.lists(NUMBERS, max_size=4), JSON)
BODY = st.one_of(
    st.lists(POINT, min_size=33, max_size=33),
    st.fixed_dictionaries(
        {
            "people": st.lists(
                st.fixed_dictionaries(
                    {
                        "pose_keypoints_2d": st.lists(NUMBERS, min_size=75, max_size=75)
                        | st.lists(NUMBERS, max_size=5)
                    }
                )
                | JSON,
                max_size=3,
            )
            | JSON
        }
    ),
    JSON,
)


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
@given(damage=DAMAGE)
def test_damaged_mnist_files_are_digits_or_a_sentence(tmp_path: pathlib.Path, damage: Damage) -> None:
    header = struct.pack(">4i", 2051, 3, 28, 28)
    path = tmp_path / "images.gz"
    path.write_bytes(damage.done_to(gzip.compress(header + bytes(3 * 784))))
    stochastic_moving_mnist.read_idx.cache_clear()
    try:
        digits = stochastic_moving_mnist.read_idx(path)
    except UserError as error:
        one_sentence(error)
        assert str(path) in str(error)
    else:
        assert digits.shape == (3, 28, 28)


@MANY
@given(damage=DAMAGE)
def test_a_damaged_array_is_videos_or_a_sentence(tmp_path: pathlib.Path, damage: Damage) -> None:
    path = tmp_path / "mnist_test_seq.npy"
    np.save(path, np.zeros((20, 2, 64, 64), np.uint8))
    path.write_bytes(damage.done_to(path.read_bytes()))
    try:
        count, videos = moving_mnist.read_videos(path)
        frames = list(videos)
    except UserError as error:
        one_sentence(error)
        assert str(path) in str(error)
    else:
        assert count == len(frames) and all(video.shape == (20, 64, 64) for video in frames)
