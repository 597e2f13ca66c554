"""Bad input to the scripts: exit status 2, one sentence, no traceback, and files stay as they were.

CVAE_BAD_INPUT_TIMES=20 looks at as many times more examples.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from unittest import mock

import pytest
import warm
from flax.traverse_util import flatten_dict
from helpers import ROOT, tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from small_model import SmallCVAE

from cvae_jax import config as config_files
from cvae_jax import defaults, models
from cvae_jax.config import Components
from cvae_jax.data import datasets
from cvae_jax.data.clips import data_hash
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.workdir import DATA_FILE, FRAMES_FILE, METRICS_FILE
from cvae_jax.train import open_run
from cvae_jax.training.checkpoint import Checkpoints, Progress
from cvae_jax.training.checkpoint_folder import RESUMED_FILE
from cvae_jax.training.state import TrainState

TIMES_MORE = int(os.environ.get("CVAE_BAD_INPUT_TIMES", "1"))  # multiplies the number of examples
TEMPLATE = defaults.get_config()
FIELDS = list(flatten_dict(TEMPLATE.to_dict()))
LOCK = ".lock"  # stays in a folder that a script has held
NAN, INFINITE = math.nan, math.inf


def examples(number, **options):
    return settings(
        max_examples=number * TIMES_MORE,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )


def tree(folder):
    """The names and contents of everything in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != LOCK
    }


# Values of fields


def type_of(path):
    section = TEMPLATE
    for name in path[:-1]:
        section = section[name]
    return section.get_type(path[-1]), section[path[-1]]


def changed(path, value):
    values = TEMPLATE.to_dict()
    section = values
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    return ConfigDict(values)


SENSELESS = {
    int: [-1, 10**30, -(10**30), 2**32, 1.5, NAN, "3", "", True, (1,)],
    float: [-1e-9, 1e39, -1e300, NAN, INFINITE, -INFINITE, 10**400, "1.0", True, (1.0,)],
    bool: [0, 1.0, "True", NAN, ()],
    str: ["\0", 3, NAN, True, ("a",)],
    tuple: [(), (0, 8), (-8, 8), (8.5, 8), ("8", "8"), (NAN, 8), (True, 8), (10**30, 10**30), 8, "8"],
}
FREE_TEXTS = {("name",), ("data", "dir"), ("data", "cache")}


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_senseless_value_of_any_field_is_refused_by_the_fields_name(path):
    kind, default = type_of(path)
    values = SENSELESS[kind] + ([None] if default is not None else [])
    if kind is str and path not in FREE_TEXTS | {("data", "reference")}:  # the loader checks that one
        values = [*values, "no such name"]
    if path == ("profile_steps",):
        values = [value for value in values if value not in ((), (0, 8))]  # which trace no steps, and eight
    for value in values:
        with pytest.raises(UserError) as caught:
            Components.build(changed(path, value))
        assert re.search(rf"config\.{re.escape('.'.join(path))}\b", str(caught.value)), (value, caught.value)
        assert "\n" not in str(caught.value)


OF_TYPE = {
    int: st.integers(-2, 300) | st.integers() | st.sampled_from([2**31 - 1, 2**31, 2**32 - 1]),
    float: st.floats() | st.floats(-1, 20),
    bool: st.booleans(),
    str: st.sampled_from(["", "..", "/", "no such name"]) | st.text(max_size=6),
    tuple: st.lists(st.integers(-1, 70) | st.integers() | st.floats(), max_size=4).map(tuple),
}


FIELD_AND_VALUE = st.sampled_from(FIELDS).flatmap(
    lambda path: st.tuples(st.just(path), OF_TYPE[type_of(path)[0]])
)


@examples(60)
@given(field=FIELD_AND_VALUE)
def test_any_value_of_a_fields_type_opens_a_run_or_is_refused_by_the_fields_name(
    small_model, data, tmp_path_factory, field
):
    path, value = field
    workdir = tmp_path_factory.mktemp("w") / "run"
    try:
        config = changed(path, value)
        if path not in [("clip_length",), ("n_past",)]:
            config.clip_length = 4  # of recordings with 5 to 18 frames
        run = open_run(config, workdir)
    except UserError as error:
        message = str(error)
        assert re.search(rf"config\.{re.escape('.'.join(path))}\b", message), (value, message)
        assert "\n" not in message and not workdir.exists()
    else:
        run.resources.close()


