"""How fast a run trains: frames per second, the share of the devices' peak, compilation and memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax

from cvae_jax.runtime.chips import find_chip, seconds_at_peak
from cvae_jax.runtime.operations import Operations

FIELDS = ("frames_per_second", "mfu", "compile_seconds", "device_memory_bytes")
MODEL_OPERATIONS = Callable[..., tuple[Operations, Operations]]


@dataclasses.dataclass
class Throughput:
    """Measures the epochs of a run, whose steps all devices of all processes take together.

    Args:
      frames_per_clip: predicted frames of a training clip.
      count: from the arguments of a step, the operations of the model on one device, where all previous
        frames are true ones and where none is. Recomputation is not part of them.
      devices: this process's.
      is_shared: whether other runs use them at the same time. Rates of such a run say nothing, and are None.

    Attributes:
      at_peak: seconds that the two kinds of steps would take at the devices' peak; None: not known.
    """

    frames_per_clip: int
    count: MODEL_OPERATIONS
    devices: Sequence[jax.Device]
    is_shared: bool = False
    at_peak: tuple[float, float] | None = dataclasses.field(default=None, init=False)

    def count_operations(self, *arguments: object) -> None:
        """Count the operations of a step with these arguments, where the peak of the devices is known."""
        chip = None if self.is_shared else find_chip(self.devices[0].device_kind)
        if chip is not None:
            forced, unforced = (seconds_at_peak(own, chip) for own in self.count(*arguments))
            self.at_peak = forced, unforced

    def epoch(self) -> Meter:
        """Return the meter of an epoch that begins now."""
        return Meter(self, time.monotonic())


@dataclasses.dataclass
class Meter:
    """What an epoch has done since it began, or since the run's first step, which is compiled, was done."""

    of: Throughput
    started: float
    frames: int = 0
    seconds_at_peak: float = 0.0
    compile_seconds: float = 0.0
    _compiling: bool = False

    def begin(self) -> None:
        """Measure from here on: the run's first step is done, and has no part in the rate."""
        now = time.monotonic()
        self.compile_seconds, self.started, self._compiling = now - self.started, now, True

    def leave_out(self, seconds: float) -> None:
        """Leave out of the rate what is no part of training."""
        self.started += seconds

    def step(self, clips: int, forced_share: float) -> None:
        """Take note of a step: clips of the global batch, and the share of true previous frames."""
        if self._compiling:
            self._compiling = False
            return
        self.frames += clips * self.of.frames_per_clip
        if self.of.at_peak is not None:
            forced, unforced = self.of.at_peak
            self.seconds_at_peak += forced_share * forced + (1 - forced_share) * unforced

    @property
    def frames_per_second(self) -> float | None:
        """Predicted frames of real clips per second; None before a step is done that is not the first."""
        known = self.frames and not self.of.is_shared
        return self.frames / (time.monotonic() - self.started) if known else None

    @property
    def shown(self) -> dict[str, str]:
        """What the bar of an epoch shows of it."""
        rate = self.frames_per_second
        return {} if rate is None else {"frames/s": f"{rate:.3g}" if rate < 1000 else f"{rate:,.0f}"}

    def fields(self) -> dict[str, float | None]:
        """Return FIELDS of the epoch's row in metrics.jsonl, when its last step is done."""
        seconds, rate = time.monotonic() - self.started, self.frames_per_second
        known = self.frames and self.of.at_peak is not None
        return {
            "frames_per_second": None if rate is None else round(rate, 3),
            "mfu": round(self.seconds_at_peak / seconds, 5) if known else None,
            "compile_seconds": round(self.compile_seconds, 3),
            "device_memory_bytes": device_memory(self.of.devices),
        }


def device_memory(devices: Sequence[jax.Device]) -> int | None:
    """Return the most bytes that one of the devices has held so far; None where they do not tell (a CPU)."""
    found = [device.memory_stats() for device in devices]
    return max((stats["peak_bytes_in_use"] for stats in found if stats), default=None)
