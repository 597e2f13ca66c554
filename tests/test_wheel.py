"""The wheel, installed where no clone is in sight: complete, and its programs train and evaluate."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, TINY

CONFIG = """
from cvae_jax import defaults


def get_config():
    config = defaults.get_config()
    config.name = "mine"
    config.num_epochs = 1
    config.data.clips_per_epoch = 4  # one batch
    config.eval.best_of = 0
    return config
"""


def files(folder: Path) -> set[str]:
    """The files of a folder but for compiled modules, as relative paths."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder into which the wheel is installed; it is the root of a git repository of somebody else."""
    work = tmp_path_factory.mktemp("wheel")
    source, site = work / "source", work / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cvae_jax", source / "cvae_jax", ignore=ignored)  # building writes beside it
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={work}", source]
    subprocess.run(build, check=True, timeout=120)
    (wheel,) = work.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", f"--target={site}", wheel]
    subprocess.run(install, check=True, timeout=120)
    git = ["git", "-C", site, "-c", "user.name=A", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=theirs"], check=True)
    return site


@pytest.fixture
def run(site, tmp_path):
    """Start a console script in an empty folder, with only the installed package importable."""
    names = ("PYTHONPATH", "GLIBC_TUNABLES")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    environment = clean | {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def started(program: str, *flags: str, cwd: Path = folder) -> subprocess.CompletedProcess:
        command = [sys.executable, *flags] if program == "python" else [str(site / "bin" / program), *flags]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

    started.folder = folder
    return started


def test_the_wheel_holds_the_whole_package(site):
    assert files(site / "cvae_jax") == files(ROOT / "cvae_jax")
    assert {"py.typed", "prepare/requirements-pose.txt"} < files(site / "cvae_jax")


def test_the_installed_programs_train_and_evaluate(site, run, tmp_path):
    imported = run("python", "-c", "import cvae_jax; print(cvae_jax.__file__)")
    assert Path(imported.stdout.strip()) == site / "cvae_jax" / "__init__.py"
    before = files(site)
    (run.folder / "mine.py").write_text(CONFIG)

    trained = run("cvae-train", "--config=mine.py", *TINY, "--workdir=w")
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert trained.stdout == "Trained; now run: cvae-evaluate --workdir=w\n"
    assert len((run.folder / "w" / "metrics.jsonl").read_text().splitlines()) == 1
    if sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION"):
        assert "GLIBC_TUNABLES=glibc.malloc" in trained.stderr.splitlines()[0]  # it started again
    assert (tmp_path / "cache" / "cvae_jax" / "data" / "real_clips").is_dir()

    scored = run("cvae-evaluate", "--workdir=w", "--checkpoint=last")
    assert scored.returncode == 0, scored.stderr[-2000:]
    assert scored.stdout.endswith("Pictures and numbers are in w/eval.\n")
    protocol = json.loads((run.folder / "w" / "eval" / "results.json").read_text())["protocol"]
    assert protocol["commit"] is None  # not that of the repository which it happens to lie in

    assert files(site) == before
    assert {path.name for path in run.folder.iterdir()} <= {"mine.py", "w", "__pycache__"}


def test_configs_of_a_clone_are_found_from_its_root(run):
    """They import each other from the current directory; what is refused then is that there are no data."""
    done = run("cvae-train", "--config=configs/kth.py", f"--workdir={run.folder / 'w'}", cwd=ROOT)
    assert done.returncode == 2
    assert "config.data.dir" in done.stderr and "No module" not in done.stderr


@pytest.mark.parametrize(
    "program, sentence",
    [
        ("cvae-study", "There is no config file configs/study.py in "),
        ("cvae-evaluate", "give the folder of a run that cvae-train has started"),
        ("cvae-export", "give the folder of a run that cvae-train has started"),
        ("cvae-generate", "give the folder of a run that cvae-train has started"),
        ("cvae-prepare", "--video is missing"),
    ],
)
def test_the_other_programs_start(run, program, sentence):
    done = run(program)
    assert done.returncode == 2 and done.stdout == ""
    assert sentence in done.stderr.splitlines()[-1]


def test_help_names_the_program_as_it_was_started(run):
    text = run("cvae-train", "--help").stdout
    assert "cvae-train --config=" in text and "train.py" not in text
    assert all(f"--{flag}:" in text for flag in ("config", "workdir", "[no]extend"))


def test_a_cache_that_cannot_be_written_is_reported(run, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    (run.folder / "mine.py").write_text(CONFIG)
    done = run("cvae-train", "--config=mine.py", *TINY, "--workdir=w")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--config.data.cache" in done.stderr.splitlines()[-1]


def test_importing_the_package_is_fast():
    def seconds(program: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
        return time.perf_counter() - started

    bare = min(seconds("pass") for _ in range(3))
    assert min(seconds("import cvae_jax") for _ in range(3)) - bare < 0.3
