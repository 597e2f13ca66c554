"""What happens to training steps whose loss, gradients or new parameters are not finite."""

from __future__ import annotations

from collections.abc import Callable

from cvae_jax.runtime.errors import NonFiniteError, UserError
from cvae_jax.runtime.progress import warn

STOP, SKIP = POLICIES = ("stop", "skip")


class NonFinite:
    """Counts the steps that are not finite, none of which changes the parameters (see `training.step`).

    Args:
      policy: 'stop' or 'skip'.
      limit: so many skipped steps in a row are too many.

    Attributes:
      error: set when too many were skipped.

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
        found = f"the loss is {values['loss']} and the gradient's norm {values['grad_norm']}"
        advice = (
            "Lower config.learning_rate.peak, or give beta a floor (config.beta.floor), and start a new run"
        )
        if self._policy == STOP:
            raise NonFiniteError(
                f"Training stopped at {where}: {found}; {last()}. {advice}; "
                "--config.nonfinite=skip resumes this one and leaves such steps out."
            )
        warn(f"Skipped {where}: {found}.")
        if self._in_a_row >= self._limit:
            self.error = NonFiniteError(
                f"Training stopped at {where}: {self._in_a_row} steps in a row were not finite and skipped "
                f"({found}); the parameters before them have been saved. {advice}."
            )
        return True
