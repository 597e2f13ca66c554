"""The sections `config.eval` and `config.checkpoint`, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cvae_jax.perceptual import i3d, lpips
from cvae_jax.perceptual.weights import require
from cvae_jax.runtime.errors import UserError


def refuse_below(section: str, values: Any, least: Mapping[str, int]) -> None:
    """Raise UserError where a field of config.<section> is less than its least value."""
    for field, smallest in least.items():
        value = getattr(values, field)
        if value is not None and not value >= smallest:
            raise UserError(f"config.{section}{field} is {value!r}; give at least {smallest}.")


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """The section `config.eval`; `cvae_jax/defaults.py` explains its fields."""

    every: int
    samples: int
    best_of: int
    temperature: float | None
    noise_correlation: float
    batch_size: int
    chunk: int
    seed: int
    lpips: bool | None
    fvd_clips: int

    def __post_init__(self) -> None:
        least = dict(every=1, samples=1, best_of=0, temperature=0, batch_size=1, chunk=1, seed=0, fvd_clips=0)
        refuse_below("eval.", self, least)
        if not 0 <= self.noise_correlation < 1:
            raise UserError(
                f"config.eval.noise_correlation is {self.noise_correlation}; give a number in [0, 1)."
            )
        if self.fvd_clips == 1:
            raise UserError("config.eval.fvd_clips is 1; give at least 2, or 0 for no FVD.")

    def require_packages(self) -> None:
        """Raise UserError where a metric that is asked for needs a package that is not installed."""
        if self.lpips:
            require(lpips.PACKAGE, "config.eval.lpips=True")
        if self.fvd_clips:
            require(i3d.PACKAGE, f"config.eval.fvd_clips={self.fvd_clips}")


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """The section `config.checkpoint`; `cvae_jax/defaults.py` explains its fields."""

    keep: int
    every: int
    save_every: int
    minutes: float

    def __post_init__(self) -> None:
        refuse_below("checkpoint.", self, dict(keep=1, every=1, save_every=0, minutes=0))
        if self.save_every % self.every:
            raise UserError(
                f"config.checkpoint.save_every is {self.save_every}; give a multiple of "
                f"config.checkpoint.every={self.every}, the epochs that have a checkpoint to keep."
            )
