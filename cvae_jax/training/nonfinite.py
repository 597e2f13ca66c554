"""What happens after a training step whose loss, gradient or new parameters are not finite."""

from __future__ import annotations

from collections.abc import Callable

from cvae_jax.runtime.errors import NonFiniteError, UserError
from cvae_jax.runtime.progress import warn

STOP, SKIP = POLICIES = ("stop", "skip")


class NonFinite:
    """Counts the steps that are not finite, which leave the parameters as they are (see `training.step`).

    Args:
      policy: 'stop' or 'skip'.
      limit: training stops after so many skipped steps in a row.

    Attributes:
      error: what to raise; set once the limit is reached.

    Raises UserError for values that make no sense.
    """

    def __init__(self, policy: str = STOP, limit: int = 10):
        if policy not in POLICIES:
            raise UserError(f"config.nonfinite is {policy!r}; choose one of {', '.join(POLICIES)}.")
        if limit < 1:
            raise UserError(f"config.nonfinite_limit is {limit}; give at least 1.")
        self._policy, self._limit = policy, limit
        self._in_a_row = 0
        self.error: NonFiniteError | None = None

    def skips(self, values: dict[str, float], number: int, epoch: int, last: Callable[[], str]) -> bool:
        """Return whether batch `number` of an epoch, with these metrics, is skipped.

        last: called to say what the last checkpoint is. Raises NonFiniteError under the policy 'stop'.
        """
        if values["finite"]:
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        where = f"epoch {epoch}, batch {number}"
        found = f"the loss is {values['loss']} and the gradient norm is {values['grad_norm']}"
        advice = "Lower config.learning_rate.peak or raise config.beta.floor and start a new run"
        if self._policy == STOP:
            raise NonFiniteError(
                f"Training stopped at {where}: {found}; {last()}. {advice}, or resume this one with "
                "--config.nonfinite=skip to leave such steps out."
            )
        warn(f"Skipped {where}: {found}.")
        if self._in_a_row >= self._limit:
            self.error = NonFiniteError(
                f"Training stopped at {where} after skipping {self._in_a_row} steps in a row that were not "
                f"finite ({found}). The parameters from before them have been saved. {advice}."
            )
        return True
