"""The folder that export.py writes: what is in it, what is refused, and that every model can be converted."""

import base64
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import moving_square, tiny_config
from PIL import Image

from cvae_jax import models
from cvae_jax.data.clips import Recording
from cvae_jax.data.datasets import real_clips
from cvae_jax.models.interface import init_variables
from cvae_jax.puppet import converter, export, scenes
from cvae_jax.runtime.errors import UserError

SIZE = (64, 32)
CHECKED = {"inputs": ["frame", "label", "noise"], "changing": [], "has_latent": True}


def decoded(packed):
    assert packed["dtype"] == "float32"
    return np.frombuffer(base64.b64decode(packed["data"]), "<f4").reshape(packed["shape"])


def images_of(sheet, size=SIZE):
    """The images of a sheet, as arrays.js reads them."""
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["url"].split(",")[1]))).convert("RGB"))
    (height, width), columns = size, sheet["columns"]
    places = [divmod(number, columns) for number in range(sheet["count"])]
    return np.stack([image[r * height : (r + 1) * height, c * width : (c + 1) * width] for r, c in places])


def script_value(path: Path, name: str):
    """The constant that a script of the page sets in its first line."""
    line = path.read_text(encoding="utf-8").split("\n", 1)[0]
    assert line.startswith(f"globalThis.{name} = ") and line.endswith(";")
    return json.loads(line.removeprefix(f"globalThis.{name} = ")[:-1])


@pytest.fixture
def untrained(monkeypatch):
    """Every checkpoint holds initial variables."""

    def restore(model, workdir, which, frame_size, label_size, averaged):
        return init_variables(model, 0, frame_size, label_size), 12, None

    monkeypatch.setattr(export, "restore_for_evaluation", restore)


@pytest.fixture
def no_converter(monkeypatch, tmp_path):
    """Nothing is converted; the runtime is three small files for each backend."""
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    for files in converter.RUNTIME_FILES.values():
        for file in files:
            (runtime / file).write_bytes(f"// {file}".encode())
    monkeypatch.setattr(converter, "prepare", lambda: None)
    monkeypatch.setattr(converter, "runtime_folder", lambda: runtime)

    def convert(files):
        assert set(files) == {"model.json", "variables.npz", "check.npz"}
        return b"network", {**CHECKED, "difference": 2e-7}

    monkeypatch.setattr(converter, "convert", convert)


def clips_config():
    config = tiny_config()
    config.model.kind = "multiscale"
    config.name = "a <name>"
    return config


def test_the_folder_holds_all_that_the_page_needs(tmp_path, untrained, no_converter):
    out = tmp_path / "puppet"
    found = export.export(clips_config(), tmp_path, "last", out)
    assert found["difference"] == 2e-7
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "a &lt;name&gt;" in page and "{{" not in page
    scripts = [line.split('"')[1] for line in page.splitlines() if "<script src" in line]
    assert all((out / script).is_file() for script in [*scripts, "style.css"])
    assert "http" not in page.replace("http-equiv", "")
    assert base64.b64decode(script_value(out / "weights.js", "PUPPET_MODEL")) == b"network"
    for backend, (script, glue, program) in converter.RUNTIME_FILES.items():
        runtime = script_value(out / f"runtime_{backend}.js", "PUPPET_RUNTIME")
        assert runtime["glue"] == f"// {glue}"
        assert gzip.decompress(base64.b64decode(runtime["program"])) == f"// {program}".encode()
        assert (out / f"runtime_{backend}.js").read_text().endswith(f"// {script}")


