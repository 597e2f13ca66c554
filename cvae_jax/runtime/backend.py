"""The backend that programs are formulated for: the one that runs them, unless another one is planned for."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_planned: contextvars.ContextVar[str | None] = contextvars.ContextVar("planned backend", default=None)


def target_backend() -> str:
    """Return 'cpu', 'gpu' or 'tpu'."""
    return _planned.get() or jax.default_backend()


@contextlib.contextmanager
def formulated_for(backend: str) -> Iterator[None]:
    """Within, programs are built as they would be on another backend; this machine's compiles them."""
    token = _planned.set(backend)
    try:
        yield
    finally:
        _planned.reset(token)
