"""The training step of a config as one device runs it, from shapes alone: its operations and its memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cvae_jax.config import Components
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.operations import Operations, count_operations
from cvae_jax.train import initial_state, make_step_options
from cvae_jax.training.controls import Controls
from cvae_jax.training.state import TrainState
from cvae_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a compiled program on one device, as its compiler reports them.

    Attributes: arguments and outputs; aliased, the part of the outputs that takes the place of arguments (the
    donated state); temporary; code.
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int
    code: int

    @property
    def total(self) -> int:
        """All of it, the state once."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.code


@dataclasses.dataclass(frozen=True)
class Step:
    """The training step of a run, for frames of `frame_size` and labels of `label_size` (None: images)."""

    config: ConfigDict
    parts: Components
    controls: Controls
    frame_size: tuple[int, int]
    label_size: int | None

    @functools.cached_property
    def state(self) -> TrainState:
        """Return the shapes and dtypes of the training state."""
        return jax.eval_shape(
            lambda: initial_state(self.parts, self.config.seed, self.frame_size, self.label_size)
        )

    def batch(self, clips: int) -> tuple[PyTree, PyTree]:
        """Return the shapes and dtypes of a batch of so many clips on one device, and of the controls."""
        controls = self.controls.at(0, 0)
        length = self.config.clip_length
        frames = (length, *self.frame_size, 3)
        labels = (frames, np.uint8) if self.label_size is None else ((length, self.label_size), np.float32)
        fields: dict[str, tuple[tuple[int, ...], Any]] = {
            "frames": (frames, np.uint8),
            "labels": labels,
            "mask": ((), np.float32),
            "index": ((), np.int32),
        }
        if controls.by_clip is not None:
            fields["forced"] = (controls.by_clip.shape[1:], controls.by_clip.dtype)
        batch = {
            name: jax.ShapeDtypeStruct((1, clips, *shape), dtype) for name, (shape, dtype) in fields.items()
        }
        return batch, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), controls.traced)

    def operations(self, clips: int) -> Operations:
        """Return the operations of the step for so many clips on one device."""
        return count_operations(self.jaxpr(clips))

    def jaxpr(self, clips: int) -> ClosedJaxpr:
        """Return the step for so many clips on one device, as JAX has traced it."""
        return jax.make_jaxpr(self._mapped)(self.state, *self.batch(clips))

    def lower(self, clips: int) -> Any:
        """Return the lowered program of the step for so many clips on one device."""
        return self._mapped.lower(self.state, *self.batch(clips))

    @functools.cached_property
    def _mapped(self) -> Any:
        step = make_train_step(
            *self.parts.compiled, **make_step_options(self.config, self.parts, self.controls)
        )
        return Devices(jax.local_devices()[:1]).map_update(step)


def memory_of(lowered: Any) -> Memory:
    """Compile a lowered program with this machine's compiler and return the memory that it reports."""
    found = lowered.compile().memory_analysis()
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporary=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )


def fit_line(totals: Mapping[int, int]) -> tuple[float, float]:
    """Return (bytes for no clip, bytes per clip) through the memory of the two largest batches."""
    low, high = sorted(totals)[-2:]
    slope = (totals[high] - totals[low]) / (high - low)
    return totals[low] - slope * low, slope


def largest_batch(totals: Mapping[int, int], budget: int | float) -> int:
    """Return how many clips fit `budget` bytes, by a line through the memory of the two largest batches.

    0 where not even one fits. The memory of a step grows with its batch, at least by the clips themselves.
    """
    start, slope = fit_line(totals)
    return max(0, int((budget - start) / slope))
