"""Separate virtual environments for tools whose dependencies conflict with ours, created on first use.

An environment is stored in the folder that its environment variable names, or else in the user's cache folder
under a name derived from its requirements. It appears only when it is complete. If several processes need it,
one sets it up and the others wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import user_cache_folder


@dataclasses.dataclass(frozen=True)
class ToolEnvironment:
    """A virtual environment for one tool.

    Attributes:
      name: of its folder in the cache.
      tool: what messages call it, as in "the pose model".
      requirements: a file of pinned packages, all that are needed (they are installed with --no-deps).
      variable: the environment variable that names another folder for it.
      pythons: the versions of Python that have all these packages, the best first.
      check: a statement that runs in a working environment.
      size: what it takes, as in "about 100 MB to download, 400 MB on disk".
      otherwise: what else the user can do, the end of each message on a failure; '' if there is nothing.
    """

    name: str
    tool: str
    requirements: Path
    variable: str
    pythons: tuple[tuple[int, int], ...]
    check: str
    size: str
    otherwise: str = ""

    def python(self) -> Path:
        """Return the environment's Python, setting the environment up first where there is none.

        Raises UserError where that cannot be done: no fitting Python, no network, no space.
        """
        folder = self.folder()
        python = folder / "bin" / "python"
        if python.exists():
            return python
        if folder.exists():
            raise UserError(
                f"{folder} is not an environment for {self.tool}: delete it and try again, or set "
                f"{self.variable} to another folder{self._or_else}."
            )
        interpreter = self.find_python()
        try:
            made_once(folder, self.tool, lambda work: self._set_up(work, folder, interpreter))
        except OSError as error:
            raise UserError(
                f"Cannot set up the environment of {self.tool} in {folder.parent} "
                f"({error.strerror or error}): set {self.variable} to a writable folder{self._or_else}."
            ) from error
        return python

    def folder(self) -> Path:
        """Return where the environment is, or will be."""
        if os.environ.get(self.variable):
            return Path(os.environ[self.variable]).expanduser().absolute()
        key = hashlib.blake2b(self.requirements.read_bytes(), digest_size=4).hexdigest()
        return user_cache_folder().absolute() / f"{self.name}-{key}"

    def find_python(self) -> str:
        """Return a Python of a version in `pythons`, this one if it fits; UserError where there is none."""
        if sys.version_info[:2] in self.pythons:
            return sys.executable
        for version in self.pythons:
            found = shutil.which("python{}.{}".format(*version))
            # A name may be a placeholder of a version manager that starts nothing.
            if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
                return found
        *others, last = ("{}.{}".format(*version) for version in sorted(self.pythons))
        tool = self.tool[0].upper() + self.tool[1:]
        raise UserError(
            f"{tool} needs Python {', '.join(others)} or {last}, and this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}: also install python{last}{self._or_else}."
        )

    @property
    def _or_else(self) -> str:
        return f", or {self.otherwise}" if self.otherwise else ""

    def _set_up(self, work: Path, folder: Path, interpreter: str) -> None:
        lines = [line for line in self.requirements.read_text().splitlines() if "==" in line]
        print(f"Setting up {self.tool} in {folder} (once; {self.size}).", file=sys.stderr)
        self._run([interpreter, "-m", "venv", str(work)], "making a virtual environment", None)
        pip = [str(work / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
        pip += ["--no-input", "--retries=2", "--no-deps", "--only-binary=:all:", "-r", str(self.requirements)]
        with tqdm(desc="Fetching", total=len(lines), unit="package", file=sys.stderr, leave=False) as bar:
            self._run(pip, "installing its packages with pip", bar)
        check = [str(work / "bin" / "python"), "-c", self.check]
        self._run(check, "importing its packages", None)

    def _run(self, command: list[str], doing: str, bar: tqdm | None) -> None:
        """Run a command; pip's 'Collecting' moves the bar. Raises UserError with its last words."""
        said: list[str] = []
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean_environment()
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
            last = last_words(said) or f"status {process.returncode}"
            raise UserError(
                f"Setting up {self.tool} failed while {doing} ({last}): fix the problem and try again"
                f"{self._or_else}."
            )


def made_once(folder: Path, what: str, make: Callable[[Path], None]) -> None:
    """Make a folder that is not there: make(work) fills a folder beside it, which then takes its place.

    The folder appears complete or not at all, and can be moved before it is complete (an environment is run
    as its bin/python, which finds its packages wherever it lies). Of several processes one makes it and the
    others wait. Raises OSError where it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock"), what):
        if folder.exists():  # another process was faster
            return
        # No process holds the lock but this one: what others left behind was killed.
        for left in folder.parent.glob(f".{folder.name}.partial*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial", dir=folder.parent))
        try:
            make(work)
            work.chmod(0o755)
            os.rename(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file; it is free again when the process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process to finish setting up {what} ...", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clean_environment() -> Mapping[str, str]:
    """Return this process's environment variables without those that lead a Python to our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def last_words(lines: list[str]) -> str:
    """Return the last error in what a program printed, or its last line; '' where it printed nothing."""
    errors = [line for line in lines if line.startswith("ERROR")] or [line for line in lines if line]
    return errors[-1].removeprefix("ERROR: ").rstrip(".") if errors else ""
