"""A trace of some of a run's steps, for TensorBoard and Perfetto."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import writing
from cvae_jax.runtime.progress import tell

FOLDER = "profile"


def check_steps(steps: Sequence[Any], of_run: int | None = None) -> None:
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
    _traced: list[int] = dataclasses.field(default_factory=list, init=False)

    def before(self, step: int, state: PyTree) -> float:
        """Start the trace before a step that begins it, and return the seconds that this took.

        state: what the step before it returned. A run that resumes between first and end begins there.
        """
        if self._traced or not self.steps or not self.steps[0] <= step < self.steps[1]:
            return 0.0
        jax.block_until_ready(state)  # what was dispatched before has no part in the trace
        started = time.monotonic()
        with self._writing():
            jax.profiler.start_trace(str(self.workdir / FOLDER), create_perfetto_trace=True)
        self._traced.append(step)
        return time.monotonic() - started

    def after(self, step: int, state: PyTree) -> float:
        """End the trace after its last step, which returned `state`; return the seconds that this took."""
        if not self._traced or not self.steps:
            return 0.0
        self._traced.append(step)
        if step + 1 < self.steps[1]:
            return 0.0
        jax.block_until_ready(state)
        started = time.monotonic()
        self.close()
        return time.monotonic() - started

    def close(self) -> None:
        """End the trace, if there is one, and say where it is."""
        if not self._traced:
            return
        first, last = self._traced[0], self._traced[-1]
        self._traced, self.steps = [], ()
        with self._writing():
            jax.profiler.stop_trace()
        tell(
            f"The steps {first} to {last} are traced in {self.workdir / FOLDER}. Open its "
            "perfetto_trace.json.gz at https://ui.perfetto.dev, or open the folder in TensorBoard with the "
            "plugin tensorboard-plugin-profile."
        )

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(f"the trace in {self.workdir / FOLDER}")
