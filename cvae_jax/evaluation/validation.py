"""The validation of a run during training: prior and posterior rollouts of the validation clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from cvae_jax.data.clips import Recording
from cvae_jax.evaluation.averages import curve_over_scenes, mean_over_scenes
from cvae_jax.evaluation.latents import SAMPLES, Collected, mean_score
from cvae_jax.evaluation.scores import Scored, Scorer
from cvae_jax.losses import Objective
from cvae_jax.rollout.chunks import MODES, POSTERIOR, PRIOR

FIELDS = (
    "val_loss",
    "val_psnr_prior",
    "val_psnr_posterior",
    "val_psnr_prior_by_scene",
    "val_ssim_prior",
    "val_lpips_prior",
    "val_kl_nats_per_frame",
    "val_active_units",
    "val_active_units_share",
    "val_psnr_gap",
    "val_correlation",
    "val_diversity",
)


class Validated(NamedTuple):
    """The results of a validation.

    Attributes:
      fields: the fields FIELDS of the epoch's row in metrics.jsonl.
      per_frame: by scene and mode, the mean PSNR of each predicted frame in dB.
      videos: by scene, the columns of a film strip of its first clip, uint8 (P, H, W, 3) each.
    """

    fields: dict[str, float | dict[str, float] | None]
    per_frame: dict[str, dict[str, list[float]]]
    videos: dict[str, dict[str, np.ndarray]]


class Validation:
    """Validates variables on recordings that training does not see.

    Args:
      objective: the objective whose value is val_loss.
      seed: of the prior samples.
      with_videos: whether to return the predicted frames as well as their scores.

    Attributes:
      empty: the fields of an epoch without validation.
    """

    empty = dict.fromkeys(FIELDS)

    def __init__(
        self,
        scorer: Scorer,
        objective: Objective,
        recordings: list[Recording],
        seed: int,
        with_videos: bool,
    ):
        self._scorer, self._objective = scorer, objective
        self._recordings, self._seed = recordings, seed
        self._with_videos = with_videos

    def run(
        self,
        variables: PyTree,
        beta: float,
        announce: Callable[[str], AbstractContextManager],
        go_on: Callable[[], bool] = lambda: True,
    ) -> Validated | None:
        """Return the scores of one prior and one posterior sample of each clip; announce shows progress.

        A second prior sample of each clip is compared with the first. go_on: asked after each clip; False
        ends the validation without a result.
        """
        first_of_scene: dict[str, int] = {}
        for clip, recording in enumerate(self._recordings):
            first_of_scene.setdefault(recording.scene, clip)
        collected = Collected(first_of_scene.values())
        for mode in MODES:
            samples = SAMPLES if mode == PRIOR else range(1)
            frames_of = samples if mode == PRIOR or self._with_videos else ()
            with announce(f"validating ({mode})"):
                for scored in self._scorer.run(
                    variables, self._recordings, mode, self._seed, samples, frames_of=frames_of
                ):
                    collected.add(mode, scored)
                    if not go_on():
                        return None
        of_scene = {
            scene: {
                mode: [s for s in clips if s.recording.scene == scene]
                for mode, clips in collected.scored.items()
            }
            for scene in first_of_scene
        }
        return Validated(
            summary(collected, self._objective, beta),
            {scene: {mode: _curve(clips) for mode, clips in own.items()} for scene, own in of_scene.items()},
            {
                scene: _columns(*(clips[0] for clips in own.values()))
                for scene, own in of_scene.items()
                if self._with_videos
            },
        )


def summary(
    collected: Collected, objective: Objective, beta: float
) -> dict[str, float | dict[str, float] | None]:
    """Return the validation fields of an epoch: means over frames, clips and scenes, and by scene.

    val_loss is the objective of each clip as a batch of one, with z from the posterior. val_ssim_prior and
    val_lpips_prior are None where they are not measured. Values of `Collected.latents` get the prefix val_.
    """
    prior, posterior = collected.scored[PRIOR], collected.scored[POSTERIOR]
    losses = [
        objective.of_clip(s.scores["recon"], s.scores["kl"], beta, math.prod(s.recording.frames.shape[1:]))
        for s in posterior
    ]
    scenes = sorted({s.recording.scene for s in prior})
    fields: dict[str, float | dict[str, float] | None] = {
        "val_loss": mean_over_scenes(losses, [s.recording.scene for s in posterior]),
        "val_psnr_prior": mean_score(prior, "psnr"),
        "val_psnr_posterior": mean_score(posterior, "psnr"),
        "val_psnr_prior_by_scene": {
            scene: mean_score([s for s in prior if s.recording.scene == scene], "psnr") for scene in scenes
        },
    }
    for name in ("ssim", "lpips"):
        fields[f"val_{name}_prior"] = mean_score(prior, name) if name in prior[0].scores else None
    return fields | {f"val_{name}": value for name, value in collected.latents().items()}


def _curve(clips: Sequence[Scored]) -> list[float]:
    return curve_over_scenes([s.scores["psnr"] for s in clips], [s.recording.scene for s in clips])


def _columns(prior: Scored, posterior: Scored) -> dict[str, np.ndarray]:
    assert prior.frames is not None and posterior.frames is not None, "they were asked for"
    recording, count = prior.recording, len(prior.frames)
    columns = {
        "truth": recording.frames[-count:],
        "prior": prior.frames,
        "posterior": posterior.frames,
    }
    return columns | ({"label": recording.labels[-count:]} if recording.image_labels else {})
