"""What happens after a training step whose loss, gradient or new parameters are not finite."""

from __future__ import annotations

import math

from cvae_jax.runtime.errors import NonFiniteError, UserError
from cvae_jax.runtime.progress import warn

STOP, SKIP = POLICIES = ("stop", "skip")


class NonFinite:
    """Counts the steps that are not finite, which leave the parameters as they are (see `training.step`).

    Args:
      policy: 'stop' or 'skip'.
      limit: with 'skip', training stops after so many of them in a row. (Where a run is resumed, the count
        starts anew.)

    Attributes:
      stops: whether training must stop.

    Raises UserError for values that make no sense.
    """

    def __init__(self, policy: str = STOP, limit: int = 10):
        if policy not in POLICIES:
            raise UserError(f"config.nonfinite is {policy!r}; choose one of {', '.join(POLICIES)}.")
        if limit < 1:
            raise UserError(f"config.nonfinite_limit is {limit}; give at least 1.")
        self.skips, self._limit = policy == SKIP, limit
        self._in_a_row = 0
        self._found = ""
        self.stops = False

    def meets(self, values: dict[str, float], number: int, epoch: int) -> bool:
        """Return whether batch `number` of an epoch, both from 0, with these metrics is not finite."""
        if values["finite"]:
            self._in_a_row = 0
            return False
        if self.stops:  # a step that was on its way
            return True
        self._in_a_row += 1
        loss, norm = values["loss"], values["grad_norm"]
        self._found = (
            f"epoch {epoch + 1}, batch {number + 1}: the loss is {loss} and the gradient norm {norm}"
        )
        if math.isfinite(loss) and math.isfinite(norm):
            self._found += ", but a new parameter is not finite"
        self.stops = not self.skips or self._in_a_row >= self._limit
        if self.skips:
            warn(f"Skipped one step at {self._found}.")
        return True

    def error(self, last: str) -> NonFiniteError:
        """Return the error to stop with. last: what the last checkpoint is."""
        advice = "Lower config.learning_rate.peak or raise config.beta.floor and start a new run"
        if self.skips:
            return NonFiniteError(
                f"Training stopped after skipping {self._in_a_row} steps in a row that were not finite, the "
                f"last at {self._found}; {last}. {advice}."
            )
        return NonFiniteError(
            f"Training stopped at {self._found}; {last}. {advice}, or resume this one with "
            "--config.nonfinite=skip to leave such steps out."
        )
