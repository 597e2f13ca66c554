"""How much the samples of a clip differ from each other."""

from __future__ import annotations

import numpy as np

from cvae_jax.data.clips import to_unit
from cvae_jax.metrics import LEAST_MSE
from cvae_jax.report.tables import COINCIDE_DB


def psnr_between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the PSNR in dB between the frames of two videos, uint8 (P, H, W, 3): float64 (P,).

    It is at most 100, which means that the frames are equal pixel by pixel.
    """
    error = np.mean(np.square(to_unit(one) - to_unit(other), dtype=np.float64), axis=(1, 2, 3))
    return -10.0 * np.log10(np.maximum(error, LEAST_MSE))


def coincide(videos: list[np.ndarray]) -> bool:
    """Return whether each video's PSNR to the first is at least COINCIDE_DB: none differs visibly."""
    return all(psnr_between(videos[0], video).mean() >= COINCIDE_DB for video in videos[1:])
