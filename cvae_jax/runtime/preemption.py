"""SIGTERM, by which schedulers and cloud machines announce that they will end a program soon."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

AGAIN_SECONDS = 1.0  # some programs send a signal to a process and then to its group


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Within, a first SIGTERM does not end the program; yields a function that tells whether it has arrived.

    Another one, more than AGAIN_SECONDS later, ends it. Only the main thread can catch signals; in others the
    function returns False.
    """
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