# Scripts


@pytest.fixture(scope="module")
def scripts():
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "scripts")))
    yield warm.Scripts()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    load(folder)
    return folder


def load(cache):
    return datasets.load("real_clips", data_dir=None, cache_dir=str(cache), frame_size=None)


@pytest.fixture(scope="module")
def good(tmp_path_factory, cache):
    """The workdir of a run with one checkpoint, of an untrained model."""
    workdir = tmp_path_factory.mktemp("good") / "run"
    config = tiny_config()
    config.data.cache = str(cache)
    recordings = load(cache)["train"]
    with mock.patch.dict(models.KINDS, cvae=SmallCVAE):
        parts = Components.build(config)
    size = recordings[0].frames.shape[1:3]
    state = TrainState.create(init_variables(parts.model, 0, size, None), parts.optimizer)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(3, state, Progress(1), {"val_psnr_prior": 1.0})
        checkpoints.wait()
    config_files.save(config, workdir)
    (workdir / DATA_FILE).write_text(data_hash(recordings) + "\n")
    (workdir / FRAMES_FILE).write_text(json.dumps(list(size)))
    (workdir / METRICS_FILE).write_text('{"epoch": 0, "step": 3}\n')
    return workdir


@pytest.fixture(scope="module")
def config_file(good):
    """A config file for training in the workdir of `good`."""
    path = good.parent / "mine.py"
    path.write_text(
        "from pathlib import Path\n"
        "from cvae_jax import config, defaults\n\n\n"
        f"def get_config():\n    return config.load(Path({str(good)!r}), defaults.get_config())\n"
    )
    return path


@pytest.fixture
def start(scripts, config_file, tmp_path):
    """Starts a script of a run on a workdir; returns its sentence, or None where it began to work.

    Files below the test's folder must then be as before.
    """

    def run(script, workdir, *flags):
        own = {"train": [f"--config={config_file}"], "generate": ["--clip=star_jump"]}.get(script, [])
        before = tree(tmp_path)
        done = scripts.run(script, *own, f"--workdir={workdir}", *flags, cwd=tmp_path)
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode == warm.REACHED:
            return None
        assert done.returncode == 2 and done.stdout == "", done
        (sentence,) = sentences(done.stderr)
        assert tree(tmp_path) == before
        return sentence

    return run


def sentences(stderr):
    settings, *rest = stderr.splitlines()
    assert settings.startswith("CPU settings:")
    lines = [line for line in rest if line.strip()]
    assert all(line.startswith("error: ") for line in lines)
    return lines


RUN_SCRIPTS = ["train", "evaluate", "generate", "export"]


@pytest.mark.parametrize("script", RUN_SCRIPTS)
def test_the_good_workdir_is_accepted(start, good, tmp_path, script):
    shutil.copytree(good, tmp_path / "w")
    assert start(script, tmp_path / "w") is None


@pytest.mark.parametrize("script", RUN_SCRIPTS)
def test_a_workdir_that_is_none(start, tmp_path, script):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", "empty", "file", "file/below", "x" * 300):
        if script != "train" or not {"nowhere", "empty"} & {name}:  # a run begins there
            assert start(script, tmp_path / name)


CONTENT = st.sampled_from(
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]\n",
        b"null\n",
        b"3\n",
        b'{"epoch": null}\n',
        b'{"epoch": 0}\ngarbage\n',
        b"[" * 9999,
    ]
) | st.binary(max_size=20)
FILES = [config_files.FILE, METRICS_FILE, FRAMES_FILE, RESUMED_FILE, DATA_FILE]


@examples(10)
@given(script=st.sampled_from(RUN_SCRIPTS), file=st.sampled_from(FILES), content=CONTENT)
def test_a_file_of_a_workdir_with_other_content(start, good, tmp_path, script, file, content):
    shutil.rmtree(tmp_path / "w", ignore_errors=True)
    shutil.copytree(good, tmp_path / "w")
    (tmp_path / "w" / file).write_bytes(content)
    sentence = start(script, tmp_path / "w", *(["--resume_from=3"] if script == "train" else []))
    assert sentence is None or str(tmp_path / "w") in sentence


