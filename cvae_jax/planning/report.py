"""A plan as text and as JSON."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from cvae_jax.planning.plan import Plan

WIDTH = 100  # columns of the text
INDENT = 16  # columns of the names


def to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON values; times are in seconds, memory in bytes."""
    values = dataclasses.asdict(plan)
    values["operations"]["total_flops"] = plan.operations.total_flops
    values["memory"]["total"] = plan.memory.total
    values["time"]["total"] = plan.time.total
    return values | {
        "budget": plan.budget,
        "bytes_per_clip": plan.bytes_per_clip,
        "largest_batch": plan.largest * plan.devices,
        "epoch_seconds": plan.epoch_seconds,
        "run_seconds": plan.run_seconds,
    }


def to_text(plan: Plan) -> str:
    """Return a plan as aligned text."""
    rows = {
        "Run": f"{plan.config}: batches of {plan.batch_size} clips of {plan.clip_length} frames of "
        f"{plan.frame_size[0]} x {plan.frame_size[1]} (H x W) in {plan.precision}, {plan.clips} clips per "
        "device",
        "Devices": f"{plan.devices} x {plan.chip.title}, {in_bytes(plan.chip.memory)} of memory each",
        "Parameters": f"{plan.parameters:,}; the training state (parameters, optimizer, averages) takes "
        f"{in_bytes(plan.state_bytes)} on each device",
        "Operations": _operations(plan),
        "Memory": _memory(plan),
        "Largest batch": _largest(plan),
        "Step time": _step_time(plan),
        "Epoch and run": _epochs(plan),
    }
    return "\n".join(
        textwrap.fill(
            text,
            WIDTH,
            initial_indent=f"{name:<{INDENT}}",
            subsequent_indent=" " * INDENT,
            break_on_hyphens=False,
        )
        for name, text in rows.items()
    )


def _operations(plan: Plan) -> str:
    shares = ", ".join(f"{in_flops(flops)} in {dtype}" for dtype, flops in plan.operations.flops.items())
    return (
        f"{shares} per step and device. The count covers matrix products and convolutions, 2 per "
        "multiply-add, with loops as often as they run and the costlier branch where the program chooses "
        "one. Elementwise operations and sums are not counted."
    )


def _memory(plan: Plan) -> str:
    memory, there = plan.memory, plan.chip.backend.upper()
    rest = memory.outputs - memory.aliased + memory.code
    text = (
        f"{in_bytes(memory.total)} per device: {in_bytes(memory.arguments)} for state and batch, "
        f"{in_bytes(memory.temporary)} temporary, {in_bytes(rest)} for other results and the code. These are "
        f"the numbers of this machine's {plan.compiler.upper()} compiler for the training step alone."
    )
    if plan.compiler == plan.chip.backend:
        return text
    return (
        f"{text} The step was built as for a {there}, but a {there} compiler lays out temporary arrays "
        "differently, so expect another number there."
    )


def _largest(plan: Plan) -> str:
    compiled = " and ".join(f"{clips:,}" for clips in sorted(plan.by_batch)[-2:])
    basis = (
        f"{in_bytes(plan.bytes_per_clip)} per clip, extrapolated from compilations for {compiled} clips; "
        f"{in_bytes(plan.budget)} are available, and the {plan.margin:.0%} kept free are for batches sent "
        "ahead, validation and libraries"
    )
    if plan.chip.backend == "gpu":
        basis += "; by default JAX takes only 75% of a GPU's memory"
    if not plan.largest:
        return f"none: not even one clip fits a device ({basis})."
    in_all = f", {plan.largest * plan.devices:,} in all" if plan.devices > 1 else ""
    return f"{plan.largest:,} clips per device{in_all} ({basis})."


def _step_time(plan: Plan) -> str:
    time, chip = plan.time, plan.chip
    peak = " and ".join(
        f"{in_flops(chip.rates[dtype])}/s in {dtype}"
        for dtype in plan.operations.flops
        if dtype in chip.rates
    )
    parts = [f"{in_time(time.compute)} for the operations at {plan.utilisation:.0%} of {peak}"]
    if chip.bandwidth:
        parts.append(
            f"or {in_time(time.traffic)} for moving {in_bytes(plan.operations.bytes)} at "
            f"{in_bytes(chip.bandwidth)}/s if that is more"
        )
    if chip.launch_seconds:
        parts.append(
            f"and {in_time(time.launches)} for {plan.operations.number:,} launches of "
            f"{in_time(chip.launch_seconds)}"
        )
    assumed = f"These are assumptions: {chip.assumption}."
    if plan.utilisation != chip.utilisation:
        assumed = f"The {plan.utilisation:.0%} are what you gave with --utilisation."
    if time.communication:
        parts.append(f"and {in_time(time.communication)} for summing gradients over the devices")
    return f"about {in_time(time.total)}, an estimate and not a measurement: {', '.join(parts)}. {assumed}"


def _epochs(plan: Plan) -> str:
    if plan.epoch_seconds is None or plan.run_seconds is None:
        return f"{plan.num_epochs} epochs; add --load_data to know how many steps an epoch has."
    return (
        f"about {in_time(plan.epoch_seconds)} for an epoch of {plan.steps_per_epoch:,} steps and "
        f"{in_time(plan.run_seconds)} for {plan.num_epochs} epochs, without compilation, validation and "
        "checkpoints."
    )


def in_bytes(number: int | float) -> str:
    """Return a number of bytes with a unit."""
    return _scaled(number, ("B", "kB", "MB", "GB", "TB", "PB"))


def in_flops(number: int | float) -> str:
    """Return a number of floating-point operations with a unit."""
    return _scaled(number, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def in_time(seconds: int | float) -> str:
    """Return a duration with a unit."""
    if seconds < 1:
        unit, name = (1e-6, "us") if seconds < 1e-3 else (1e-3, "ms")
    elif seconds < 120:
        unit, name = 1.0, "s"
    else:
        unit, name = (60.0, "minutes") if seconds < 7200 else (3600.0, "hours")
    return f"{_digits(seconds / unit)} {name}"


def _scaled(number: int | float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(number) >= 1000 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    return f"{_digits(number)} {units[power]}"


def _digits(number: int | float) -> str:
    """Return a number with three digits, or as a whole one."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
