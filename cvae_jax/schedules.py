"""Values that change during a run, as pure functions of where the run stands.

Everything here is known on the host before a step runs, so asking for a value never waits for the
accelerator; the training step receives it as a traced argument and is compiled once. Epochs and
steps count from 0. Nothing is stateful: a resumed run asks the same questions and gets the same
answers.

Two definitions of annealing live side by side. The report's is measured in epochs by
`cycle_length`; that of Fu et al. (NAACL 2019) divides the whole run into `num_cycles`.
"""

import functools
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cvae_jax.runtime.errors import UserError

BETA_KINDS = ("none", "monotonic", "cyclical", "fu_cyclical")
BETA_UNITS = ("epoch", "iteration")
FORCING_KINDS = ("constant", "exponential", "linear", "inverse_sigmoid")
DRAW_KINDS = ("epoch", "batch", "step", "example_step")
LEARNING_RATE_UNITS = ("epoch", "step")
TABLE_SIZE = 2**20  # learning rates computed at once

Number = int | float

# Keeps these draws apart from every other use of the same seed; one stream per kind of draw.
_FORCING_STREAM = {kind: 0x7EAC_4E00 + index for index, kind in enumerate(DRAW_KINDS)}

RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda v: v,
    "sigmoid": lambda v: 1.0 / (1.0 + math.exp(-(12.0 * v - 6.0))),
    "cosine": lambda v: 0.5 - 0.5 * math.cos(math.pi * v),
}


def report_ramp(epoch: int, cycle_length: Number, ratio: Number) -> float:
    """Returns the report's ramp min(1, ((e mod L) / L) / R) at an epoch, in [0, 1].

    `cycle_length` L > 0 is in epochs, `ratio` R in (0, 1] is the share of a cycle spent rising.
    """
    return min(1.0, (epoch % cycle_length) / cycle_length / ratio)


def report_monotonic(epoch: int, cycle_length: Number, ratio: Number) -> float:
    """Returns the report's monotonic shape, in [0, 1]: its ramp in the first cycle, then 1."""
    return report_ramp(epoch, cycle_length, ratio) if epoch < cycle_length else 1.0


def fu_cyclical(index: int, total: int, num_cycles: int, ratio: Number, ramp: str) -> float:
    """Returns the cyclical shape of Fu et al. (NAACL 2019, equations 6 and 7), in [0, 1].

    `index` counts the units (epochs or iterations) of the run from 0, `total` T is their number and
    `num_cycles` M <= T; tau = mod(index, ceil(T / M)) / (T / M), and the value is f(tau / R) while
    tau <= R = `ratio`, then 1. `ramp` names f: linear, sigmoid or cosine, each over [0, 1]; the
    sigmoid starts at 0.0025 and not at 0. One cycle with ratio 0.25 is their monotonic schedule.
    """
    tau = (index % math.ceil(total / num_cycles)) / (total / num_cycles)
    return RAMPS[ramp](tau / ratio) if tau <= ratio else 1.0


