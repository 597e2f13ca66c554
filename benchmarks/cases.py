"""The timed cases of `benchmarks/run.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

FRAMES, LONG = 16, 64
# Of accelerators: steps in a round and rounds, also of a trial, and the report's model of a trial.
REPEATS, ROUNDS = 10, 5
TINY_REPEATS, TINY_ROUNDS = 1, 2
TINY_CVAE = {"frame_features": 8, "label_features": 4, "latent_channels": 4, "decoder_features": 12}


def milliseconds(seconds: Callable[[int], float], tiny: bool) -> list[float]:
    """Return those of a step in each round, ascending; seconds: what so many steps take."""
    repeats, rounds = (TINY_REPEATS, TINY_ROUNDS) if tiny else (REPEATS, ROUNDS)
    return sorted(1e3 * seconds(repeats) / repeats for _ in range(rounds))


@dataclasses.dataclass(frozen=True)
class Case:
    """A timed case: its name in the JSON, the request, how it reads, and its numbers of pairs."""

    name: str
    request: dict
    title: str
    pairs: int
    quick_pairs: int = 0


def _train(batch: int, teacher_forced: bool, pairs: int, quick_pairs: int = 0) -> Case:
    short, long = ("tf", "teacher-forced") if teacher_forced else ("ar", "autoregressive")
    request = {"case": "train", "batch": batch, "frames": FRAMES, "teacher_forced": teacher_forced}
    title = f"training step, {long}, batch {batch}"
    return Case(f"train_{short}_b{batch}", request, title, pairs, quick_pairs)


def _rollout(batch: int, pairs: int, quick_pairs: int = 0) -> Case:
    request = {"case": "rollout", "batch": batch, "frames": FRAMES}
    title = f"prior rollout, {batch} clip{'s' if batch > 1 else ''}"
    return Case(f"rollout_b{batch}", request, title, pairs, quick_pairs)


def _multiscale(case: str, batch: int, frames: int, title: str, pairs: int, quick_pairs: int = 0) -> Case:
    request = {"case": case, "model": "multiscale", "batch": batch, "frames": frames}
    request |= {"teacher_forced": True} if case == "train" else {}
    return Case(f"multiscale_{case}_b{batch}", request, f"multiscale: {title}", pairs, quick_pairs)


CASES = (
    _train(2, True, 15, 9),
    _train(2, False, 15, 9),
    _train(10, True, 5),
    _train(10, False, 5),
    _rollout(1, 25, 15),
    _rollout(4, 15),
    _rollout(32, 5),
    _multiscale("train", 16, 2, "training step, batch 16, 2 frames", 15, 9),
    _multiscale("rollout", 1, 16, "prior rollout, 1 clip", 25, 15),
    _multiscale("rollout", 8, 16, "prior rollout, 8 clips", 15),
)