@pytest.mark.parametrize(
    "script, file, named",
    [
        ("train", METRICS_FILE, "Line 2 of"),
        ("evaluate", METRICS_FILE, "Line 2 of"),
        ("train", RESUMED_FILE, RESUMED_FILE),
        ("train", DATA_FILE, "other data"),
        ("evaluate", config_files.FILE, config_files.FILE),
    ],
)
def test_what_is_damaged_is_refused_before_the_work(start, good, tmp_path, script, file, named):
    shutil.copytree(good, tmp_path / "w")
    (tmp_path / "w" / file).write_text('{"epoch": 0}\ngarbage\n{"epoch": 1}\n')
    sentence = start(script, tmp_path / "w", *(["--resume_from=5"] if file == RESUMED_FILE else []))
    assert sentence is not None and named in sentence


@examples(6)
@given(
    path=st.sampled_from(FIELDS),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
)
def test_a_stored_field_with_another_value(start, good, tmp_path, path, value):
    shutil.rmtree(tmp_path / "w", ignore_errors=True)
    shutil.copytree(good, tmp_path / "w")
    stored = json.loads((good / config_files.FILE).read_text())
    section = stored
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    (tmp_path / "w" / config_files.FILE).write_text(json.dumps(stored))
    start("evaluate", tmp_path / "w")


FLAGS = {
    "train": {
        "--config=nowhere.py": "nowhere.py",
        "--config.seeed=1": "config.seed",
        "--config.batch_size=x": "batch_size",
        "--config.num_epochs=-1": "config.num_epochs",
        "--config.learning_rate.peak=nan": "config.learning_rate.peak",
        "--config.seed=1": "config.seed is 1 but was 0",
        "--config.model.kind=svg": "config.model.kind",
        "--config.data.cache=taken/cache": "taken/cache",
        "--resume_from=4": "--resume_from is 4",
        "--resume_from=x": "resume_from",
        "--extent": "extent",
        "word": "'word' is not a flag",
    },
    "evaluate": {
        "--workdir=": "--workdir is missing",
        "--checkpoint=4": "no checkpoint '4'",
        "--checkpoint=\u00b2": "no checkpoint '\u00b2'",
        "--checkpoint=../3": "no checkpoint '../3'",
        "--split=test": "no split 'test'",
        "--split=train": "split",
        "--split=": "split",
        "--config.model.cvae.frame_features=16": "another model",
        "--config.model.kind=multiscale": "cannot be restored",
        "--config.eval.samples=0": "config.eval.samples",
        "--config.eval.temperature=inf": "config.eval.temperature",
        "--config.data.frame_size=(1,)": "config.data.frame_size",
        "--config.data.name=nothing": "nothing",
        "--config.data.cache=taken/cache": "taken/cache",
    },
    "generate": {
        "--clip=nobody": "--clip=nobody",
        "--samples=0": "--samples",
        "--samples=x": "samples",
        "--fps=nan": "--fps",
        "--fps=0": "--fps",
        "--temperature=-1": "--temperature",
        "--seed=-1": "--seed",
        "--out=taken": "taken",
        "--out=taken/below": "taken/below",
        "--checkpoint=4": "no checkpoint '4'",
        "--first=taken": "--labels",
        "--csv=x.csv": "--clip",
    },
    "export": {
        "--checkpoint=4": "no checkpoint '4'",
        "--out=taken": "taken is a file",
        "--out=taken/below": "taken/below",
        "--out=w": "holds other files",
        "word": "'word' is not a flag",
    },
}


@pytest.mark.parametrize("script", RUN_SCRIPTS)
def test_unusable_flags(start, good, tmp_path, script):
    shutil.copytree(good, tmp_path / "w")
    (tmp_path / "taken").write_text("x")
    for flag, named in FLAGS[script].items():
        sentence = start(script, tmp_path / "w", flag)
        assert sentence is not None and named in sentence, (flag, sentence)


@examples(4)
@given(
    place=st.floats(0, 0.999), number=st.integers(0, 4), kind=st.sampled_from(["cut", "changed", "missing"])
)
def test_a_damaged_cache_of_data(start, good, cache, tmp_path, place, number, kind):
    for name, source in (("w", good), ("cache", cache)):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        shutil.copytree(source, tmp_path / name)
    files = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    victim = files[number % len(files)]
    content = victim.read_bytes()
    middle = int(place * len(content))
    if kind == "missing":
        victim.unlink()
    else:
        victim.write_bytes(content[:middle] + (b"" if kind == "cut" else b"?" + content[middle + 1 :]))
    sentence = start("train", tmp_path / "w", f"--config.data.cache={tmp_path / 'cache'}")
    assert sentence is None or "delete that folder" in sentence or "trained on other data" in sentence


