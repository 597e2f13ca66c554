"""The rows of results.json: scores of clips averaged over frames, clips and scenes, with intervals."""

from __future__ import annotations

import dataclasses

import numpy as np

from cvae_jax.evaluation.averages import (
    clip_means,
    curve_over_scenes,
    interval_over_clips,
    mean_over_scenes,
)
from cvae_jax.evaluation.scores import Scored
from cvae_jax.options import EvaluationOptions
from cvae_jax.report import columns
from cvae_jax.report.figures import SEES_TARGET

BASELINES = ("nearest_pose", "blend_poses", "mean_frame", "copy_first", "copy_previous")
ROWS = (
    *("prior", "prior_best_of_N", "prior_mean", "prior_scaled", "posterior"),
    *BASELINES,
    *("oracle_training_frame", "ceiling"),
)


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """One row's scores for one clip: for each metric, its values per predicted frame (T - n_past,).

    `draws` holds the clip's mean of each metric for each draw, where the row is a mean over several.
    """

    scene: str
    values: dict[str, np.ndarray]
    draws: tuple[dict[str, float], ...] = ()


class Samples:
    """What is kept of a clip's samples: the mean of the first `averaged`, the best of the first `best_of`.

    The best is chosen by the clip's mean, separately for each metric (the protocol of SVG and SRVP).
    """

    def __init__(self, scene: str, averaged: int, best_of: int):
        self._scene, self._averaged, self._best_of = scene, averaged, best_of
        self._means: list[dict[str, float]] = []
        self._sums: dict[str, np.ndarray] = {}
        self._best: dict[str, tuple[float, np.ndarray]] = {}

    def add(self, scored: Scored) -> None:
        """Add one sample."""
        metrics = columns.metrics_among(scored.scores)
        own = {metric.name: scored.scores[metric.name].astype(np.float64) for metric in metrics}
        means = {metric.name: clip_means([own[metric.name]], metric.skips_frames)[0] for metric in metrics}
        if scored.sample < self._averaged:
            self._means.append(means)
            self._sums = {name: self._sums.get(name, 0.0) + values for name, values in own.items()}
        if scored.sample < self._best_of:
            for metric in metrics:
                name = metric.name
                if name not in self._best or metric.is_better(means[name], self._best[name][0]):
                    self._best[name] = means[name], own[name]

    @property
    def mean(self) -> ClipScores:
        """The mean over samples of each frame's scores."""
        values = {name: total / len(self._means) for name, total in self._sums.items()}
        return ClipScores(self._scene, values, tuple(self._means))

    @property
    def best(self) -> ClipScores:
        """For each metric, the values of the sample whose mean is best."""
        return ClipScores(self._scene, {name: values for name, (_, values) in self._best.items()})


def rows(scores: dict[str, list[ClipScores]], options: EvaluationOptions) -> list[dict]:
    """Return the rows of results.json: means over scenes first, then each scene's.

    A clip's number is the mean of its per-frame values; a scene's is the mean over its clips; the mean row's
    is the mean over scenes, with 95 % bootstrap intervals that resample clips within scenes. For several
    draws a row also has each draw's number and their standard deviation. Where the ceiling is known, rows of
    predictions have 'way_to_ceiling': 0 at nearest_pose, 1 at the ceiling, in PSNR. Clips in which no frame
    has a metric are left out of its mean; if no clip has it, its fields are None.
    """
    names = [name for name in ROWS if name in scores]
    scenes = sorted({clip.scene for clip in scores[names[0]]})
    result = _with_way_to_ceiling([_row(name, scores[name], options) for name in names])
    for scene in scenes if len(scenes) > 1 else ():
        own = {name: [clip for clip in scores[name] if clip.scene == scene] for name in names}
        of_scene = [{"scene": scene} | _row(name, clips, options) for name, clips in own.items()]
        result += _with_way_to_ceiling(of_scene)
    return result


def _with_way_to_ceiling(rows: list[dict]) -> list[dict]:
    """Add to the rows of predictions the share of the PSNR gap from nearest_pose to the ceiling."""
    psnr = {row["name"]: row["psnr"] for row in rows}
    if "ceiling" not in psnr or "nearest_pose" not in psnr:
        return rows
    start, end = psnr["nearest_pose"], psnr["ceiling"]
    return [
        row if row["sees_target"] else row | {"way_to_ceiling": (row["psnr"] - start) / (end - start)}
        for row in rows
    ]


def _row(name: str, clips: list[ClipScores], options: EvaluationOptions) -> dict:
    scenes = [clip.scene for clip in clips]
    row: dict = {"name": name}
    if name == "prior_best_of_N":
        row["n"] = options.best_of
    if name == "prior_scaled":
        row["temperature"] = options.temperature
    metrics = columns.metrics_among(clips[0].values)
    for metric in metrics:
        row |= _fields(metric, clips, options.seed)
    whole = [metric.name for metric in metrics if not metric.skips_frames]
    return row | {
        "num_clips": len(clips),
        "sees_target": name in SEES_TARGET,
        **{f"per_frame_{name}": curve_over_scenes([c.values[name] for c in clips], scenes) for name in whole},
    }


def _fields(metric: columns.Metric, clips: list[ClipScores], seed: int) -> dict:
    """Return a row's fields of one metric."""
    means = np.array(clip_means([clip.values[metric.name] for clip in clips], metric.skips_frames))
    kept = ~np.isnan(means) if metric.skips_frames else np.full(len(means), True)
    means, clips = means[kept], [clip for clip, keep in zip(clips, kept, strict=True) if keep]
    scenes = [clip.scene for clip in clips]
    interval = interval_over_clips(means, scenes, seed) if clips and np.isfinite(means).all() else None
    draws = zip(*(clip.draws for clip in clips), strict=True)
    by_seed = [mean_over_scenes([clip[metric.name] for clip in draw], scenes) for draw in draws]
    several = len(by_seed) > 1
    return {
        metric.name: mean_over_scenes(means, scenes) if clips else None,
        f"{metric.name}_ci95": None if interval is None else list(interval),
        f"{metric.name}_by_seed": by_seed if several else None,
        f"{metric.name}_seed_std": float(np.std(by_seed, ddof=1)) if several else None,
    }
