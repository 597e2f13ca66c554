"""What a step takes on a chip, by the published peaks and what was measured on one of them."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from cvae_jax.runtime.chips import Chip, seconds_at_peak
from cvae_jax.runtime.operations import Operations

# What one chip and the next take to exchange a number, and the network between machines, for each of their
# GPUs (400 Gbit/s). Neither was measured.
HOP_SECONDS = 2e-6
NETWORK, GPUS_PER_MACHINE = 50e9, 8
# Share of a matrix product's rate that a step of 2 clips reaches on 2 threads: 0.62 on one kind of CPU; on
# another 0.45, before Winograd's algorithm (docs/performance.md).
CPU_UTILISATION = 0.5
PRODUCT_SIZE, PRODUCT_ROUNDS = 1024, 5  # of the matrix product that is timed on a CPU


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step: of the arithmetic, of moving its operands, of launches, of summing gradients."""

    compute: float
    traffic: float
    launches: float
    communication: float = 0.0

    @property
    def total(self) -> float:
        """The larger of arithmetic and traffic, the launches and the communication."""
        return max(self.compute, self.traffic) + self.launches + self.communication


def this_machine(dtypes: Iterable[str], devices: int = 1) -> Chip:
    """Return the CPU of this machine as one of `devices` that share it; times a matrix product per dtype."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Chip(
        title="the CPU of this machine",
        backend="cpu",
        memory=memory / devices,
        rates={dtype: product_rate(dtype) / devices for dtype in dtypes},
        bandwidth=None,
        utilisation=CPU_UTILISATION,
        launch_seconds=0.0,
        assumption="the share is that of the report's CVAE in float32 with 2 clips on 2 threads, the rate "
        "that of a matrix product, timed just now",
    )


def product_rate(dtype: str) -> float:
    """Return the floating-point operations per second of a matrix product here, the best of some rounds."""
    x = jnp.ones((PRODUCT_SIZE, PRODUCT_SIZE), dtype)
    multiply = jax.jit(jnp.matmul).lower(x, x).compile()
    seconds = []
    for _ in range(PRODUCT_ROUNDS):
        started = time.perf_counter()
        multiply(x, x).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * PRODUCT_SIZE**3 / min(seconds)


def sum_seconds(size: int | float, chip: Chip, devices: int) -> float:
    """Return what summing `size` bytes over devices takes, in a ring or a tree; 0 where that is not known.

    The hops of a sum over a TPU's torus of two dimensions, and of NCCL's trees; GPUs of several machines
    share their sums over the network.
    """
    if devices == 1 or chip.link is None:
        return 0.0
    hops = 4 * (math.sqrt(devices) - 1) if chip.backend == "tpu" else 2 * math.log2(devices)
    alone = chip.backend == "tpu" or devices <= GPUS_PER_MACHINE
    return 2 * size * (1 - 1 / devices) / (chip.link if alone else NETWORK) + hops * HOP_SECONDS


def estimate(
    operations: Operations,
    chip: Chip,
    utilisation: float | None = None,
    gradient_bytes: int = 0,
    devices: int = 1,
) -> Estimate:
    """Return what a step takes on devices of a kind; utilisation: None takes the chip's.

    operations: those on one device. gradient_bytes: what is summed over the devices.
    """
    share = chip.utilisation if utilisation is None else utilisation
    return Estimate(
        compute=seconds_at_peak(operations, chip) / share,
        traffic=operations.bytes / chip.bandwidth if chip.bandwidth else 0.0,
        launches=operations.number * chip.launch_seconds,
        communication=sum_seconds(gradient_bytes, chip, devices),
    )
