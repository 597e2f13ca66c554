"""One way of averaging for every table and log: over frames, then the clips of a scene, then scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def clip_means(per_frame: Sequence[np.ndarray], skips_frames: bool = False) -> list[float]:
    """Return each clip's mean over its frames, in float64.

    skips_frames: leave out frames that are NaN; a clip with no other frames is NaN.
    """
    return [_mean(values[~np.isnan(values)] if skips_frames else values) for values in per_frame]


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64)) if values.size else float("nan")


def mean_over_scenes(values: Sequence[float] | np.ndarray, scenes: Sequence[str]) -> float:
    """Return the mean over scenes of the mean over a scene's clips; `values` holds one number per clip."""
    return float(np.mean([np.mean(group) for group in _by_scene(values, scenes).values()]))


def interval_over_clips(
    values: Sequence[float] | np.ndarray,
    scenes: Sequence[str],
    seed: int,
    level: float = 0.95,
    resamples: int = 10_000,
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval (low, high) of `mean_over_scenes`.

    Clips are drawn with replacement within their scenes (a stratified bootstrap); the same seed gives the
    same interval. A scene with a single clip says nothing about the spread between clips: its value is held
    fixed, and where every scene is like that there is no interval (None).
    Raises ValueError if there are no clips or a value is not finite.
    """
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("a bootstrap interval needs a list of finite numbers, one per clip.")
    groups = list(_by_scene(values, scenes).values())
    several = [group for group in groups if len(group) > 1]
    if not several:
        return None
    fixed = sum(group[0] for group in groups if len(group) == 1)

    def mean(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return (sum(np.mean(group, axis=axis) for group in drawn) + fixed) / len(groups)

    found = stats.bootstrap(
        several,
        mean,
        n_resamples=resamples,
        batch=max(1, 1_000_000 // len(values)),  # bounds the memory of the resamples
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def curve_over_scenes(per_frame: Sequence[np.ndarray], scenes: Sequence[str]) -> list[float]:
    """Return the mean over scenes at each frame, over the clips that are that long."""
    curve = []
    for t in range(max(len(values) for values in per_frame)):
        there = [
            (float(values[t]), scene)
            for values, scene in zip(per_frame, scenes, strict=True)
            if t < len(values)
        ]
        curve.append(mean_over_scenes(*zip(*there, strict=True)))
    return curve


def _by_scene(values: Sequence[float] | np.ndarray, scenes: Sequence[str]) -> dict[str, np.ndarray]:
    groups: dict[str, list[float]] = {}
    for value, scene in zip(values, scenes, strict=True):
        groups.setdefault(scene, []).append(value)
    return {scene: np.asarray(group, np.float64) for scene, group in groups.items()}
