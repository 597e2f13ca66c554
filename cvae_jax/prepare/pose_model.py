"""The pose model as functions of pictures: worker processes in its own environment, used in turn."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import json
import os
import queue
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from cvae_jax.data.pose import LANDMARKS
from cvae_jax.prepare.pose_environment import WAY_OUT
from cvae_jax.prepare.settings import Box
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.tool_environment import clean_environment

WORKER = Path(__file__).parent / "pose_worker.py"
MOST_WORKERS = 8
GRAY = (128, 128, 128)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Look(NamedTuple):
    """Where to look, and how.

    box: x0, y0, x1, y1 in pixels of the picture; what of it is outside `inside` is gray (a body that touches
    the edge of what the model is given is often missed). side: the longer side of what the model is given.
    """

    box: tuple[float, float, float, float]
    inside: Box
    side: int
    mirror: bool = False


class PoseModel:
    """Worker processes that find one person in a picture; a context manager.

    python: of the pose model's environment. workers: None: one per core, at most 8.
    """

    def __init__(self, python: Path, workers: int | None = None) -> None:
        self.python = python
        self.count = workers or min(MOST_WORKERS, os.cpu_count() or 1)

    def __enter__(self) -> PoseModel:
        self._stack = contextlib.ExitStack()
        self._free: queue.SimpleQueue = queue.SimpleQueue()
        with contextlib.ExitStack() as stack:
            for _ in range(self.count):
                self._free.put(stack.enter_context(_worker(self.python)))
            self._threads = concurrent.futures.ThreadPoolExecutor(self.count)
            stack.callback(self._threads.shutdown, cancel_futures=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def look(self, picture: Image.Image, where: Look) -> np.ndarray:
        """Return landmarks float64 (33, 3): x and y in pixels of the picture, visibility; NaN for nobody."""
        x0, y0, x1, y1 = where.box
        scale = where.side / max(x1 - x0, y1 - y0)
        size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
        shown = (
            max(x0, where.inside[0]),
            max(y0, where.inside[1]),
            min(x1, where.inside[2]),
            min(y1, where.inside[3]),
        )
        part = (max(1, round((shown[2] - shown[0]) * scale)), max(1, round((shown[3] - shown[1]) * scale)))
        small = Image.new("RGB", size, GRAY)
        if shown[0] < shown[2] and shown[1] < shown[3]:
            resized = picture.resize(part, Image.Resampling.BILINEAR, box=shown, reducing_gap=2.0)
            small.paste(resized, (round((shown[0] - x0) * scale), round((shown[1] - y0) * scale)))
        worker = self._free.get()
        try:
            found = worker.ask(np.asarray(small), where.mirror)
        finally:
            self._free.put(worker)
        return found * (x1 - x0, y1 - y0, 1) + (x0, y0, 0)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield work(item) in the items' order, several at once, without running far ahead."""
        waiting: collections.deque = collections.deque()
        try:
            for item in items:
                waiting.append(self._threads.submit(work, item))
                if len(waiting) > 2 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Worker:
    """One process; asked by one thread at a time."""

    def __init__(self, python: Path, stdin: IO[bytes], stdout: IO[bytes], errors: IO[bytes]) -> None:
        self.python = python
        self.stdin = stdin
        self.stdout = stdout
        self.errors = errors

    def ask(self, pixels: np.ndarray, mirror: bool) -> np.ndarray:
        height, width, _ = pixels.shape
        try:
            self.stdin.write(struct.pack("<3I", width, height, mirror) + pixels.tobytes())
            self.stdin.flush()
            answer = self.stdout.readline()
        except OSError:
            answer = b""
        if not answer:
            raise UserError(
                f"The pose model in {self.python} stopped ({self._last_words()}): delete its "
                f"environment so that it is set up again, or {WAY_OUT}."
            )
        found = json.loads(answer)
        return np.full((len(LANDMARKS), 3), np.nan) if found is None else np.array(found)

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        return ([line.strip() for line in lines if line.strip()] or ["it said nothing"])[-1]


@contextlib.contextmanager
def _worker(python: Path) -> Iterator[_Worker]:
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                [python, "-u", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=clean_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(
                f"The pose model's {python} cannot be started ({error.strerror}): delete its environment so "
                f"that it is set up again, or {WAY_OUT}."
            ) from error
        assert process.stdin is not None and process.stdout is not None, "they are pipes"
        try:
            yield _Worker(python, process.stdin, process.stdout, errors)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(OSError):  # what was not sent
                process.stdin.close()
