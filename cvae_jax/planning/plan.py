"""What a config's training run needs on a chip."""

from __future__ import annotations

import dataclasses
import math

import jax
from ml_collections import ConfigDict

from cvae_jax.config import Components
from cvae_jax.data.load import known_shapes, load_data
from cvae_jax.planning.estimates import Estimate, estimate, this_machine
from cvae_jax.planning.program import (
    Memory,
    Step,
    fit_line,
    largest_batch,
    memory_of,
)
from cvae_jax.runtime.backend import formulated_for
from cvae_jax.runtime.chips import ACCELERATORS, CPU, DEFAULT_CHIP, MARGIN, Chip
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.operations import Operations
from cvae_jax.runtime.progress import Announcement, compile_bar
from cvae_jax.train import make_controls, make_loader, refuse_batch_statistics_in_parts


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs.

    Attributes:
      config: the name of the config.
      precision: of the features.
      batch_size: clips in the global batch; clips: on each device, rounded up.
      clip_length, frame_size: of a clip, in frames and in pixels (height, width).
      devices: how many there are; chip: one of them.
      parameters: how many the model has; state_bytes: of parameters, optimizer and averages.
      operations: of a step on one device.
      compiler: the backend that compiled the step.
      memory: of a step on one device; by_batch: the bytes for each number of clips that was compiled.
      margin: share of the chip's memory that is kept free.
      largest: how many clips fit one device.
      utilisation: share of the chip's peak that is assumed.
      time: of a step.
      steps_per_epoch: None where the data were not loaded.
      num_epochs: of the run.
    """

    config: str
    precision: str
    batch_size: int
    clips: int
    clip_length: int
    frame_size: tuple[int, int]
    devices: int
    chip: Chip
    parameters: int
    state_bytes: int
    operations: Operations
    compiler: str
    memory: Memory
    by_batch: dict[int, int]
    margin: float
    largest: int
    utilisation: float
    time: Estimate
    steps_per_epoch: int | None
    num_epochs: int

    @property
    def bytes_per_clip(self) -> float:
        """By how much the memory of a device grows with a clip."""
        return fit_line(self.by_batch)[1]

    @property
    def epoch_seconds(self) -> float | None:
        """Time of an epoch's steps; None where the data were not loaded."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.time.total

    @property
    def run_seconds(self) -> float | None:
        """Time of all epochs' steps; None where the data were not loaded."""
        return None if self.epoch_seconds is None else self.num_epochs * self.epoch_seconds

    @property
    def budget(self) -> float:
        """Bytes of a device's memory without the margin."""
        return (1 - self.margin) * self.chip.memory


def make_plan(
    config: ConfigDict,
    chip: str = DEFAULT_CHIP,
    devices: int = 1,
    utilisation: float | None = None,
    margin: float = MARGIN,
    load: bool = False,
) -> Plan:
    """Return what training with a config needs on `devices` devices of a kind (see `chips.CHIPS`).

    utilisation: share of the chip's peak to assume; None: what was measured. margin: share of the memory to
    keep free. load: whether to load the data, to know how many steps an epoch has. They are loaded in any
    case where nothing else tells the shape of their frames and labels.

    Compiles the step three times at most, which takes tens of seconds. Raises UserError for a mistake in the
    config or in the data.
    """
    with formulated_for(CPU if chip == CPU else ACCELERATORS[chip].backend):
        parts = Components.build(config)
        parts.require_packages()
        shapes = known_shapes(config.data)
        steps_per_epoch = None
        if load or shapes is None:
            recordings = load_data(config.data, config.n_past)["train"]
            shapes = recordings[0].frames.shape[1:3], recordings[0].label_size
            steps_per_epoch = make_loader(config, recordings, Devices(jax.local_devices()[:1])).num_batches
        parts.objective.check_frame_size(*shapes[0])
        refuse_batch_statistics_in_parts(config, parts, *shapes)
        # Without data any length of an epoch does that its schedules accept: they do not change the program.
        controls = make_controls(config, parts, steps_per_epoch or max(1, config.beta.num_cycles))
        step = Step(config, parts, controls, *shapes)
        clips = -(-config.batch_size // (devices * config.accumulate_steps)) * config.accumulate_steps
        own = step.operations(clips)
        chosen = this_machine(own.flops, devices) if chip == CPU else ACCELERATORS[chip]
        memory = _compile(step, clips, (1 - margin) * chosen.memory)
    totals = {size: of_size.total for size, of_size in memory.items()}
    state = step.state
    share = chosen.utilisation if utilisation is None else utilisation
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Plan(
        config=config.name,
        precision=config.precision,
        batch_size=config.batch_size,
        clips=clips,
        clip_length=config.clip_length,
        frame_size=step.frame_size,
        devices=devices,
        chip=chosen,
        parameters=parameters,
        state_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        operations=own,
        compiler=jax.default_backend(),
        memory=memory[clips],
        by_batch=totals,
        margin=margin,
        largest=largest_batch(totals, (1 - margin) * chosen.memory),
        utilisation=share,
        time=estimate(own, chosen, share, 4 * parameters, devices),
        steps_per_epoch=steps_per_epoch,
        num_epochs=config.num_epochs,
    )


def _compile(step: Step, clips: int, budget: float) -> dict[int, Memory]:
    """Return the memory of the step for some numbers of clips: the given one, its double, and what may fit.

    The last one checks the line through the others: how a compiler lays out memory changes with the batch.
    """
    memory: dict[int, Memory] = {}
    sizes = [clips, 2 * clips]
    with compile_bar(3) as bar:
        while sizes:
            size = sizes.pop(0)
            with Announcement(bar, f"compiling the training step for {size:,} clips"):
                memory[size] = memory_of(step.lower(size))
            bar.update()
            if size == 2 * clips:
                guess = largest_batch({size: found.total for size, found in memory.items()}, budget)
                # On a CPU clips are worked on in pairs, and single ones need less.
                guess -= guess % math.lcm(2, step.config.accumulate_steps)
                sizes += [guess] * (guess > size)
    return memory
