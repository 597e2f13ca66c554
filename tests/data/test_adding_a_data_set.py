"""What docs/data.md says about adding a data set, done literally in a copy of the repository."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, TINY

TEXT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("## Adding a data set\n")[2]
NAME = "bouncing_ball"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The repository's programs and the document's module, where it says that it belongs."""
    clone = tmp_path_factory.mktemp("clone")
    for folder in ("cvae_jax", "configs"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ("train.py", "evaluate.py"):
        shutil.copy(ROOT / script, clone)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (path,) = re.findall(r"save it as `(.*?)`", TEXT)
    assert path == f"cvae_jax/data/datasets/{NAME}.py"
    (clone / path).write_text(code, encoding="utf-8")
    return clone


def run(clone: pathlib.Path, environment: dict, command: str, *flags: str) -> subprocess.CompletedProcess:
    """Run a command of the document with further flags."""
    program, *arguments = command.split()
    assert program == "python"
    return subprocess.run(
        [sys.executable, *arguments, *flags],
        cwd=clone,
        env=environment | {"PYTHONPATH": str(clone)},
        capture_output=True,
        text=True,
        timeout=400,
    )


def commands() -> list[str]:
    return re.findall(r"^    (python .*)$", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def workdir(clone: pathlib.Path, environment: dict) -> pathlib.Path:
    """The run of the document's command, one epoch of a tiny model."""
    train, _ = commands()
    done = run(clone, environment, train, *TINY, "--config.num_epochs=1", "--config.data.clips_per_epoch=8")
    assert done.returncode == 0, done.stderr[-2000:]
    return clone / "runs" / "ball"


def test_the_documents_data_set_trains(workdir: pathlib.Path) -> None:
    stored = json.loads((workdir / "config.json").read_text())["data"]
    assert stored["name"] == NAME and stored[NAME] == {"seed": 0, "radius": 6.0, "frames": 30}
    assert json.loads((workdir / "frame_size.json").read_text()) == [32, 32]
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_it_is_scored_like_any_other(clone: pathlib.Path, workdir: pathlib.Path, environment: dict) -> None:
    _, evaluate = commands()
    done = run(clone, environment, evaluate, "--checkpoint=last")
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = workdir.glob("eval*/results.json")
    assert {"prior", "mean_frame"} <= {row["name"] for row in json.loads(results.read_text())["rows"]}


def test_its_mistakes_are_refused_as_the_document_says(clone: pathlib.Path, environment: dict) -> None:
    train, _ = commands()
    (flag, sentence) = re.search(r"`(--config\S*)` ends with\s+\"(.*?)\"", TEXT, re.DOTALL).groups()
    refused = {
        flag: " ".join(sentence.split()),
        f"--config.data.{NAME}.seed=-1": f"config.data.{NAME}.seed is -1; give at least 0.",
    }
    for bad, expected in refused.items():
        done = run(clone, environment, train, bad, f"--workdir={clone / 'refused'}")
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert line == f"error: {expected}" and "Traceback" not in done.stderr
    assert not (clone / "refused" / "config.json").exists()