@no_type_check  # __post_init__ refuses wrong types itself, with a sentence for the user
@dataclass(frozen=True)
class BetaSchedule:
    """The weight of the KL term: max(floor, scale * shape), where the shape rises from 0 to 1.

    kind: "none" (1 throughout), "monotonic" and "cyclical" (the report's, by `cycle_length` in
    epochs), or "fu_cyclical" (`num_cycles` over the whole run, counted in `unit`s, rising by
    `ramp`; the monotonic schedule of Fu et al. is num_cycles=1, ratio=0.25).
    ratio: share of a cycle spent rising, in (0, 1]. scale: weight at the top. floor: least weight,
    in [0, scale].
    Raises UserError, naming the field, for a value out of its range.
    """

    kind: str = "cyclical"
    cycle_length: float = 10
    ratio: float = 0.5
    num_cycles: int = 4
    unit: str = "iteration"
    ramp: str = "linear"
    scale: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_name("beta.kind", self.kind, BETA_KINDS)
        _check_name("beta.unit", self.unit, BETA_UNITS)
        _check_name("beta.ramp", self.ramp, tuple(RAMPS))
        _check("beta.cycle_length", self.cycle_length, "a number of epochs > 0", lambda x: x > 0)
        _check("beta.ratio", self.ratio, "a number in (0, 1]", lambda x: 0 < x <= 1)
        _check_whole("beta.num_cycles", self.num_cycles, 1)
        _check("beta.scale", self.scale, "a number >= 0", lambda x: x >= 0)
        allowed = f"a number from 0 to config.beta.scale ({self.scale!r})"
        _check("beta.floor", self.floor, allowed, lambda x: 0 <= x <= self.scale)

    def value(self, *, epoch: int, step: int, num_epochs: int, steps_per_epoch: int) -> float:
        """Returns beta at a step, which is counted over the whole run; only Fu's form looks at it.

        Raises UserError if the run is too short for `num_cycles`.
        """
        if self.kind == "none":
            shape = 1.0
        elif self.kind == "monotonic":
            shape = report_monotonic(epoch, self.cycle_length, self.ratio)
        elif self.kind == "cyclical":
            shape = report_ramp(epoch, self.cycle_length, self.ratio)
        else:
            index, total = epoch, num_epochs
            if self.unit == "iteration":
                index, total = step, num_epochs * steps_per_epoch
            if self.num_cycles > total:
                raise UserError(
                    f"config.beta.num_cycles is {self.num_cycles} but the run has only {total} "
                    f"{self.unit}(s); lower it or train for longer."
                )
            shape = fu_cyclical(index, total, self.num_cycles, self.ratio, self.ramp)
        return max(float(self.floor), self.scale * shape)


