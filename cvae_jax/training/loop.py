"""The training loop: epochs of compiled steps, validation, logs, checkpoints, exact resume."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import jax
from jaxtyping import PyTree

from cvae_jax.data.loader import TrainLoader
from cvae_jax.runtime import processes
from cvae_jax.runtime.devices import Devices, prefetch
from cvae_jax.runtime.progress import Announcement, announce_resume, epoch_bar
from cvae_jax.training.checkpoint import BEST, Progress
from cvae_jax.training.controls import Controls
from cvae_jax.training.logging import CONTROLS, SKIPPED, epoch_row
from cvae_jax.training.nonfinite import NonFinite
from cvae_jax.training.profile import Profile
from cvae_jax.training.resume import append_row, keep_rows, resume
from cvae_jax.training.state import TrainState
from cvae_jax.training.throughput import Meter, Throughput


class Stopped(Exception):
    """Training was asked to stop between two steps; what the last checkpoint holds is kept."""


class Preempted(Exception):
    """Training was asked to stop; a checkpoint of step `step` is on disk (none before the first step)."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


@runtime_checkable
class Validate(Protocol):
    """Scores variables on the validation clips; see `cvae_jax.evaluation.validation.Validation`."""

    empty: dict[str, None]

    def run(
        self, variables: PyTree, beta: float, announce: Callable, go_on: Callable[[], bool]
    ) -> Any | None:
        """Return an object with `fields`, `per_frame` and `videos`; None where `go_on` became False."""
        ...


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When a run validates and saves.

    Attributes: num_epochs; validate_every and checkpoint_every, in epochs (the last epoch always does both);
    checkpoint_minutes, how long after a checkpoint a step saves the next, 0 for never.
    """

    num_epochs: int
    validate_every: int
    checkpoint_every: int
    checkpoint_minutes: float

    def validates(self, epoch: int) -> bool:
        """Return whether an epoch ends with a validation."""
        return (epoch + 1) % self.validate_every == 0 or self.is_last(epoch)

    def saves(self, epoch: int) -> bool:
        """Return whether an epoch ends with a checkpoint."""
        return (epoch + 1) % self.checkpoint_every == 0 or self.is_last(epoch)

    def is_last(self, epoch: int) -> bool:
        """Return whether the run ends with this epoch."""
        return epoch + 1 == self.num_epochs


@dataclasses.dataclass
class Run:
    """One training run. Everything it needs is given to it; `cvae_jax.train.open_run` opens it for a config.

    Attributes:
      initial_state: makes the state before the first step.
      train_step: the mapped function of `make_train_step`.
      checkpoints, writers: `Checkpoints` and `Writers`.
      metrics_file: gets one row per epoch.
      throughput: measures how fast the run is.
      profile: traces some of its steps.
      nonfinite: decides what happens after a step that is not finite.
      should_stop: asked after every step; True raises Stopped.
      resume_from: see `resume`.
      describe: called in process 0 when it is certain that the run begins, or resumes.
      resources: what the run has open; closed when it ends.

    In a job of several processes all take the same steps, and process 0 alone has checkpoints and writers and
    writes to the workdir; the others have None in their place.
    """

    initial_state: Callable[[], TrainState]
    loader: TrainLoader
    controls: Controls
    cadence: Cadence
    train_step: Callable
    devices: Devices
    validate: Validate
    checkpoints: Any
    writers: Any
    metrics_file: Path
    throughput: Throughput
    profile: Profile
    nonfinite: NonFinite = dataclasses.field(default_factory=NonFinite)
    should_stop: Callable[[], bool] = lambda: False
    resume_from: int | None = None
    describe: Callable[[], None] = lambda: None
    resources: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    _compiled: bool = dataclasses.field(default=False, init=False)
    _preempted: Callable[[], bool] = dataclasses.field(init=False)
    _last_save: float = dataclasses.field(init=False)  # on the clock of time.monotonic

    def finish(self, preempted: Callable[[], bool] = lambda: False) -> TrainState:
        """Run every epoch that is not done yet, and close what the run has open, whatever happens.

        preempted: asked before the first step of an epoch, after every step and after every clip of a
        validation; True saves a checkpoint and raises Preempted.
        """
        self._preempted, self._last_save = preempted, time.monotonic()
        with self.resources:
            state, progress = self._start()
            for epoch in range(progress.epoch, self.cadence.num_epochs):
                state = self._epoch(state, epoch, progress)
                progress = Progress(epoch + 1)
        return state

    def _start(self) -> tuple[TrainState, Progress]:
        progress = Progress()
        workdir = self.metrics_file.parent

        def begin() -> tuple[TrainState, Progress] | None:
            found = resume(self.checkpoints, workdir, self.initial_state, self.resume_from)
            self.describe()
            keep_rows(self.metrics_file, found[1].epoch if found else 0)
            return found

        restored = processes.on_first(begin)
        if restored:
            state, progress = restored
            announce_resume(progress.epoch, progress.batch, self.cadence.num_epochs)
        else:
            state = self.initial_state()
        return self.devices.place(state), progress

    def _epoch(self, state: TrainState, epoch: int, progress: Progress) -> TrainState:
        started = time.monotonic()
        meter = self.throughput.epoch()
        sums = dict(progress.sums)
        bar = epoch_bar(epoch, self.cadence.num_epochs, self.loader.num_batches, progress.batch)
        pending: tuple[int, dict] | None = None
        logged = self.controls.at(epoch, self.loader.num_batches - 1).logged  # if all steps are done
        asked = started
        waited = 0.0  # for batches

        def collect() -> None:
            """Fetch the previous step's metrics after dispatching this one, so that the host never blocks."""
            nonlocal pending
            if pending is None:
                return
            number, metrics = pending
            pending = None
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if self.nonfinite.meets(values, number, epoch):
                sums[SKIPPED] = sums.get(SKIPPED, 0.0) + 1
                return
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
            shown = {"loss": f"{values['loss']:.4g}", "beta": f"{logged['beta']:.3g}"}
            shown |= {"ratio": f"{logged['ratio']:.2f}"} | meter.shown
            bar.set_postfix(shown, refresh=False)

        def save(done: int) -> int:
            """Save after `done` batches of this epoch, if this is process 0, and return the step."""
            step = epoch * self.loader.num_batches + done
            self._last_save = time.monotonic()
            if processes.is_first():
                self.checkpoints.save(step, state, Progress(epoch, done, dict(sums)), None)
            return step

        def stop_if_not_finite(done: int) -> None:
            """Stop where a collected step demands it, after saving the state that skipping has kept good."""
            if self.nonfinite.stops:
                collect()
                if self.nonfinite.skips:
                    save(done)
                raise self.nonfinite.error(processes.on_first(self._last_checkpoint))

        def save_and_stop(done: int) -> NoReturn:
            collect()
            stop_if_not_finite(done)
            step = save(done) if epoch or done else 0
            processes.on_first(lambda: self.checkpoints.wait())
            raise Preempted(step)

        with bar:
            if self._preempted():
                save_and_stop(progress.batch)
            for number, batch, traced, logged in prefetch(self._steps(epoch, progress.batch)):
                waited += time.monotonic() - asked
                step = epoch * self.loader.num_batches + number
                meter.leave_out(self.profile.before(step, state))
                state, metrics = self._step(bar, meter, state, batch, traced)
                meter.step(self.loader.clips_of(number), logged["forced_share"])
                meter.leave_out(self.profile.after(step, state))
                collect()
                pending = (number, metrics)
                for name in CONTROLS:
                    sums[name] = sums.get(name, 0.0) + logged[name]
                bar.update()
                stop_if_not_finite(number + 1)
                if self.should_stop():
                    raise Stopped
                if self._preempted():
                    save_and_stop(number + 1)
                minutes = self.cadence.checkpoint_minutes
                due = minutes and time.monotonic() - self._last_save > 60 * minutes
                if due and number + 1 < self.loader.num_batches:
                    collect()
                    if not self.nonfinite.stops:
                        save(number + 1)
                asked = time.monotonic()
            collect()
            stop_if_not_finite(self.loader.num_batches)
            trained = time.monotonic()
            row = epoch_row(epoch, self.loader.num_batches, sums, logged) | meter.fields()
            found = None
            if self.cadence.validates(epoch):
                found = self._validate(state, logged["beta"], bar)
                if found is None:
                    save_and_stop(self.loader.num_batches)
            row |= self.validate.empty if found is None else found.fields
            row["train_seconds"] = round(trained - started, 3)
            row["input_seconds"] = round(waited, 3)
            row["validation_seconds"] = round(time.monotonic() - trained, 3)

        def record() -> None:
            append_row(self.metrics_file, row)
            self.writers.epoch(row)
            if found is not None:
                self.writers.validation(row["step"], found.per_frame, found.videos)
            if self.cadence.saves(epoch):
                is_known = row[BEST] is not None and math.isfinite(row[BEST])
                chosen_by = {BEST: row[BEST]} if is_known else None
                unvalidated = progress.batch == self.loader.num_batches  # where the run was resumed
                self.checkpoints.save(row["step"], state, Progress(epoch + 1), chosen_by, replace=unvalidated)
            if self.cadence.is_last(epoch):
                self.checkpoints.wait()

        processes.on_first(record)
        if self.cadence.saves(epoch):
            self._last_save = time.monotonic()
        return state

    def _step(self, bar: Any, meter: Meter, *arguments: Any) -> tuple[TrainState, dict]:
        """Dispatch the training step; the run's first one compiles, behind a message."""
        if self._compiled:
            return self.train_step(*arguments)
        with Announcement(bar, "compiling the training step"):
            self._compiled = True
            self.throughput.count_operations(*arguments)
            done = jax.block_until_ready(self.train_step(*arguments))
        meter.begin()
        return done

    def _steps(self, epoch: int, start: int) -> Iterator[tuple[int, dict, dict, dict]]:
        """Yield (number, device batch, traced controls, logged controls) of an epoch's steps."""
        for number, batch in enumerate(self.loader.batches(epoch, start), start):
            controls = self.controls.at(epoch, number)
            if controls.by_clip is not None:
                batch["forced"] = controls.by_clip[batch["index"] % len(controls.by_clip)]
            yield number, self.devices.split(batch), controls.traced, controls.logged

    def _last_checkpoint(self) -> str:
        """Return what the last checkpoint is, in words."""
        self.checkpoints.wait()
        kept = self.checkpoints.steps
        found = f"the last checkpoint is step {kept[-1]}" if kept else "there is no checkpoint yet"
        return f"{found} in {self.checkpoints.folder}"

    def _validate(self, state: TrainState, beta: float, bar: Any) -> Any | None:
        """Return what a validation found; None if the run was preempted."""
        announce = functools.partial(Announcement, bar)
        found = self.validate.run(state.evaluation_variables, beta, announce, lambda: not self._preempted())
        if found is not None:
            bar.set_postfix(
                prior=f"{found.fields['val_psnr_prior']:.2f} dB",
                posterior=f"{found.fields['val_psnr_posterior']:.2f} dB",
            )
        return found
