"""Whatever lies where something is read: a reader returns what it promises, or says one sentence."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import default
from cvae_jax import config as config_files
from cvae_jax import submission
from cvae_jax.data import datasets
from cvae_jax.data.datasets import frame_folder
from cvae_jax.errors import UserError

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
