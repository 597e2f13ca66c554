"""SIGTERM, by which schedulers and cloud machines announce that they will end a program soon."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from cvae_jax.runtime import processes

AGAIN_SECONDS = 1.0  # some programs send a signal to a process and then to its group


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Within, a first SIGTERM does not end the program; yields a function that tells whether it has arrived.

    Another one, more than AGAIN_SECONDS later, ends it. Only the main thread can catch signals; in others the
    function returns False.

    In a job of JAX it is enough that one process gets the signal, at any time since it joined: the function
    returns True in all of them at the same call. All must call it equally often.
    """
    if processes.is_connected():
        from jax.experimental import multihost_utils

        calls = itertools.count()
        yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
        return
    arrived: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def notice(number: int, frame: FrameType | None) -> None:
        arrived.append(time.monotonic())
        if arrived[-1] - arrived[0] > AGAIN_SECONDS:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, notice)
    try:
        yield lambda: bool(arrived)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def end_at_once() -> None:
    """Let SIGTERM end this program at once, also in a job of JAX, which otherwise only takes notice."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
