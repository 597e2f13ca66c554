"""Jobs of several processes on this machine, each with fake devices of its own."""

import contextlib
import socket
import subprocess
import sys
from typing import NamedTuple

from helpers import ROOT

SECONDS = 400  # a process that takes longer hangs


class Ended(NamedTuple):
    status: int
    said: str
    errors: str


def free_port():
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(environment, count, devices, command, files=None):
    """Start `count` processes of a job with `devices` each; command(index) is a script and its flags.

    files: for each process, those that it writes its output and errors to; None: pipes. A job of one process
    is started as any user would.
    """
    environment = environment | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    coordinator, started = f"127.0.0.1:{free_port()}", []
    for index in range(count):
        script, *flags = command(index)
        out, err = files[index] if files else (subprocess.PIPE, subprocess.PIPE)
        if count > 1:
            flags += [f"--coordinator={coordinator}", f"--num_processes={count}", f"--process_id={index}"]
        started.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / script), *flags],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=err,
                text=True,
            )
        )
    return started


def end(started):
    """Return how the processes ended, which they do in time or are killed."""
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Ended(p.returncode, *output) for p, output in zip(started, outputs, strict=True)]


def run(environment, count, devices, *command):
    """Run a job whose processes all get the same script and flags; return how they ended."""
    return end(start(environment, count, devices, lambda index: command))
