"""The rows of results.json: scores of clips averaged over frames, clips and scenes, with intervals."""

from __future__ import annotations

import dataclasses

import numpy as np

from cvae_jax.config import EvaluationOptions
from cvae_jax.evaluation.averages import (
    clip_means,
    curve_over_scenes,
    interval_over_clips,
    mean_over_scenes,
)
from cvae_jax.evaluation.scores import Scored
from cvae_jax.report.figures import SEES_TARGET

BASELINES = ("nearest_pose", "mean_frame", "copy_first", "copy_previous")
ROWS = ("prior", "prior_best_of_N", "prior_mean", "prior_scaled", "posterior", *BASELINES)


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """One row's scores of one clip per predicted frame (T - n_past,): PSNR in dB and SSIM.

    `draws` holds the clip's mean PSNR and SSIM of each draw, where the row is a mean over several.
    """

    scene: str
    psnr: np.ndarray
    ssim: np.ndarray
    draws: tuple[dict[str, float], ...] = ()


class Samples:
    """What is kept of a clip's samples: the mean of the first `averaged`, the best of the first `best_of`.

    The best is chosen by the clip's mean, for PSNR and for SSIM each (the protocol of SVG and SRVP).
    """

    def __init__(self, scene: str, averaged: int, best_of: int):
        self._scene, self._averaged, self._best_of = scene, averaged, best_of
        self._means: list[dict[str, float]] = []
        self._sums: dict[str, np.ndarray] = {}
        self._best: dict[str, np.ndarray] = {}

    def add(self, scored: Scored) -> None:
        """Take in one sample."""
        own = {name: scored.scores[name].astype(np.float64) for name in ("psnr", "ssim")}
        if scored.sample < self._averaged:
            self._means.append({name: float(values.mean()) for name, values in own.items()})
            self._sums = {name: self._sums.get(name, 0.0) + values for name, values in own.items()}
        if scored.sample < self._best_of:
            for name, values in own.items():
                if name not in self._best or values.mean() > self._best[name].mean():
                    self._best[name] = values

    @property
    def mean(self) -> ClipScores:
        """The mean over samples of each frame's scores."""
        psnr, ssim = (self._sums[name] / len(self._means) for name in ("psnr", "ssim"))
        return ClipScores(self._scene, psnr, ssim, tuple(self._means))

    @property
    def best(self) -> ClipScores:
        """The PSNR of the sample with the best mean PSNR, the SSIM of that with the best mean SSIM."""
        return ClipScores(self._scene, self._best["psnr"], self._best["ssim"])


def rows(scores: dict[str, list[ClipScores]], options: EvaluationOptions) -> list[dict]:
    """Return the rows of results.json: means over scenes first, then each scene's.

    A clip's PSNR is the mean of its per-frame values; a scene's is the mean over its clips; the mean row's is
    the mean over scenes, with 95 % bootstrap intervals that resample clips within scenes. For several draws a
    row also has each draw's number and their standard deviation.
    """
    names = [name for name in ROWS if name in scores]
    scenes = sorted({clip.scene for clip in scores[names[0]]})
    result = [_row(name, scores[name], options) for name in names]
    if len(scenes) > 1:
        for scene in scenes:
            for name in names:
                own = [clip for clip in scores[name] if clip.scene == scene]
                result.append({"scene": scene} | _row(name, own, options))
    return result


def _row(name: str, clips: list[ClipScores], options: EvaluationOptions) -> dict:
    scenes = [clip.scene for clip in clips]
    row: dict = {"name": name}
    if name == "prior_best_of_N":
        row["n"] = options.best_of
    if name == "prior_scaled":
        row["temperature"] = options.temperature
    for metric in ("psnr", "ssim"):
        means = clip_means([getattr(clip, metric) for clip in clips])
        known = np.isfinite(means).all()
        interval = interval_over_clips(means, scenes, options.seed) if known else None
        draws = zip(*(clip.draws for clip in clips), strict=True)
        seeds = [mean_over_scenes([clip[metric] for clip in draw], scenes) for draw in draws]
        several = len(seeds) > 1
        row[metric] = mean_over_scenes(means, scenes)
        row[f"{metric}_ci95"] = None if interval is None else list(interval)
        row[f"{metric}_by_seed"] = seeds if several else None
        row[f"{metric}_seed_std"] = float(np.std(seeds, ddof=1)) if several else None
    return row | {
        "num_clips": len(clips),
        "sees_target": name in SEES_TARGET,
        "per_frame_psnr": curve_over_scenes([clip.psnr for clip in clips], scenes),
    }