def teacher_forcing_draw(
    seed: int,
    epoch: int,
    batch_in_epoch: int,
    ratio: float,
    kind: str,
    num_steps: int,
    batch_size: int,
) -> np.ndarray:
    """Draws where the true previous frame is used (True), each with probability `ratio`.

    Returns booleans of shape (num_steps,) for the kinds "epoch" (one draw, the same in every batch
    of the epoch), "batch" (one draw a batch) and "step" (one per predicted frame and batch), and of
    shape (num_steps, batch_size) for "example_step". Index 0 is the frame t = 1. A pure function of
    its arguments: the draw is addressed by (seed, kind, epoch, batch), so no state is kept, clip b
    has the same column in a batch of any size, and a higher ratio only adds True.
    """
    batch = 0 if kind == "epoch" else batch_in_epoch
    # A counter-based generator: the key and the upper words of the counter are the address, the
    # lowest word counts the numbers taken.
    key = np.array([int(seed) % 2**64, _FORCING_STREAM[kind]], np.uint64)
    counter = np.array([0, 0, batch, epoch], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    if kind == "example_step":
        return generator.random((batch_size, num_steps)).T < ratio
    if kind == "step":
        return generator.random(num_steps) < ratio
    return np.full(num_steps, generator.random() < ratio)


@no_type_check  # __post_init__ refuses wrong types itself, with a sentence for the user
@dataclass(frozen=True)
class TeacherForcing:
    """How often the true previous frame is used in training, and how that is drawn.

    kind: "constant" (`initial`), "exponential" (initial * decay ** max(0, epoch - start), the
    report's), "linear" (max(0, initial - step * max(0, epoch - start))) or "inverse_sigmoid" (k / (k +
    exp(u / k)) after u updates since epoch `start`: scheduled sampling, Bengio et al., NIPS 2015, as in SAVP,
    Lee et al., 2018, with k = 900; `initial` is not used, and its draw cannot be "epoch").
    draw: what one draw decides, see `teacher_forcing_draw`; the report's is "epoch".
    Raises UserError, naming the field, for a value out of its range.
    """

    kind: str = "exponential"
    initial: float = 0.95
    decay: float = 0.95
    step: float = 0.05
    start: float = 10
    k: float = 900.0
    draw: str = "epoch"

    def __post_init__(self) -> None:
        _check_name("teacher_forcing.kind", self.kind, FORCING_KINDS)
        _check_name("teacher_forcing.draw", self.draw, DRAW_KINDS)
        probability = "a number in [0, 1]"
        _check("teacher_forcing.initial", self.initial, probability, lambda x: 0 <= x <= 1)
        _check("teacher_forcing.decay", self.decay, probability, lambda x: 0 <= x <= 1)
        _check("teacher_forcing.step", self.step, "a number >= 0", lambda x: x >= 0)
        _check("teacher_forcing.start", self.start, "an epoch >= 0", lambda x: x >= 0)
        _check("teacher_forcing.k", self.k, "a number >= 1", lambda x: x >= 1)
        if self.kind == "inverse_sigmoid" and self.draw == "epoch":
            raise UserError(
                "config.teacher_forcing.draw is 'epoch', but the ratio of kind 'inverse_sigmoid' changes "
                "from step to step; choose one of batch, step, example_step."
            )

    def ratio(self, epoch: int, step: int = 0, steps_per_epoch: int = 1) -> float:
        """Returns the probability, in [0, 1], of using the true previous frame.

        step: of the whole run; only "inverse_sigmoid" changes from step to step.
        """
        if self.kind == "inverse_sigmoid":
            updates = max(0.0, step - self.start * steps_per_epoch)
            return self.k / (self.k + math.exp(min(updates / self.k, 700.0)))  # beyond: not a float
        decayed = max(0, epoch - self.start)
        if self.kind == "exponential":
            return float(self.initial * self.decay**decayed)
        if self.kind == "linear":
            return max(0.0, float(self.initial - self.step * decayed))
        return float(self.initial)


@no_type_check  # __post_init__ refuses wrong types itself, with a sentence for the user
@dataclass(frozen=True)
class LearningRate:
    """Cosine decay from `peak` to `end` over the run, after an optional linear warm-up.

    per: "epoch" (the report's: constant within an epoch) or "step".
    warmup_epochs: whole epochs W of rising. With w of them in units of `per`, unit i < w has
    peak * (i + 1) / (w + 1): the first value is above 0 and unit w has the peak. The cosine then
    spans the rest of the run, and `end` would be reached one unit after the last.
    Raises UserError, naming the field, for a value out of its range.
    """

    peak: float = 1e-4
    end: float = 1e-6
    per: str = "epoch"
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        _check_name("learning_rate.per", self.per, LEARNING_RATE_UNITS)
        _check("learning_rate.peak", self.peak, "a number > 0", lambda x: x > 0)
        allowed = f"a number from 0 to config.learning_rate.peak ({self.peak!r})"
        _check("learning_rate.end", self.end, allowed, lambda x: 0 <= x <= self.peak)
        _check_whole("learning_rate.warmup_epochs", self.warmup_epochs, 0)

    def check_length(self, num_epochs: int) -> None:
        """Raises UserError if the warm-up is as long as the run."""
        if self.warmup_epochs >= num_epochs:
            raise UserError(
                f"config.learning_rate.warmup_epochs is {self.warmup_epochs} but the run has only "
                f"{num_epochs} epoch(s); keep it below config.num_epochs."
            )

    def value(self, *, epoch: int, step: int, num_epochs: int, steps_per_epoch: int) -> float:
        """Returns the learning rate at a step, which is counted over the whole run.

        Raises as `check_length` does.
        """
        self.check_length(num_epochs)
        per_step = self.per == "step"
        units = steps_per_epoch if per_step else 1
        index = step if per_step else epoch
        total = num_epochs * units
        index = min(index, total)
        first = index - index % TABLE_SIZE
        return float(
            _learning_rates(self.peak, self.end, self.warmup_epochs * units, total, first)[index - first]
        )


@functools.lru_cache(maxsize=8)
def _learning_rates(peak: float, end: float, warmup: int, total: int, first: int) -> np.ndarray:
    """optax's cosine schedule at the units from `first` on, computed at once: a step only looks it up.

    All of a run's, unless they are more than TABLE_SIZE.
    """
    schedule = optax.cosine_decay_schedule(peak, total - warmup, alpha=end / peak)
    if warmup:
        rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup])
    return np.asarray(jax.vmap(schedule)(jnp.arange(first, min(first + TABLE_SIZE, total + 1))))


def _check(field: str, value: Any, allowed: str, accepts: Callable[[float], bool]) -> None:
    """Refuses what is not a finite number or is out of range; a bool is not a number here."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and accepts(value)):
        raise UserError(f"config.{field} is {value!r}; set it to {allowed}.")


def _check_whole(field: str, value: Any, least: int) -> None:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (whole and value >= least):
        raise UserError(f"config.{field} is {value!r}; set it to a whole number >= {least}.")


def _check_name(field: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"config.{field} is {value!r}; choose one of {', '.join(known)}.")
