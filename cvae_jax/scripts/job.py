"""The flags that make a script one process of a job."""

from __future__ import annotations

import contextlib

from absl import flags

from cvae_jax.runtime import processes


def define() -> None:
    """Define the flags that `joined` reads."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, for a job of several processes; see docs/tpu.md."
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes of the job.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")


def joined() -> contextlib.AbstractContextManager[None]:
    """Return a context in the job that the flags describe; see `runtime.processes.joined`."""
    values = flags.FLAGS
    return processes.joined(values.coordinator, values.num_processes, values.process_id)
