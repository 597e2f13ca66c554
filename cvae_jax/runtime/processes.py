"""The processes of a job, on one or more hosts, and what they tell each other (`runtime.job` connects them).

In a job of one process, the usual case, every function here acts locally. In a job of several, every process
must call the same functions of this module in the same order, from its main thread.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from cvae_jax.runtime.errors import UserError

_Value = TypeVar("_Value")
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class Job:
    """This process's place in a job.

    Attributes: count, the number of processes; index, that of this one; leads_host, whether it is the first
    of its host; is_jax, whether JAX connects them (it may connect a single process, too).
    """

    count: int = 1
    index: int = 0
    leads_host: bool = True
    is_jax: bool = False


_job = Job()


def enter(job: Job) -> None:
    """Make this process the one that `job` describes."""
    global _job
    _job = job


def count() -> int:
    """Return the number of processes of the job."""
    return _job.count


def index() -> int:
    """Return the number of this process, from 0."""
    return _job.index


def is_connected() -> bool:
    """Return whether this process belongs to a job of JAX, even as its only process."""
    return _job.is_jax


def is_first() -> bool:
    """Return whether this is process 0, the only one that writes to the workdir and shows progress."""
    return _job.index == 0


def gather(value: _Value) -> list[_Value]:
    """Return the values of all processes, which must be picklable."""
    if _job.count == 1:
        return [value]
    import numpy as np
    from jax.experimental import multihost_utils

    own = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.uint32(len(own))).reshape(-1)
    # Each size compiles a program of its own, so let there be few.
    padded = np.zeros(1 << (int(max(sizes)) - 1).bit_length(), np.uint8)
    padded[: len(own)] = own
    found = multihost_utils.process_allgather(padded).reshape(_job.count, -1)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(found, sizes, strict=True)]


def broadcast(value: _Value) -> _Value:
    """Return process 0's value; those of the others are ignored."""
    if _job.count == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    own = np.frombuffer(pickle.dumps(value if is_first() else None), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.uint32(len(own))))
    padded = np.zeros(size, np.uint8)
    if is_first():
        padded[:] = own
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def on_first(make: Callable[[], _Value]) -> _Value:
    """Return make() as called in process 0 alone; if it fails there, the others raise UserError."""
    if _job.count == 1:
        return make()
    value, error = _attempt(make) if is_first() else (None, None)
    value, message = broadcast((value, _message(error)))
    if error is not None:
        raise error
    if message is not None:
        raise UserError(message)
    return value  # type: ignore[return-value]


def on_each(make: Callable[[], _Value]) -> _Value:
    """Return this process's make(); if it fails in any process, those where it did not raise UserError."""
    if _job.count == 1:
        return make()
    value, error = _attempt(make)
    messages = [message for message in gather(_message(error)) if message is not None]
    if error is not None:
        raise error
    if messages:
        raise UserError(messages[0])
    return value  # type: ignore[return-value]


def first_of_host_first(make: Callable[[], _Value]) -> _Value:
    """Return this process's make(), called first in one process of each host, whose files the others find."""
    early = on_each(lambda: make() if _job.leads_host else None)
    return on_each(lambda: early if _job.leads_host else make())  # type: ignore[return-value]


def _attempt(make: Callable[[], _Value]) -> tuple[_Value | None, Exception | None]:
    try:
        return make(), None
    except Exception as error:
        return None, error


def _message(error: Exception | None) -> str | None:
    """Return what the other processes say of an error (which need not be picklable itself)."""
    if error is None:
        return None
    if isinstance(error, UserError):
        return str(error)
    return f"Another process of this job has failed with {type(error).__name__} ({error})."


def require_same(what: str, content: str | bytes) -> None:
    """Raise UserError if the processes have different content. what: its name, in the plural."""
    data = content.encode() if isinstance(content, str) else content
    digests = gather(hashlib.blake2b(data, digest_size=16).hexdigest())
    others = [str(number) for number, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise UserError(
            f"The processes of this job have different {what}: those of process {', '.join(others)} differ "
            "from those of process 0; give all processes the same."
        )


def require_same_program() -> None:
    """Raise UserError if the processes run different versions of this program, of Python or of JAX."""
    if _job.count == 1:
        return
    import cvae_jax

    folder = Path(cvae_jax.__file__).parent
    versions = [
        platform.python_version(),
        *map(metadata.version, ("jax", "jaxlib", "flax", "optax", "numpy")),
    ]
    sources = [
        path.relative_to(folder).as_posix().encode() + path.read_bytes()
        for path in sorted(folder.rglob("*.py"))
    ]
    require_same(
        "versions of the program, of Python or of JAX", b"\0".join([repr(versions).encode(), *sources])
    )


def shared_out(function: Callable[[_Item], _Value], items: Sequence[_Item]) -> list[_Value]:
    """Return [function(item) for item in items], of which each process computes a share."""
    parts = gather(on_each(lambda: [function(item) for item in items[_job.index :: _job.count]]))
    return [parts[number % _job.count][number // _job.count] for number in range(len(items))]


def require_one(program: str) -> None:
    """Raise UserError if several processes were started of a program that runs as one."""
    import jax

    started = max(jax.process_count(), launched())
    if started > 1:
        raise UserError(f"{program} runs as a single process, but {started} were started; start only one.")


def launched() -> int:
    """Return how many processes Slurm or Open MPI has started with this one."""
    return max(int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
