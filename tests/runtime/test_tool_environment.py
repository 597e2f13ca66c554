"""Environments of their own: where they are, and what happens when they cannot be set up."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from cvae_jax.prepare.pose_environment import POSE
from cvae_jax.puppet.converter import CONVERTER
from cvae_jax.runtime import tool_environment
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.tool_environment import ToolEnvironment

TOOLS = (POSE, CONVERTER)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_the_environment_is_where_it_was_asked_for(tool: ToolEnvironment, tmp_path: Path, monkeypatch):
    monkeypatch.delenv(tool.variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tool.folder().parent == tmp_path / "cvae_jax"
    monkeypatch.setenv(tool.variable, str(tmp_path / "mine"))
    assert tool.folder() == tmp_path / "mine"
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=f"mine is not an environment.*{tool.otherwise}"):
        tool.python()


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_requirements_are_pinned(tool: ToolEnvironment):
    lines = [line for line in tool.requirements.read_text().splitlines() if line and line[0] != "#"]
    assert lines and all(line.count("==") == 1 for line in lines)


def test_a_failing_set_up_leaves_nothing_and_names_the_way_out(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(POSE.variable, str(tmp_path / "env"))
    wrong = tmp_path / "requirements.txt"
    wrong.write_text("cvae-jax-is-not-on-the-index==1.0\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    tool = dataclasses.replace(POSE, requirements=wrong, pythons=(sys.version_info[:2],))
    with pytest.raises(UserError, match=r"installing its packages with pip \(.*--keypoints"):
        tool.python()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".env.lock", "requirements.txt"]


def test_a_python_too_new_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    monkeypatch.setattr(tool_environment.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"Python 3\.10, 3\.11 or 3\.12, and this is 3\.15.*--keypoints"):
        POSE.find_python()


def test_of_two_at_once_one_sets_up_and_the_other_waits(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(POSE.variable, str(tmp_path / "env"))
    program = (
        "import time\n"
        "from cvae_jax.prepare.pose_environment import POSE\n"
        "def set_up(self, work, folder, interpreter):\n"
        "    time.sleep(0.5); (work / 'bin').mkdir(parents=True)\n"
        "    (work / 'bin' / 'python').touch(); print('set up')\n"
        "type(POSE)._set_up = set_up\n"
        "print(POSE.python())"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0].split("\n") for process in both]
    assert all(process.returncode == 0 for process in both)
    assert sum(lines.count("set up") for lines in said) == 1
