"""How many predicted frames a second are scored: python -m benchmarks.scoring [HEIGHTxWIDTH].

Batches of 8 and of 20 samples of two clips, 20 frames each, without the rollout that makes them. The first
call compiles and is not counted; the best of five others is shown.
"""

from __future__ import annotations

import sys
import time

from cvae_jax.runtime import platform

platform.prepare(restart=__name__ == "__main__")

import jax  # noqa: E402
import numpy as np  # noqa: E402

from cvae_jax.evaluation.measures import Measures  # noqa: E402
from cvae_jax.perceptual import lpips, weights  # noqa: E402

FRAMES, CLIPS, ROUNDS = 20, 2, 5


def frames_per_second(measures: Measures, samples: int, size: tuple[int, int]) -> float:
    """Return the rate at which `samples` videos of FRAMES frames are measured."""
    rng = np.random.default_rng(0)
    batch = {
        "videos": rng.integers(256, size=(CLIPS, FRAMES, *size, 3), dtype=np.uint8),
        "labels": np.zeros((CLIPS, FRAMES, 0), np.float32),
        "frames": rng.random((samples, FRAMES, *size, 3), np.float32),
        "owner": np.arange(samples, dtype=np.int32) * CLIPS // samples,
    }
    given = jax.device_put((measures.weights, batch))
    program = jax.jit(measures.of)
    jax.block_until_ready(program(*given))
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        jax.block_until_ready(program(*given))
        seconds.append(time.perf_counter() - started)
    return samples * FRAMES / min(seconds)


def main() -> None:
    """Print a line for each set of metrics and batch."""
    height, width = map(int, (sys.argv[1] if len(sys.argv) > 1 else "64x64").split("x"))
    chosen = {"PSNR": Measures(), "PSNR and SSIM": Measures(ssim=True)}
    if weights.is_installed(lpips.PACKAGE):
        chosen["PSNR, SSIM and LPIPS"] = Measures(ssim=True, lpips=True)
    for name, measures in chosen.items():
        for samples in (8, 20):
            rate = frames_per_second(measures, samples, (height, width))
            print(f"{name}, batch of {samples}: {rate:.0f} frames/s", flush=True)


if __name__ == "__main__":
    main()
