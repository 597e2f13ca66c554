"""A trace of some of a run's steps, for TensorBoard and Perfetto."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from jaxtyping import PyTree

from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import writing
from cvae_jax.runtime.progress import tell

FOLDER = "profile"


def check_steps(steps: Sequence[int], of_run: int | None = None) -> None:
    """Raise UserError unless `config.profile_steps` is empty or (first, end), within the steps of a run."""
    if not steps:
        return
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
    if len(steps) != 2 or not whole or not 0 <= steps[0] < steps[1]:
        raise UserError(
            f"config.profile_steps is {tuple(steps)!r}; give (first, end), counted from 0: (10, 13) traces "
            "the steps 10, 11 and 12."
        )
    if of_run is not None and steps[1] > of_run:
        raise UserError(
            f"config.profile_steps is {tuple(steps)!r}, but the run has {of_run} steps: give an end of at "
            f"most {of_run}."
        )


@dataclasses.dataclass
class Profile:
    """Traces the steps first .. end - 1 of a run into a folder of its workdir; steps: () for none."""

    workdir: Path
    steps: Sequence[int] = ()
    _on: bool = dataclasses.field(default=False, init=False)

    def before(self, step: int, state: PyTree) -> float:
        """Start or end the trace before a step, and return the seconds that it took.

        state: what the step before it returned.
        """
        if not self.steps:
            return 0.0
        first, end = self.steps
        started = time.monotonic()
        if self._on and step >= end:
            jax.block_until_ready(state)
            self.close()
        elif not self._on and step == first:
            jax.block_until_ready(state)  # what was dispatched before has no part in the trace
            with writing(f"the trace in {self.workdir / FOLDER}"):
                jax.profiler.start_trace(str(self.workdir / FOLDER), create_perfetto_trace=True)
            self._on = True
        return time.monotonic() - started

    def close(self) -> None:
        """End the trace, if there is one, and say where it is."""
        if not self._on:
            return
        self._on = False
        with writing(f"the trace in {self.workdir / FOLDER}"):
            jax.profiler.stop_trace()
        tell(
            f"The steps {self.steps[0]} to {self.steps[1] - 1} are traced in {self.workdir / FOLDER}. Open "
            "its perfetto_trace.json.gz at https://ui.perfetto.dev, or open the folder in TensorBoard with "
            "the plugin tensorboard-plugin-profile."
        )