def test_a_checkpoint_of_another_config(start, good, tmp_path):
    shutil.copytree(good, tmp_path / "w")
    config = json.loads((tmp_path / "w" / config_files.FILE).read_text())
    config["model"]["cvae"]["latent_channels"] = 8
    (tmp_path / "w" / config_files.FILE).write_text(json.dumps(config))
    assert "another model" in start("evaluate", tmp_path / "w")
    assert "config.model.cvae.latent_channels is 4 but was 8" in start("train", tmp_path / "w")


STUDY = {
    "--config.seeds=0": "config.seeds",
    "--config.seeds=4294967296": "config.seeds",
    "--config.seeds=x": "seeds",
    "--config.variants=()": "config.variants",
    "--config.variants=('nothing',)": "config.variants",
    "--config.split=nothing": "config.split",
    "--config.split=test": "no split 'test'",
    "--config.compare=nothing": "config.compare",
    "--config.figures.course=('nothing',)": "config.figures.course",
    "--config.base.batch_size=0": "config.batch_size",
    "--config.base.learning_rate.peak=nan": "config.learning_rate.peak",
    "--config.base.wandb=True": "config.base.wandb",
    "--config.base.sed=1": "config.base.seed",
}


def test_a_study(scripts, cache, tmp_path):
    own = [f"--config={ROOT / 'configs' / 'study_reduced.py'}", "--config.base.data.name=real_clips"]
    own += ["--config.base.data.frame_size=(64, 32)", f"--config.base.data.cache={cache}", "--workdir=s"]
    for flag, named in STUDY.items():
        done = scripts.run("study", *own, flag, cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done
        (sentence,) = sentences(done.stderr)
        assert named in sentence and not tree(tmp_path), (flag, sentence)


PREPARE = {
    ("--out=o",): "--video is missing",
    ("--video=v.mp4",): "--out is missing",
    ("--video=nowhere.mp4", "--out=o"): "nowhere.mp4",
    ("--video=v.mp4", "--out=o"): "v.mp4",
    ("--video=v.mp4", "--out=o", "--fps=nan"): "fps",
    ("--video=v.mp4", "--out=o", "--fps=x"): "fps",
    ("--video=v.mp4", "--out=o", "--validation=2"): "validation",
    ("--video=v.mp4", "--out=o", "--crop=1,2"): "crop",
    ("--video=v.mp4", "--out=o", "--frame_size=0,0"): "frame_size",
    ("--video=v.mp4", "--out=o", "--margin=-1"): "margin",
    ("--video=v.mp4", "--out=v.mp4"): "v.mp4",
}


def test_preparing_a_video(scripts, tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"no video")
    before = tree(tmp_path)
    for flags, named in PREPARE.items():
        done = scripts.run("prepare", *flags, cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr, (flags, done)
        (sentence,) = [line for line in done.stderr.splitlines() if line.strip()]
        assert sentence.startswith("error: ") and named in sentence, (flags, sentence)
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "script, flags, named",
    [
        ("train", ["--config.optimizer.b1=nan", "--workdir=w"], "config.optimizer.b1"),
        ("evaluate", ["--workdir=w"], "There is no run in w"),
        ("generate", ["--workdir=taken/w", "--clip=x"], "There is no run in taken/w"),
        ("study", ["--config.seeds=-1", "--workdir=w"], "config.seeds"),
        ("prepare", ["--video=taken", "--out=w"], "taken"),
    ],
)
def test_as_a_program_of_its_own(environment, tmp_path, script, flags, named):
    (tmp_path / "taken").write_text("x")
    own = [f"--config={ROOT / 'configs' / 'study.py'}"] if script == "study" else []
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{script}.py"), *own, *flags],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stdout == "", done
    lines = [line for line in done.stderr.splitlines() if not line.startswith("CPU settings:")]
    assert len(lines) == 1 and named in lines[0]
    assert list(tree(tmp_path)) == ["taken"]
