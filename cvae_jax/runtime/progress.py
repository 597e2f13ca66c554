"""Progress on standard error: a bar per epoch, and a running clock while something compiles.

Where several runs train at once (see `together`) they share one bar. In a job of several processes only
process 0 shows anything.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from cvae_jax.runtime import processes

INTERVAL_SECONDS = 1.0


_here = threading.local()


@contextlib.contextmanager
def together(bar: tqdm) -> Iterator[None]:
    """Within, this thread shows no bars of its own: each epoch that ends moves `bar` by one."""
    _here.bar = bar
    try:
        yield
    finally:
        del _here.bar


class _Quiet:
    """The bar of an epoch or an evaluation that shows nothing but its end."""

    def __init__(self, bar: tqdm, epochs: int):
        self._bar, self._epochs = bar, epochs

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self._bar.update(self._epochs)

    def update(self, n: int = 1) -> None:
        """Show nothing."""

    set_postfix = set_postfix_str = set_description = lambda *_, **__: None


def announce_resume(epochs: int, batches: int, num_epochs: int) -> None:
    """Show where a run resumes, after so many epochs and batches: in the bar of `together`, or in a line."""
    if hasattr(_here, "bar"):
        _here.bar.update(epochs)
    elif epochs < num_epochs and processes.is_first():
        print(f"Resuming from epoch {epochs + 1}, batch {batches + 1}.", file=sys.stderr)


def tell(sentence: str) -> None:
    """Print a line; within `together` nothing, since many runs would say the same."""
    if not hasattr(_here, "bar") and processes.is_first():
        print(sentence, file=sys.stderr)


def warn(sentence: str) -> None:
    """Print a line, above the bar of `together` where there is one."""
    if processes.is_first():
        tqdm.write(sentence, file=sys.stderr)


def clip_bar(total: int) -> Any:
    """Return the bar of an evaluation of `total` clips."""
    if hasattr(_here, "bar"):
        return _Quiet(_here.bar, 0)
    return tqdm(
        total=total, unit="clip", dynamic_ncols=True, file=sys.stderr, disable=not processes.is_first()
    )


def compile_bar(total: int) -> Any:
    """Return the bar of `total` programs that are compiled one after another."""
    return tqdm(total=total, unit="program", dynamic_ncols=True, file=sys.stderr)


def epoch_bar(epoch: int, num_epochs: int, steps: int, done: int) -> Any:
    """Return the bar of one epoch, `done` of its steps already taken."""
    if hasattr(_here, "bar"):
        return _Quiet(_here.bar, 1)
    return tqdm(
        total=steps,
        initial=done,
        desc=f"epoch {epoch + 1}/{num_epochs}",
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5,
        file=sys.stderr,
        disable=not processes.is_first(),
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
