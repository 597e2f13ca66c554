"""Becoming one of the processes of a job of JAX, and leaving it; `processes` is what they tell each other."""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import os
import re
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import NoReturn

from cvae_jax.runtime import processes
from cvae_jax.runtime.errors import UserError

HEARTBEAT_SECONDS = 45  # a process that is silent for so long counts as lost, and the job ends
SHUTDOWN_SECONDS = 30  # for which a process that is done waits for the others
LAST_SECONDS = 5  # by which process 0 outlives the others after an error
LOST = (
    "error: This process was killed, or another process of its job was lost, and the job has ended. Start "
    "all processes again with the same command; a training run resumes from its last checkpoint."
)
REPORTED = "JAX reports:"
UNREACHED = (
    "error: This process could not use its devices, or could not reach the other processes of its job. Every "
    "host must be able to reach every other one on all ports. JAX reports"
)
_LOST_PEER = ("Gloo", "NCCL", "by peer", "UNAVAILABLE")  # what collective operations say that miss a process
# Prints its argument unless a byte arrives before the pipe is closed.
_WATCHER = "import sys; sys.stdin.buffer.read(1) or print(sys.argv[1], file=sys.stderr)"


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Iterator[None]:
    """Be one of the processes of a job while the context lasts; enter it before JAX is used.

    coordinator: HOST:PORT of process 0, which the others can reach. num_processes: of the job. process_id:
    the number of this one, from 0. If all three are None, JAX detects the job on TPU pods, under Slurm and
    under Open MPI 4; elsewhere the process is alone.

    If a process is lost, JAX ends the others within HEARTBEAT_SECONDS. LOST is printed then, and also if this
    process is killed. The context ends when all processes have left its body. An error within ends this
    process: with the status of a SystemExit, with 2 after printing a UserError, with 1 after any other.

    Raises UserError for values that make no sense, and if the processes cannot connect.
    """
    import jax

    _check(coordinator, num_processes, process_id)
    if not _initialize(coordinator, num_processes, process_id):
        yield
        return
    watcher, connected = _start_watcher(), False
    try:
        faulthandler.disable()  # JAX aborts the processes of a job that has lost one: no stacks of threads
        processes.enter(processes.Job(jax.process_count(), jax.process_index(), is_jax=True))
        counts = collections.Counter(device.process_index for device in jax.devices())
        if len(set(counts.values())) > 1:
            raise UserError(
                f"The processes of this job have different numbers of devices ({sorted(counts.values())}); "
                "give every process the same number."
            )
        hosts, index = processes.gather(socket.gethostname()), jax.process_index()
        connected = True
        leads = hosts.index(hosts[index]) == index
        processes.enter(processes.Job(len(hosts), index, leads_host=leads, is_jax=True))
        yield
        processes.gather(None)  # process 0 may still be writing, and must not be called lost
    except BaseException as error:
        _end(error, watcher, connected)
    processes.enter(processes.Job())
    jax.distributed.shutdown()
    _dismiss(watcher)


def _end(error: BaseException, watcher: subprocess.Popen, connected: bool) -> NoReturn:
    """End this process with an error, which the others may have met or not.

    connected: whether the processes had met before.

    JAX's own way to leave a job waits for all processes, and aborts this one if one does not arrive.
    """
    status = 2 if isinstance(error, UserError) else 1
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else 1
    elif isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
    elif any(words in str(error) for words in _LOST_PEER):
        reason = str(error).splitlines()[0]
        print(f"{REPORTED} {reason}\n{LOST}" if connected else f"{UNREACHED}: {reason}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    _dismiss(watcher)
    if processes.is_first():
        # JAX aborts the others when process 0 ends: those with the same error can end by themselves first.
        time.sleep(LAST_SECONDS)
    os._exit(status)


def _dismiss(watcher: subprocess.Popen) -> None:
    """Let the watcher end without a word."""
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

    if num_processes is not None and num_processes > 1:
        print(f"Waiting for the other processes of this job; process 0 is at {coordinator}.", file=sys.stderr)
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
    if processes.launched() > 1:
        raise UserError(
            f"{processes.launched()} processes were started, and JAX cannot detect how they belong together; "
            "give each --coordinator, --num_processes and --process_id."
        )


def _start_watcher() -> subprocess.Popen:
    """Start a program that prints LOST if this process ends without having said that it is done.

    JAX aborts the processes of a job that has lost one, so that they cannot print it themselves.
    """
    return subprocess.Popen(
        [sys.executable, "-S", "-c", _WATCHER, LOST], stdin=subprocess.PIPE, start_new_session=True
    )
