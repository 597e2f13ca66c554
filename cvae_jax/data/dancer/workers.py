"""Rendering on all cores: processes that receive frame numbers and return the frames' pixels.

Run as a module (`python -m cvae_jax.data.dancer.workers SEED HEIGHT WIDTH`) this is one such process. It
imports little, never the caller's main module, and ends when its input does, so none outlives its caller.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import pathlib
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cvae_jax.data.dancer.scene import Scene

MOST_WORKERS = 16


class Job(NamedTuple):
    """Frames start to stop (excluded) of a sequence; their means over so many `draws` of chance, unless 0."""

    split: str
    sequence: int
    start: int
    stop: int
    draws: int = 0

    @property
    def images(self) -> int:
        """How many images are made of each frame: itself and its label, or its mean."""
        return 1 if self.draws else 2


def render(scene: Scene, job: Job) -> np.ndarray:
    """Return a job's frames and labels, uint8 (T, 2, H, W, 3), or mean frames (T, 1, H, W, 3)."""
    times = range(job.start, job.stop)
    if job.draws:
        return np.stack([scene.mean_frame(job.split, job.sequence, t, job.draws) for t in times])[:, None]
    return np.stack([scene.pair(job.split, job.sequence, t) for t in times])


def render_all(scene: Scene, jobs: list[Job]) -> Iterator[np.ndarray]:
    """Yield what `render` gives for each job, in their order, painted by a process per core.

    Raises RuntimeError where a process dies.
    """
    count = min(len(jobs), _cores(), MOST_WORKERS)
    workers = [_start(scene) for _ in range(count)]
    free: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def ask(job: Job) -> np.ndarray:
        worker = free.get()
        assert worker.stdin is not None and worker.stdout is not None, "they are pipes"
        shape = (job.stop - job.start, job.images, *scene.frame_size, 3)
        try:
            worker.stdin.write(f"{' '.join(map(str, job))}\n".encode())
            worker.stdin.flush()
            pixels = worker.stdout.read(int(np.prod(shape)))
        except BrokenPipeError:
            pixels = b""
        finally:
            free.put(worker)  # a dead one too: who gets it next must not wait for ever
        if len(pixels) != np.prod(shape):
            raise RuntimeError(f"A process that paints the dancer died (status {worker.wait()}).")
        return np.frombuffer(pixels, np.uint8).reshape(shape)

    threads = concurrent.futures.ThreadPoolExecutor(max(count, 1))
    try:
        pending: collections.deque = collections.deque()
        for job in jobs:
            pending.append(threads.submit(ask, job))
            if len(pending) > 2 * count:  # no more in memory than keeps everyone busy
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for worker in workers:
            worker.kill()
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            assert worker.stdin is not None and worker.stdout is not None, "they are pipes"
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
            worker.stdout.close()
            worker.wait()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(scene: Scene) -> subprocess.Popen:
    root = str(pathlib.Path(__file__).parents[3])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", __name__, str(scene.seed), *map(str, scene.frame_size)]
    # The matrices are tiny: threads of the linear algebra would only be in each other's way.
    environment = os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=-1
    )


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to answer
    seed, height, width = map(int, sys.argv[1:])
    scene = Scene(seed, (height, width))
    try:
        for line in sys.stdin:
            split, *numbers = line.split()
            sys.stdout.buffer.write(render(scene, Job(split, *map(int, numbers))).tobytes())
            sys.stdout.buffer.flush()
    except BrokenPipeError:  # the caller is gone
        os._exit(1)


if __name__ == "__main__":
    _serve()
