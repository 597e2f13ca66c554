"""The environment that MediaPipe needs for itself, set up on first use and kept.

It lies in CVAE_JAX_POSE_ENV, or in the user's cache folder under a name that changes with what is installed.
It appears complete or not at all; of several processes one sets it up and the others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import user_cache_folder

REQUIREMENTS = Path(__file__).parent / "requirements-pose.txt"
PYTHONS = ((3, 11), (3, 12), (3, 10))  # for which there is this MediaPipe
VARIABLE = "CVAE_JAX_POSE_ENV"
WAY_OUT = "or give --keypoints=FILE with a pose found elsewhere"


def pose_python() -> Path:
    """Return the Python that has MediaPipe, setting up its environment first where there is none.

    Raises UserError where that cannot be done: no fitting Python, no network, no room.
    """
    folder = environment_folder()
    python = folder / "bin" / "python"
    if python.exists():
        return python
    if folder.exists():
        raise UserError(
            f"{folder} is no environment for the pose model: delete it and run this again, set {VARIABLE} to "
            f"another folder, {WAY_OUT}."
        )
    interpreter = find_python()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock")):
            if not python.exists():  # another process may have been faster
                _set_up(folder, interpreter)
    except OSError as error:
        raise UserError(
            f"Cannot set up the pose model's environment in {folder.parent} ({error.strerror or error}): set "
            f"{VARIABLE} to a folder that can be written, {WAY_OUT}."
        ) from error
    return python


def environment_folder() -> Path:
    """Return where the environment is, or will be."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser().absolute()
    key = hashlib.blake2b(REQUIREMENTS.read_bytes(), digest_size=4).hexdigest()
    return user_cache_folder().absolute() / f"pose-{key}"


def find_python() -> str:
    """Return a Python of a version in PYTHONS, this one if it fits; UserError where there is none."""
    if sys.version_info[:2] in PYTHONS:
        return sys.executable
    for version in PYTHONS:
        found = shutil.which("python{}.{}".format(*version))
        # A name may be a placeholder of a version manager that starts nothing.
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    raise UserError(
        "The pose model needs Python 3.10, 3.11 or 3.12, and this is "
        f"{sys.version_info[0]}.{sys.version_info[1]}: install python3.12 beside it, {WAY_OUT}."
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; it is free again when the process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another process that sets up the pose model ...", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _set_up(folder: Path, interpreter: str) -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    size = "once; about 100 MB to fetch, 400 MB on disk"
    print(f"Setting up the pose model in {folder} ({size}).", file=sys.stderr)
    # No process holds the lock but this one: what others left behind was killed.
    for left in folder.parent.glob(f".{folder.name}.partial*"):
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial", dir=folder.parent))
    try:
        _run([interpreter, "-m", "venv", str(work)], "making a virtual environment", None)
        pip = [str(work / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
        pip += ["--no-input", "--retries=2", "--no-deps", "--only-binary=:all:", "-r", str(REQUIREMENTS)]
        with tqdm(desc="Fetching", total=len(lines), unit="package", file=sys.stderr, leave=False) as bar:
            _run(pip, "installing MediaPipe with pip", bar)
        check = [str(work / "bin" / "python"), "-c", "import mediapipe.python.solutions.pose"]
        _run(check, "importing MediaPipe", None)
        work.chmod(0o755)
        os.rename(work, folder)  # what runs is bin/python, which finds its packages wherever it lies
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(command: list[str], doing: str, bar: tqdm | None) -> None:
    """Run a command; pip's 'Collecting' moves the bar. Raises UserError with its last words."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    said: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None, "it is a pipe"
        try:
            for line in process.stdout:
                if bar is not None and line.startswith("Collecting "):
                    bar.update()
                said.append(line.strip())
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        errors = [line for line in said if line.startswith("ERROR")] or [line for line in said if line]
        last = errors[-1].removeprefix("ERROR: ").rstrip(".") if errors else f"status {process.returncode}"
        raise UserError(
            f"Setting up the pose model failed while {doing} ({last}): fix that and run this again, "
            f"{WAY_OUT}."
        )
