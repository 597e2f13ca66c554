"""The processes of a job, on one or more hosts, and what they tell each other.

In a job of one process, the usual case, every function here acts locally. In a job of several, every process
must call the same functions of this module in the same order, from its main thread.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import pickle
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from cvae_jax.runtime.errors import UserError

HEARTBEAT_SECONDS = 30  # a process that is silent for so long counts as lost, and the job ends
SHUTDOWN_SECONDS = 30  # for which a process that ends waits for the others
LOST = (
    "error: This process was killed, or another process of its job was lost, and the job has ended. Start "
    "all processes again with the same command; a training run resumes from its last checkpoint."
)
# Prints its argument unless a byte arrives before the pipe is closed.
_WATCHER = "import sys; sys.stdin.buffer.read(1) or print(sys.argv[1], file=sys.stderr)"

_Value = TypeVar("_Value")
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class _Job:
    """count: number of processes. index: that of this one. leads_host: whether it is its host's first."""

    count: int
    index: int
    leads_host: bool = True


_ALONE = _Job(1, 0)
_job = _ALONE


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Iterator[None]:
    """Be one of the processes of a job while the context lasts; enter it before JAX is used.

    coordinator: HOST:PORT of process 0, which the others can reach. num_processes: of the job. process_id:
    the number of this one, from 0. If all three are None, JAX detects the job on TPU pods, under Slurm and
    under Open MPI 4; elsewhere the process is alone.

    If a process is lost, JAX ends the others within HEARTBEAT_SECONDS. LOST is printed then, and also if this
    process is killed. The context ends when all processes have left its body, or SHUTDOWN_SECONDS after an
    error at the latest.

    Raises UserError for values that make no sense, and if the processes cannot connect.
    """
    import jax

    _check(coordinator, num_processes, process_id)
    if not _initialize(coordinator, num_processes, process_id):
        yield
        return
    watcher = _start_watcher()
    try:
        _set(_Job(jax.process_count(), jax.process_index()))
        counts = collections.Counter(device.process_index for device in jax.devices())
        if len(set(counts.values())) > 1:
            raise UserError(
                f"The processes of this job have different numbers of devices ({sorted(counts.values())}); "
                "give every process the same number."
            )
        hosts = gather(socket.gethostname())
        _set(dataclasses.replace(_job, leads_host=hosts.index(hosts[_job.index]) == _job.index))
        yield
        gather(None)  # process 0 may still be writing; without waiting, the others would call it lost
    finally:
        _set(_ALONE)
        with contextlib.suppress(RuntimeError):  # of a process that does not arrive
            jax.distributed.shutdown()
        assert watcher.stdin is not None, "it was started with a pipe"
        with contextlib.suppress(OSError):
            watcher.stdin.write(b".")
            watcher.stdin.close()
        watcher.wait()


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise UserError(
            f"A job of several processes also needs {' and '.join(missing)}; leave out all three flags where "
            "JAX detects the job: on TPU pods, under Slurm and under Open MPI 4."
        )
    if coordinator is None or num_processes is None or process_id is None:
        return
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise UserError(f"--coordinator is {coordinator!r}; give HOST:PORT, with the address of process 0.")
    if num_processes < 1:
        raise UserError(f"--num_processes is {num_processes}; give at least 1.")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id is {process_id}; give a number from 0 to {num_processes - 1}, one less than "
            "--num_processes."
        )


def _initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> bool:
    """Connect to the other processes of the job; return False where none is detected."""
    import jax

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on Kubernetes, of a package that only its jobs need
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
    except ValueError as error:
        if coordinator is None and "coordinator_address" in str(error):
            _refuse_undetected()
            return False
        raise UserError(
            f"JAX cannot detect the processes of this job ({error}); give --coordinator, --num_processes and "
            "--process_id."
        ) from None
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The processes of this job could not connect ({reason}); start all of them, with the same "
            "--coordinator, which every host can reach, and each with its own --process_id."
        ) from None
    return True


def _refuse_undetected() -> None:
    """Raise UserError in one of several processes that JAX does not detect: each would be its own run."""
    if _launched() > 1:
        raise UserError(
            f"{_launched()} processes were started, and JAX cannot detect how they belong together; give "
            "each --coordinator, --num_processes and --process_id."
        )


def _launched() -> int:
    """Return how many processes Slurm or Open MPI has started with this one."""
    return max(int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))


def _set(job: _Job) -> None:
    global _job
    _job = job


def _start_watcher() -> subprocess.Popen:
    """Start a program that prints LOST if this process ends without having said that it is done.

    JAX aborts the processes of a job that has lost one, so that they cannot print it themselves.
    """
    return subprocess.Popen(
        [sys.executable, "-S", "-c", _WATCHER, LOST], stdin=subprocess.PIPE, start_new_session=True
    )


def count() -> int:
    """Return the number of processes of the job."""
    return _job.count


def index() -> int:
    """Return the number of this process, from 0."""
    return _job.index


def is_first() -> bool:
    """Return whether this is process 0, the only one that writes files and prints."""
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
    """Return make() as called in process 0 alone; if it raises UserError, all processes raise it."""
    if _job.count == 1:
        return make()
    value, error = broadcast(_attempt(make) if is_first() else (None, None))
    if error is not None:
        raise UserError(error)
    return value  # type: ignore[return-value]


def on_each(make: Callable[[], _Value]) -> _Value:
    """Return this process's make(); if it raises UserError in any process, all raise one."""
    if _job.count == 1:
        return make()
    value, error = _attempt(make)
    errors = [found for found in gather(error) if found is not None]
    if errors:
        raise UserError(error or errors[0])
    return value  # type: ignore[return-value]


def first_of_host_first(make: Callable[[], _Value]) -> _Value:
    """Return this process's make(), called first in one process of each host, whose files the others find."""
    early = on_each(lambda: make() if _job.leads_host else None)
    return on_each(lambda: make() if early is None else early)


def _attempt(make: Callable[[], _Value]) -> tuple[_Value | None, str | None]:
    try:
        return make(), None
    except UserError as error:
        return None, str(error)


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


def shared_out(function: Callable[[_Item], _Value], items: Sequence[_Item]) -> list[_Value]:
    """Return [function(item) for item in items], of which each process computes a share."""
    parts = gather(on_each(lambda: [function(item) for item in items[_job.index :: _job.count]]))
    return [parts[number % _job.count][number // _job.count] for number in range(len(items))]


class _Idle:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **keywords: None


def idle() -> Any:
    """Return an object whose methods do nothing, for the processes that do not write."""
    return _Idle()


def require_one(program: str) -> None:
    """Raise UserError if several processes were started of a program that runs as one."""
    import jax

    started = max(jax.process_count(), _launched())
    if started > 1:
        raise UserError(f"{program} runs as a single process, but {started} were started; start only one.")
