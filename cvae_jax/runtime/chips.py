"""Chips that are known, with what their makers publish and what was measured on one of them.

NVIDIA: the data sheets of the H200, the H100 and the A100 (80 GB), all SXM, dense rates. float32 is that of
the CUDA cores: TensorFloat-32 is never used (see `cvae_jax.models.products.full_precision`). Google: the
pages "TPU v4", "TPU v5e" and "TPU v5p" of the Cloud TPU documentation; a float32 product takes six bfloat16
passes (`jax.lax.Precision.HIGHEST`). Links are NVLink's and the inter-chip interconnect's, in one direction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from cvae_jax.runtime.operations import Operations

CPU, DEFAULT_CHIP = "cpu", "h100"
MARGIN = 0.25  # of the memory, kept free: by default JAX takes three quarters of a GPU's
PASSES = 6  # bfloat16 passes of a float32 product on a TPU
# Of the H100. The two steps of MEASURED determine both (tests/fixtures/steps_h100.json); the program of the
# autoregressive one had more and smaller products then.
UTILISATION = 0.25
LAUNCH_SECONDS = 20e-6
MEASURED = (
    "they were fitted to two measured steps of the report's CVAE in float32 on one H100, 189 ms for 10 "
    "teacher-forced and 281 ms for 10 autoregressive clips of 16 frames"
)


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


def find_chip(kind: str) -> Chip | None:
    """Return the accelerator that JAX calls `kind`; None if its peak is not known here."""
    return next((chip for chip in ACCELERATORS.values() if kind in chip.kinds), None)


def seconds_at_peak(operations: Operations, chip: Chip) -> float:
    """Return what the arithmetic of operations would take if a chip ran at its peak throughout."""
    return sum((flops / chip.rates[dtype] for dtype, flops in operations.flops.items()), 0.0)