def test_the_data_are_those_of_the_run(tmp_path, untrained, no_converter):
    out = tmp_path / "puppet"
    config = clips_config()
    export.export(config, tmp_path, "last", out)
    data = script_value(out / "data.js", "PUPPET")
    assert data["label"] == {"kind": "pose", "size": None, "ranges": None}
    assert data["masks"] == ["context"] and data["sees_previous"] is False
    assert [scene["name"] for scene in data["scenes"]][0] == "star_jump"  # the largest person
    recordings = real_clips.load(data_dir=None, cache_dir=str(tmp_path / "cache"), frame_size=None)
    for scene in data["scenes"]:
        own = {split: [r for r in found if r.scene == scene["name"]] for split, found in recordings.items()}
        first = own["validation"][0]
        np.testing.assert_allclose(decoded(scene["frame"])[0], first.frames[0] / 255, atol=1e-6)
        clip = scene["clips"][0]
        assert (clip["name"], clip["length"]) == (first.name, len(first.frames))
        assert decoded(clip["keypoints"]).shape == (clip["length"], len(data["skeleton"]["joints"]), 2)
        train = scene["train"]
        labels = np.concatenate([r.labels for r in own["train"]])
        frames = np.concatenate([r.frames for r in own["train"]])
        assert train["count"] == train["of"] == len(labels)
        np.testing.assert_array_equal(images_of(train["labels"]), labels)
        assert np.abs(images_of(train["frames"]).astype(int) - frames).mean() < 5


@pytest.mark.parametrize("labels", ["image", "vector", "none"])
def test_data_without_poses(labels, tmp_path, untrained, no_converter, monkeypatch):
    rng = np.random.default_rng(0)
    recording = moving_square("a", 5, 1, (16, 12))
    others = {"vector": rng.normal(size=(5, 2)), "none": np.zeros((5, 0))}
    if labels != "image":
        own = others[labels].astype(np.float32)
        recording = Recording("square", "a", 0, recording.frames, own)
    data = {"train": [recording], "validation": [recording]}
    monkeypatch.setattr("cvae_jax.data.datasets.load", lambda *_, **__: data)
    config = clips_config()
    config.data.name = "moving_mnist"
    export.export(config, tmp_path, "last", tmp_path / "puppet")
    data = script_value(tmp_path / "puppet" / "data.js", "PUPPET")
    assert data["label"]["kind"] == labels and data["skeleton"] is None
    clip = data["scenes"][0]["clips"][0]
    if labels == "image":
        np.testing.assert_array_equal(images_of(clip["labels"], (16, 12)), recording.labels)
    else:
        assert "labels" not in clip
    if labels == "vector":
        for (least, most), values in zip(data["label"]["ranges"], recording.labels.T, strict=True):
            assert (least, most) == (min(0, values.min()), max(0, values.max()))


def test_long_training_data_are_shown_in_part():
    recording = moving_square("a", scenes.MOST_FRAMES + 50, 1)
    scene = scenes.scenes_of({"train": [recording], "validation": [moving_square("b", 4, 1)]})[0]
    train = scenes.describe(scene, "image", None)["train"]
    assert (train["count"], train["of"]) == (scenes.MOST_FRAMES, scenes.MOST_FRAMES + 50)


def test_a_long_clip_of_label_images_is_cut_to_what_a_sheet_holds(monkeypatch):
    monkeypatch.setattr(scenes, "LONGEST_SIDE", 40)  # 3 columns of 12 and 2 rows of 16 pixels
    scene = scenes.scenes_of({"validation": [moving_square("a", 9, 1)]})[0]
    clip = scenes.describe(scene, "image", None)["clips"][0]
    assert clip["length"] == clip["labels"]["count"] == 6 and clip["labels"]["columns"] == 3
    np.testing.assert_array_equal(images_of(clip["labels"], (16, 12)), scene.first.labels[:6])


def test_of_many_scenes_the_held_out_ones_with_the_largest_people_are_shown():
    def scene(name, drawn):
        frames = np.zeros((3, 16, 12, 3), np.uint8)
        labels = frames.copy()
        labels[:, :drawn] = 255
        return Recording(name, name, 0, frames, labels)

    train = [scene(f"a{number}", 15) for number in range(scenes.MOST_SCENES)]
    held_out = [scene("y", 3), scene("z", 9)]
    names = [one.name for one in scenes.scenes_of({"train": train, "validation": held_out})]
    assert names[:2] == ["z", "y"] and len(names) == scenes.MOST_SCENES


