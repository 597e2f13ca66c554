"""The flags that make a script one process of a job."""

from __future__ import annotations

from collections.abc import Callable

from absl import flags

from cvae_jax.runtime import cli
from cvae_jax.runtime.job import joined


def define() -> None:
    """Define the flags that `run` reads."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, for a job of several processes; see docs/tpu.md."
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes of the job.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")


def run(body: Callable[[], None], resumes: bool = False) -> None:
    """Call body() in the job that the flags describe; see `runtime.job.joined`.

    What `cli.guarded` reports, it reports before this process leaves the others; resumes: see there.
    """
    values = flags.FLAGS
    with joined(values.coordinator, values.num_processes, values.process_id):
        cli.guarded(body, resumes)
