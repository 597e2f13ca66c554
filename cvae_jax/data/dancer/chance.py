"""Random numbers that are addressed, not consumed: the same address gives the same numbers anywhere."""

from __future__ import annotations

import functools

import numpy as np


def draws(*address: int) -> np.random.Generator:
    """Return a fresh generator of an address of integers at least 0."""
    return np.random.default_rng(address)


@functools.lru_cache(maxsize=4096)
def _knot(address: tuple[int, ...], knot: int, channels: int) -> np.ndarray:
    return draws(*address, knot).standard_normal(channels)


def smooth_noise(address: tuple[int, ...], time: int, spacing: int, channels: int) -> np.ndarray:
    """Return smooth random values (channels,) at a time, of mean 0 and standard deviation about 1.

    A cubic B-spline over one independent normal value per channel every `spacing` units of time.
    """
    knot, u = divmod(time / spacing, 1.0)
    weights = np.array([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3])
    values = np.stack([_knot(address, int(knot) + offset, channels) for offset in range(4)])
    return (weights / np.sqrt(np.sum(weights**2))) @ values


def ease(u: float) -> float:
    """Return the smooth step of u, which is cut to [0, 1]: 0 and 1 with no speed at both ends."""
    u = min(max(u, 0.0), 1.0)
    return u * u * (3 - 2 * u)
