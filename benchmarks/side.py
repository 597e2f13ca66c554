"""A side of a comparison: a live process, and what both sides run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cvae_jax.runtime import platform
from cvae_jax.runtime.cli import fail

ROOT = Path(__file__).resolve().parent.parent


class Side:
    """A live worker (see benchmarks/worker.py): `python -m module name *arguments`."""

    def __init__(
        self,
        name: str,
        environment: dict[str, str],
        module: str = "benchmarks.worker",
        arguments: tuple[str, ...] = (),
    ):
        self.name = name
        self._log = tempfile.TemporaryFile("w+")
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, name, *arguments],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._answer()

    def ask(self, **request: object) -> dict:
        """Return the worker's answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().strip().splitlines() or ["nothing"]
            fail(f"The worker '{self.name}' ended early; its last line of output was: {said[-1]}", status=1)
        return json.loads(line)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def environment(cache: Path) -> dict[str, str]:
    """What both sides run in: CPU only, all cores this process may use, the settings the programs make."""
    name, setting = platform.ALLOCATOR
    return {
        **{key: value for key, value in os.environ.items() if key != "XLA_FLAGS"},
        name: setting,
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": str(threads()),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }


def threads() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))
