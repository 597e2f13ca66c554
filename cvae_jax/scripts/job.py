"""The flags by which a script is one of several processes of a job."""

from __future__ import annotations

import contextlib

from absl import flags

from cvae_jax.runtime import processes


def define() -> None:
    """Define the flags that `joined` reads."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, for several processes; see docs/tpu.md."
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes; needs --coordinator.")
    flags.DEFINE_integer("process_id", None, "The number of this process, from 0; needs --coordinator.")


def joined() -> contextlib.AbstractContextManager[None]:
    """Return the context of a process of the job that the flags describe; see `runtime.processes.joined`."""
    values = flags.FLAGS
    return processes.joined(values.coordinator, values.num_processes, values.process_id)