def test_a_state_that_the_page_cannot_hold_is_refused():
    for good in (np.float32(1), np.arange(3, dtype=np.int32), np.ones(2, bool)):
        assert scenes.packed(np.asarray(good))["dtype"] in scenes.DTYPES
    with pytest.raises(UserError, match="array of float64"):
        scenes.packed(np.zeros(2))


def test_folders_of_others_are_left_alone(tmp_path, untrained, no_converter):
    config = clips_config()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        export.export(config, tmp_path, "last", other)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    (other / export.MARKER).write_text('{"files": 3}')
    with pytest.raises(UserError, match="holds other files"):
        export.export(config, tmp_path, "last", other)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        export.export(config, tmp_path, "last", tmp_path / "file")
    page = tmp_path / "puppet"
    export.export(config, tmp_path, "last", page)
    own = {path.name for path in page.iterdir()}
    listed = json.loads((page / export.MARKER).read_text())
    assert own == {*listed["files"]}
    # An earlier page is replaced, with what only it had; other files stay.
    for name in ("old.js", "mine.txt"):
        (page / name).touch()
    names = [*listed["files"], "old.js", "mine.txt", "../mine.js"]
    (page / export.MARKER).write_text(json.dumps({"files": names}))
    export.export(config, tmp_path, "last", page)
    assert {path.name for path in page.iterdir()} == own | {"mine.txt"}


def test_a_model_that_differs_is_not_written(tmp_path, untrained, no_converter, monkeypatch):
    monkeypatch.setattr(converter, "convert", lambda files: (b"", {**CHECKED, "difference": float("nan")}))
    with pytest.raises(UserError, match="differs from JAX by nan"):
        export.export(clips_config(), tmp_path, "last", tmp_path / "puppet")
    assert not (tmp_path / "puppet").exists()


def test_another_runtime_than_the_expected_one_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho other > {converter.RUNTIME}-{converter.RUNTIME_VERSION}.tgz\n")
    python.chmod(0o755)
    monkeypatch.setenv(converter.CONVERTER.variable, str(tmp_path / "env"))
    with pytest.raises(UserError, match="checksum of onnxruntime-web"):
        converter.runtime_folder()
    assert [path.suffix for path in (tmp_path / "cvae_jax").iterdir()] == [".lock"]


def test_a_failing_converter_says_why(tmp_path, monkeypatch):
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 'ValueError: no such thing' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv(converter.CONVERTER.variable, str(tmp_path / "env"))
    with pytest.raises(UserError, match="Converting the model failed .ValueError: no such thing.*delete"):
        converter.convert({})


KINDS = {
    "cvae": {"output": "residual", "prior": "learned"},
    "multiscale": {"feedback": 1},
    "svg": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["pose", "vector", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_model_is_converted(kind, labels, tmp_path, untrained, monkeypatch):
    """Sets up the converter's environment, which is kept."""
    assert set(KINDS) == set(models.KINDS)
    config = tiny_config()
    config.model.kind = kind
    config.model[kind].update(KINDS[kind])
    recording = moving_square("a", 5, 1, (64, 64))
    if labels != "pose":
        own = np.zeros((5, 4 if labels == "vector" else 0), np.float32)
        recording = Recording("square", "a", 0, recording.frames, own)
    data = {"train": [recording], "validation": [recording]}
    monkeypatch.setattr("cvae_jax.data.datasets.load", lambda *_, **__: data)
    config.data.name = "frame_folder" if labels == "pose" else "moving_mnist"
    found = export.export(config, tmp_path, "last", tmp_path / "puppet")
    assert found["difference"] < 1e-5
