"""The Python API: what a loaded run does, compared with the scripts; docs/python.md, literally."""

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import ROOT, moving_square, tiny_config

import cvae_jax
from cvae_jax import config as config_files
from cvae_jax.config import Components
from cvae_jax.data.datasets import bair, real_clips
from cvae_jax.data.pose import draw_pose
from cvae_jax.evaluation.scores import Scorer
from cvae_jax.generation import generate as generation
from cvae_jax.generation.samples import check_sampling
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime import platform
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.workdir import FRAMES_FILE, METRICS_FILE
from cvae_jax.training.checkpoint import Checkpoints, Progress
from cvae_jax.training.state import TrainState

pytestmark = pytest.mark.usefixtures("small_model")

SIZE = (16, 12)


def config_of(n_past=1, noise_correlation=0.0, **data):
    config = tiny_config()
    config.n_past, config.model.cvae.history = n_past, n_past - 1
    config.optimizer.ema_decay = 0.0
    config.eval.noise_correlation = noise_correlation
    config.data.update(data)
    return config


def save_run(folder, config, size=SIZE, label_size=None, steps=(7,)):
    """A run under whose weights noise, label and previous frame show in every frame."""
    parts = Components.build(config)
    variables = init_variables(parts.model, 0, size, label_size)
    params = variables["params"]
    params["generator"]["layer_7"]["kernel"] *= 1.5
    params["decoder_fusion"]["layer_5"]["kernel"] *= 2.0
    config_files.save(config, folder)
    (folder / FRAMES_FILE).write_text(json.dumps(size))
    with Checkpoints(folder, keep=len(steps)) as checkpoints:
        for step in steps:
            state = TrainState.create(variables, parts.optimizer)
            checkpoints.save(step, state, Progress(1), {"val_psnr_prior": float(-step)})
    return variables


@pytest.fixture
def workdir(tmp_path):
    save_run(tmp_path / "run", config_of())
    return tmp_path / "run"


@pytest.fixture
def run(workdir):
    return cvae_jax.load(workdir)


def clip(number=3, length=6):
    return moving_square("p", length, number)


def apart(one, other):
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    return np.abs(one.astype(int) - other.astype(int)).max()


# The package


