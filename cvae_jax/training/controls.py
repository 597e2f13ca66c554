"""What changes from step to step and reaches the compiled step as arguments: schedules and decisions."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from cvae_jax.runtime.errors import UserError
from cvae_jax.schedules import BetaSchedule, LearningRate, TeacherForcing, teacher_forcing_draw


class StepControls(NamedTuple):
    """The controls of one step.

    Attributes:
      traced: the arguments of the compiled step (see `make_train_step`), forced among them if one decision
        serves the whole batch.
      by_clip: decisions per clip, bool (b, T-1); None otherwise.
      logged: beta, learning_rate, ratio (the teacher-forcing ratio) and forced_share (what was drawn).
    """

    traced: dict[str, np.ndarray | np.generic]
    by_clip: np.ndarray | None
    logged: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Controls:
    """The schedules of a run, evaluated step by step."""

    beta: BetaSchedule
    forcing: TeacherForcing
    learning_rate: LearningRate
    seed: int
    num_epochs: int
    steps_per_epoch: int
    batch_size: int
    clip_length: int
    n_past: int

    def __post_init__(self) -> None:
        if self.num_epochs * self.steps_per_epoch >= 2**31:  # steps are counted in int32
            raise UserError(
                f"config.num_epochs is {self.num_epochs}, of {self.steps_per_epoch} steps each: keep the run "
                "below 2**31 steps."
            )

    @property
    def throughout(self) -> bool | None:
        """Whether all steps of all clips see the true previous frame; None if draws decide that.

        False: only steps from context frames do.
        """
        if self.clip_length - 1 <= self.n_past:
            return True
        if self.forcing.kind != "constant":
            return None
        return {0.0: False, 1.0: True}.get(float(self.forcing.initial))

    def values(self, epoch: int, number: int) -> dict[str, float]:
        """Return beta, learning_rate and ratio at batch `number` of an epoch.

        Raises UserError for schedules that do not fit the run's length.
        """
        step = epoch * self.steps_per_epoch + number
        place = dict(epoch=epoch, step=step, steps_per_epoch=self.steps_per_epoch)
        return {
            "beta": self.beta.value(**place, num_epochs=self.num_epochs),
            "learning_rate": self.learning_rate.value(**place, num_epochs=self.num_epochs),
            "ratio": self.forcing.ratio(**place),
        }

    def at(self, epoch: int, number: int) -> StepControls:
        """Return the controls of batch `number` of an epoch; steps from a context frame are always forced."""
        values = self.values(epoch, number)
        steps = self.clip_length - 1
        forced = teacher_forcing_draw(
            self.seed, epoch, number, values["ratio"], self.forcing.draw, steps, self.batch_size
        )
        logged = values | {"forced_share": float(np.mean(forced))}
        given = np.arange(1, self.clip_length) <= self.n_past
        forced = forced | (given if forced.ndim == 1 else given[:, None])
        traced: dict[str, np.ndarray | np.generic] = {
            "seed": np.uint32(self.seed),
            "beta": np.float32(values["beta"]),
            "learning_rate": np.float32(values["learning_rate"]),
        }
        if forced.ndim == 2:
            return StepControls(traced, forced.T, logged)
        return StepControls(traced | {"forced": forced}, None, logged)
