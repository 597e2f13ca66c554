"""Chips that are known, with what their makers publish and what was measured on one of them.

NVIDIA: the data sheets of the H200, the H100 and the A100 (80 GB), all SXM, dense rates. float32 is that of
the CUDA cores: TensorFloat-32 is never used (see `cvae_jax.models.products.full_precision`). Google: the
pages "TPU v4", "TPU v5e" and "TPU v5p" of the Cloud TPU documentation; a float32 product takes six bfloat16
passes (`jax.lax.Precision.HIGHEST`). Links are NVLink's and the inter-chip interconnect's, in one direction.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from cvae_jax.runtime.operations import Operations

CPU, DEFAULT_CHIP = "cpu", "h100"
MARGIN = 0.25  # of the memory, kept free: by default JAX takes three quarters of a GPU's
PASSES = 6  # bfloat16 passes of a float32 product on a TPU
# Of the H100. The two steps of MEASURED determine both (docs/benchmarks_accelerator.json); the program of the
# autoregressive one had more and smaller products then.
UTILISATION = 0.25
LAUNCH_SECONDS = 20e-6
MEASURED = (
    "they were fitted to two measured steps of the report's CVAE in float32 on one H100, 189 ms for 10 "
    "teacher-forced and 281 ms for 10 autoregressive clips of 16 frames"
)
# What one chip and the next take to exchange a number, and the network between machines, for each of their
# GPUs (400 Gbit/s). Neither was measured.
HOP_SECONDS = 2e-6
NETWORK, GPUS_PER_MACHINE = 50e9, 8
# Share of a matrix product's rate that a step of 2 clips reaches on 2 threads (docs/benchmarks.json).
CPU_UTILISATION = 0.45
PRODUCT_SIZE, PRODUCT_ROUNDS = 1024, 5  # of the matrix product that is timed on a CPU


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      title: its name.
      backend: 'gpu', 'tpu' or 'cpu', which decides how the convolutions are formulated.
      memory: bytes.
      rates: peak floating-point operations per second by dtype of the operands.
      bandwidth: bytes per second between the chip and its memory; None: not considered.
      link: bytes per second that it sends to other chips; None: not considered.
      kinds: what JAX calls it (`jax.Device.device_kind`).
      utilisation: share of the peak that products and convolutions reach.
      launch_seconds: what each product or convolution takes besides, for its launch and for the small
        operations around it.
      assumption: where the last two are from.
    """

    title: str
    backend: str
    memory: float
    rates: Mapping[str, float]
    bandwidth: float | None
    utilisation: float
    launch_seconds: float
    assumption: str
    link: float | None = None
    kinds: tuple[str, ...] = ()


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


def _accelerator(
    title: str,
    backend: str,
    memory: float,
    bfloat16: float,
    float32: float,
    bandwidth: float,
    link: float,
    kinds: tuple[str, ...],
) -> Chip:
    return Chip(
        title=title,
        backend=backend,
        memory=memory * 1e9,
        rates={"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12},
        bandwidth=bandwidth * 1e9,
        utilisation=UTILISATION,
        launch_seconds=LAUNCH_SECONDS,
        assumption=MEASURED if "H100" in title else f"{MEASURED}; nothing was measured on this chip",
        link=link * 1e9,
        kinds=kinds,
    )


_A100 = ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB")
ACCELERATORS = {
    "h200": _accelerator("NVIDIA H200 SXM", "gpu", 141.0, 989.0, 67.0, 4800.0, 450.0, ("NVIDIA H200",)),
    "h100": _accelerator(
        "NVIDIA H100 SXM", "gpu", 80.0, 989.0, 67.0, 3350.0, 450.0, ("NVIDIA H100 80GB HBM3",)
    ),
    "a100": _accelerator("NVIDIA A100 SXM", "gpu", 80.0, 312.0, 19.5, 2039.0, 300.0, _A100),
    "v4": _accelerator("Google TPU v4", "tpu", 32.0, 275.0, 275 / PASSES, 1200.0, 150.0, ("TPU v4",)),
    "v5e": _accelerator(
        "Google TPU v5e", "tpu", 16.0, 197.0, 197 / PASSES, 819.0, 100.0, ("TPU v5 lite", "TPU v5e")
    ),
    "v5p": _accelerator("Google TPU v5p", "tpu", 95.0, 459.0, 459 / PASSES, 2765.0, 300.0, ("TPU v5",)),
}
CHIPS = (*ACCELERATORS, CPU)


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


def find_chip(kind: str) -> Chip | None:
    """Return the accelerator that JAX calls `kind`; None if its peak is not known here."""
    return next((chip for chip in ACCELERATORS.values() if kind in chip.kinds), None)


def seconds_at_peak(operations: Operations, chip: Chip) -> float:
    """Return what the arithmetic of operations would take if a chip ran at its peak throughout."""
    return sum((flops / chip.rates[dtype] for dtype, flops in operations.flops.items()), 0.0)


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