def test_importing_the_package_imports_no_jax():
    program = (
        "import sys, cvae_jax\n"
        "assert {'load', 'Run', 'UserError', '__version__'} <= set(dir(cvae_jax)) & set(cvae_jax.__all__)\n"
        "cvae_jax.UserError, cvae_jax.__version__, hasattr(cvae_jax, 'no_such_name')\n"
        "print([name for name in ('jax', 'numpy', 'cvae_jax.run') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_names_of_the_package_are_those_of_its_modules():
    from cvae_jax import run as module  # the submodule, which `load` imports

    assert cvae_jax.load is module.load and cvae_jax.Run is module.Run
    assert cvae_jax.UserError is UserError
    with pytest.raises(AttributeError, match="no attribute 'lead'"):
        cvae_jax.lead


QUIET = """
import os
import jax  # the user has imported it, and computed nothing
import numpy as np
from small_model import SmallCVAE
from cvae_jax import models
models.KINDS["cvae"] = SmallCVAE
import cvae_jax
run = cvae_jax.load("run")
os.chdir("/")
video = run.predict(np.zeros((16, 12, 3), np.uint8), np.zeros((3, 16, 12, 3), np.uint8))
run.reconstruct(video[0], np.zeros((3, 16, 12, 3), np.uint8))
print(video.shape, run.metrics, run.protocol)
print(os.environ["XLA_FLAGS"])
print(jax.config.jax_compilation_cache_dir)
"""


def test_nothing_is_printed_and_the_users_settings_are_kept(workdir, tmp_path):
    names = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    more = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    more |= {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [sys.executable, "-c", QUIET], cwd=tmp_path, env=clean | more, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    printed, flags, cache = done.stdout.splitlines()
    assert printed == "(1, 3, 16, 12, 3) [] None"
    assert flags.startswith(more["XLA_FLAGS"] + " --xla_cpu") and flags.count("optimization_level") == 1
    assert cache == str(next((tmp_path / "cvae_jax").glob("xla-*")))


def test_a_home_that_cannot_be_written_is_no_reason_to_print(workdir, monkeypatch, tmp_path, capsys):
    (tmp_path / "cvae_jax").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    platform.prepare(quiet=True)
    assert capsys.readouterr() == ("", "")


# Loading


def test_checkpoints_are_chosen_by_name_or_step(tmp_path):
    save_run(tmp_path, config_of(), steps=(3, 5, 8))
    found = {which: cvae_jax.load(tmp_path, which).step for which in ("best", "last", 5, "5")}
    assert found == {"best": 3, "last": 8, 5: 5, "5": 5}
    assert cvae_jax.load(str(tmp_path)).step == 3
    with pytest.raises(UserError, match="no checkpoint '4' in .*; choose .* of the steps 3, 5, 8"):
        cvae_jax.load(tmp_path, 4)


def test_what_is_not_there_is_a_sentence(workdir, tmp_path):
    with pytest.raises(UserError, match=r"There is no run in .*nowhere \(config.json is missing\); give"):
        cvae_jax.load(tmp_path / "nowhere")
    config_files.save(config_of(), tmp_path / "new")
    (tmp_path / "new" / FRAMES_FILE).write_text(json.dumps(SIZE))
    with pytest.raises(UserError, match="There is no checkpoint in .*new"):
        cvae_jax.load(tmp_path / "new")


def test_what_a_run_knows(run, workdir):
    assert run.frame_size == SIZE and run.step == 7 and run.workdir == workdir
    assert run.config.n_past == 1 and "step 7, frames of 16 x 12 pixels" in repr(run)
    assert run.protocol is None and run.metrics == []
    rows = [{"epoch": 0, "train_loss": 2.0}, {"epoch": 1, "train_loss": 1.0}]
    (workdir / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workdir / "eval").mkdir()
    (workdir / "eval" / "results.json").write_text(json.dumps({"protocol": {"split": "test"}}))
    assert run.metrics == rows and run.protocol == {"split": "test"}
    (workdir / "eval" / "results.json").write_text("{")
    with pytest.raises(UserError, match="results.json is not whole"):
        run.protocol


def test_the_arrays_are_those_of_the_averaged_parameters(tmp_path):
    config = config_of()
    config.optimizer.ema_decay = 0.5
    variables = save_run(tmp_path, config)
    restored = cvae_jax.load(tmp_path)._restored((*SIZE, 3))
    jax.tree.map(np.testing.assert_array_equal, restored["params"], variables["params"])


# Videos


@pytest.mark.parametrize(("n_past", "noise_correlation"), [(1, 0.0), (2, 0.9)])
def test_videos_are_those_of_the_scripts(data, tmp_path, monkeypatch, n_past, noise_correlation):
    """Of generate.py and of evaluation's posterior, for a clip that is not the first of its split."""
    config = config_of(n_past, noise_correlation)
    variables = save_run(tmp_path, config)
    run = cvae_jax.load(tmp_path)
    recording = data["validation"][1]
    given = recording.frames[:n_past]
    shown = {}
    monkeypatch.setattr(generation.figures, "save_gif", lambda path, columns, fps: shown.update(columns))
    for module, name in ((generation.video, "save_mp4"), (generation.figures, "save_strip")):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    request = generation.Request(clip="d", samples=2, seed=5, temperature=0.7)
    generation.generate(config, tmp_path, request, jax.local_devices()[:1])
    videos = run.predict(given, recording.labels, samples=2, seed=5, temperature=0.7, index=1)
    np.testing.assert_array_equal(videos, np.stack([shown["sample 0"], shown["sample 1"]]))
    np.testing.assert_array_equal(videos[:, :n_past], np.stack([given, given]))
    assert apart(*videos) > 3
    assert apart(run.predict(given, recording.labels, seed=5, temperature=0.7)[0], videos[0]) > 3

    streamed = list(run.stream(given, recording.labels, seed=5, temperature=0.7, index=1))
    assert apart(np.stack(streamed), videos[0]) <= 1

    parts = Components.build(config)
    scorer = Scorer(
        parts.model,
        parts.objective,
        Devices(jax.local_devices()[:1]),
        n_past=n_past,
        batch_size=2,
        chunk=32,
        noise_correlation=noise_correlation,
    )
    _, scored = scorer.run(variables, data["validation"], "posterior", 5)
    again = run.reconstruct(recording.frames, recording.labels, seed=5, index=1)
    assert apart(again[n_past:], scored.frames) <= 1
    np.testing.assert_array_equal(again[:n_past], given)


def test_a_sample_does_not_depend_on_how_many_there_are_or_on_devices(run, workdir):
    recording = clip()
    three = run.predict(recording.frames[0], recording.labels, samples=3)
    one = run.predict(recording.frames[:1], recording.labels)
    assert three.shape == (3, 6, *SIZE, 3) and apart(three[:1], one) <= 1
    assert min(apart(three[a], three[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 3
    spread = cvae_jax.load(workdir, devices=jax.local_devices()[:2])
    assert apart(spread.predict(recording.frames[0], recording.labels, samples=3), three) <= 1
    assert apart(np.stack(list(spread.stream(recording.frames[0], recording.labels))), three[0]) <= 1
    cold = run.predict(recording.frames[0], recording.labels, samples=2, temperature=0.0)
    np.testing.assert_array_equal(*cold)


def test_a_stream_takes_a_label_when_its_frame_is_asked_for(run):
    recording, taken, frames = clip(), [], []

    def labels():
        for t, label in enumerate(recording.labels):
            assert len(frames) == t  # all frames before it have been seen
            taken.append(t)
            yield label

    stream = run.stream(recording.frames[0], labels())
    assert taken == []
    for frame in stream:
        frames.append(frame)
        assert len(taken) == len(frames)
        frame[:] = 0  # what is done to a frame changes no later one
    whole = run.stream(recording.frames[0], recording.labels)
    assert len(frames) == 6 and apart(recording.frames[0], next(whole)) == 0
    assert list(run.stream(recording.frames[0], [])) == []


def test_streamed_frames_can_be_written_to_and_are_not_fed_back(run):
    recording = clip()
    (expected,) = run.predict(recording.frames[0], recording.labels)
    first = recording.frames[0].copy()
    for t, frame in enumerate(run.stream(first, iter(recording.labels))):
        assert apart(frame, expected[t]) <= 1
        frame[:] = 0
    np.testing.assert_array_equal(first, recording.frames[0])


def test_programs_are_compiled_once(run, caplog):
    recording, other = clip(3), clip(4)

    def use(recording, seed):
        run.predict(recording.frames[0], recording.labels, samples=2, seed=seed, temperature=1.0 + seed)
        list(run.stream(recording.frames[0], recording.labels[: 4 + seed], seed=seed))
        run.reconstruct(recording.frames, recording.labels, seed=seed)

    def compiled():
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            yield
        yield [record.message for record in caplog.records if "Compiling" in record.message]

    for seed, recording in ((0, recording), (1, other)):
        logged = compiled()
        next(logged)
        use(recording, seed)
        found = next(logged)
        assert bool(found) == (seed == 0), found


def test_progress_is_shown_on_request(run, capsys):
    recording = clip()
    run.predict(recording.frames[0], recording.labels)
    run.reconstruct(recording.frames, recording.labels)
    assert capsys.readouterr() == ("", "")
    run.predict(recording.frames[0], recording.labels, progress=True)
    assert "frame" in capsys.readouterr().err


@pytest.mark.parametrize("known", [True, False], ids=["declared", "from the first labels"])
@pytest.mark.parametrize("size", [0, bair.Options().label_size])
def test_labels_that_are_vectors_or_none(tmp_path, monkeypatch, size, known):
    """Of a data set that says how long they are, and of one that does not."""
    assert bair.Options().label_size > 0
    name = "real_clips" if not known else "bair" if size else "stochastic_moving_mnist"
    undeclared = dataclasses.replace(real_clips.DATA_SET, image_labels=False, poses=None)
    monkeypatch.setattr(real_clips, "DATA_SET", undeclared)
    save_run(tmp_path, config_of(name=name), label_size=size)
    run = cvae_jax.load(tmp_path)
    frames = clip().frames
    labels = np.random.default_rng(0).normal(size=(6, size))  # float64
    (video,) = run.predict(frames[0], labels)
    assert apart(np.stack(list(run.stream(frames[0], iter(labels)))), video) <= 1
    assert run.reconstruct(frames, labels).shape == video.shape
    if size:
        assert apart(run.predict(frames[0], -labels)[0], video) > 0
        with pytest.raises(UserError, match=rf"labels has the shape \(\); give .* \(T, {size}\)"):
            run.predict(frames[0], 6)
        labels[2, 0] = np.nan
        with pytest.raises(UserError, match="labels has values that are not finite"):
            run.predict(frames[0], labels)
    else:
        np.testing.assert_array_equal(run.predict(frames[0], 6)[0], video)
        assert len(list(run.stream(frames[0], 6))) == 6
        with pytest.raises(UserError, match=r"labels has the shape \(\)"):
            run.predict(frames[0], -1)
    with pytest.raises(UserError, match=rf"labels has the shape \(6, 16, 12, 3\); give .* \(T, {size}\)"):
        run.predict(frames[0], clip().labels)
    with pytest.raises(UserError, match=rf"label 0 has the shape \({size + 1},\); give .* \({size},\)"):
        list(run.stream(frames[0], np.zeros((2, size + 1))))
    with pytest.raises(UserError, match="has no keypoints, so its labels cannot be drawn"):
        run.draw_pose(np.zeros((33, 2)))


def test_an_undeclared_number_of_frames_means_no_labels(tmp_path, monkeypatch):
    undeclared = dataclasses.replace(real_clips.DATA_SET, image_labels=False, poses=None)
    monkeypatch.setattr(real_clips, "DATA_SET", undeclared)
    save_run(tmp_path, config_of(), label_size=0)
    assert cvae_jax.load(tmp_path).predict(clip().frames[0], 4).shape == (1, 4, *SIZE, 3)


# Mistakes


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"first": np.zeros((12, 16, 3), np.uint8)}, r"first has the shape \(12, 16, 3\); give .* \(16, 12"),
        (
            {"first": np.zeros((2, 16, 12, 3), np.uint8)},
            r"first has the shape \(2, 16, 12, 3\); .* \(1, 16, 12",
        ),
        ({"first": np.zeros((16, 12, 3))}, "first has the dtype float64; give uint8 from 0 to 255 .*round"),
        ({"first": np.full((16, 12, 3), 256)}, "first has values from 256 to 256; give values from 0 to 255"),
        ({"first": "first.png"}, "first has the dtype <U9; give an array of numbers"),
        ({"first": None}, "first has the dtype object"),
        ({"labels": np.zeros((6, 5))}, r"labels has the shape \(6, 5\); give .* \(T, 16, 12, 3\)"),
        ({"labels": 6}, r"labels has the shape \(\); give an array of shape \(T, 16, 12, 3\)"),
        ({"labels": [[1], [1, 2]]}, "The entries of labels differ in shape; give one array"),
        ({"labels": np.zeros((1, 16, 12, 3), np.uint8)}, "labels has the length 1; give one label per frame"),
        ({"labels": np.zeros((0, 16, 12, 3), np.uint8)}, "labels has the length 0; .* n_past=1 context"),
        ({"labels": np.full((6, 16, 12, 3), -1)}, "labels has values from -1 to -1"),
        ({"samples": 0}, "^samples is 0; give a whole number of at least 1"),
        ({"seed": -1}, "^seed is -1; give a whole number from 0 and below"),
        ({"index": 2**32}, "^index is 4294967296"),
        ({"temperature": float("inf")}, "^temperature is inf; give a finite number"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(run, changed, sentence):
    arguments = {"first": clip().frames[0], "labels": clip().labels} | changed
    with pytest.raises(UserError, match=sentence) as refused:
        run.predict(**arguments)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


@pytest.mark.parametrize("numbers", [(1.5, 0, 1.0), (1, "a", 1.0), (1, 0, None), (1, 0, 1.0, None)])
def test_arguments_of_another_type_are_refused(numbers):
    """Under pytest, the annotations of `predict` are checked before."""
    with pytest.raises(UserError, match="; give a "):
        check_sampling(*numbers)


def test_a_mistake_in_a_stream_is_refused_at_once_and_one_in_a_label_with_it(run):
    frames, labels = clip().frames, clip().labels
    for arguments, sentence in (
        ((frames[0, 1:], labels), "first has the shape"),
        ((frames[0], labels, -1), "seed is -1"),
        ((frames[0], None), "labels is a NoneType; give an array or an iterator of labels"),
    ):
        with pytest.raises(UserError, match=sentence):
            run.stream(*arguments)
    stream = run.stream(frames[0], [labels[0], labels[1], labels[2, 1:]])
    next(stream), next(stream)
    with pytest.raises(UserError, match=r"label 2 has the shape \(15, 12, 3\); give .* \(16, 12, 3\)"):
        next(stream)


def test_reconstructions_need_as_many_labels_as_frames(run):
    with pytest.raises(UserError, match="frames and labels have the lengths 6 and 5; give equal ones"):
        run.reconstruct(clip().frames, clip().labels[:5])
    with pytest.raises(UserError, match=r"frames has the shape \(16, 12, 3\); give .* \(T, 16, 12, 3\)"):
        run.reconstruct(clip().frames[0], clip().labels)


# Poses


def test_poses_are_drawn_in_the_size_of_the_frames(run):
    poses = next(iter(real_clips.read_keypoints().values()))[:3]
    poses[1, 0] = np.nan
    drawn = run.draw_pose(poses)
    assert drawn.shape == (3, *SIZE, 3) and drawn.dtype == np.uint8 and drawn.any(axis=(1, 2, 3)).all()
    for pose, label in zip(poses, drawn, strict=True):
        np.testing.assert_array_equal(label, draw_pose(pose, frame_size=SIZE))
        np.testing.assert_array_equal(label, run.draw_pose(pose.tolist()))
    assert run.draw_pose(poses[:0]).shape == (0, *SIZE, 3)
    for wrong, sentence in (
        (poses[0, :17], r"keypoints has the shape \(17, 2\); give an array of shape \(33, 2\)"),
        (poses[None], r"keypoints has the shape \(1, 3, 33, 2\); give an array of shape \(T, 33, 2\)"),
        (poses * 64, "keypoints has values up to .*; give x and y as fractions"),
    ):
        with pytest.raises(UserError, match=sentence):
            run.draw_pose(wrong)


# The page


def test_the_code_of_the_page_works(tmp_path, monkeypatch, capsys):
    """In order, in one namespace, beside a run on the embedded clips."""
    config = config_of(cache=str(tmp_path / "cache"))
    save_run(tmp_path / "runs" / "demo", config, real_clips.FRAME_SIZE)
    row = {"epoch": 0, "val_psnr_prior": 20.0}
    (tmp_path / "runs" / "demo" / METRICS_FILE).write_text(json.dumps(row) + "\n")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "step 7, frames of 64 x 32 pixels" in printed and "(3, 20, 64, 32, 3) uint8" in printed
    assert "first has the shape (1, 32, 32, 3); give an array of shape (1, 64, 32, 3)." in printed
    assert (tmp_path / "video.gif").stat().st_size > 0 and 1 < len(namespace["frames"]) <= 31
