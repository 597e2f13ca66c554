"""Progress on standard error: a bar per epoch, and a running clock while something compiles."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from tqdm import tqdm

INTERVAL_SECONDS = 1.0


def epoch_bar(epoch: int, num_epochs: int, steps: int, done: int) -> tqdm:
    """Return the bar of one epoch, `done` of its steps already taken."""
    return tqdm(
        total=steps,
        initial=done,
        desc=f"epoch {epoch + 1}/{num_epochs}",
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5,
        file=sys.stderr,
    )


class Announcement:
    """While on, shows `message` and the seconds since it began on a bar; use as a context manager."""

    def __init__(self, bar: Any, message: str):
        self._bar, self._message = bar, message
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        started = time.monotonic()
        while not self._stopped.is_set():
            self._bar.set_postfix_str(f"{self._message} ... {time.monotonic() - started:.0f} s")
            self._stopped.wait(INTERVAL_SECONDS)

    def __enter__(self) -> Announcement:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._bar.set_postfix_str("")
