"""Whole recordings rolled out on the devices and scored frame by frame, and what their latents carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from cvae_jax.data.clips import Recording
from cvae_jax.evaluation.averages import clip_means, mean_over_scenes
from cvae_jax.losses import Objective, kl_elements
from cvae_jax.metrics import psnr_per_frame, ssim_per_frame
from cvae_jax.models.interface import StepOutputs, VideoModel
from cvae_jax.rollout.chunks import MODES, POSTERIOR, ChunkedRollout, Keep, Prompt
from cvae_jax.runtime.devices import Devices

ACTIVE_VARIANCE = 0.01  # Burda et al., 2016


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums of the posterior mean of each latent element over `count` frames: of its value and its square."""

    count: int
    first: np.ndarray
    second: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scored:
    """One sample of one clip: frames uint8 (P, H, W, 3) if asked for, scores per predicted frame (P,).

    P = T - n_past: the frames of the recording that were not given.

    `scores` holds 'psnr' (dB), with SSIM asked for 'ssim', and for the posterior 'recon' and 'kl' as the
    objective defines them (without the training clip of the log-variance) and 'kl_nats', the KL summed over
    the latent elements; `moments` are the posterior's.
    """

    clip: int
    recording: Recording
    frames: np.ndarray | None
    scores: dict[str, np.ndarray]
    sample: int = 0
    moments: Moments | None = None


class Scorer:
    """Scores autoregressive rollouts of whole recordings from their first `n_past` true frames.

    Mode 'prior' draws z from the model's prior; mode 'posterior' draws it from the posterior of the very
    frame it predicts, so its numbers are reconstructions. See `ChunkedRollout` for batches, chunks and noise.
    """

    def __init__(
        self,
        model: VideoModel,
        objective: Objective,
        devices: Devices,
        *,
        n_past: int,
        batch_size: int,
        chunk: int,
        with_ssim: bool,
    ):
        self._n_past = n_past
        self.rollouts = {
            mode: ChunkedRollout(
                model,
                devices,
                mode,
                n_past=n_past,
                batch_size=batch_size,
                chunk=chunk,
                keep=_keep_scores(objective, with_ssim),
            )
            for mode in MODES
        }

    def run(
        self,
        variables: PyTree,
        recordings: list[Recording],
        mode: str,
        seed: int,
        samples: Sequence[int] = range(1),
        temperature: float = 1.0,
        frames_of: Collection[int] = range(1),
    ) -> Iterator[Scored]:
        """Yield the rollout of each sample of each recording: sample after sample, clips in order.

        temperature scales the prior's noise. Frames are brought from the devices for the samples
        `frames_of` only.
        """
        prompts = [Prompt.of(r, self._n_past, i, scored=True) for i, r in enumerate(recordings)]
        rows = [(clip, sample) for sample in samples for clip in range(len(prompts))]
        rolled = self.rollouts[mode].run(variables, prompts, rows, seed, temperature, frames_of)
        for clip, sample, frames, values, sums in rolled:
            recording = recordings[clip]
            moments = None
            if mode == POSTERIOR:
                moments = Moments(len(recording.frames) - self._n_past, sums["mean"], sums["mean_square"])
            yield Scored(clip, recording, frames, values, sample, moments)


def _keep_scores(objective: Objective, with_ssim: bool) -> Keep:
    """Return what to keep of a step: its scores, and with a posterior what the latents carry."""

    def keep(outputs: StepOutputs, target: Array | None) -> tuple[dict[str, Array], dict[str, Array]]:
        assert target is not None, "what is scored has true frames"
        scores = {"psnr": psnr_per_frame(outputs.frame, target)}
        if with_ssim:
            scores["ssim"] = ssim_per_frame(outputs.frame, target)
        if outputs.posterior is None:
            return scores, {}
        recon, kl = objective.score(outputs, target, train=False)
        elements = kl_elements(outputs.posterior, outputs.prior)
        nats = jnp.sum(elements.reshape(len(elements), -1), axis=1)
        mean = outputs.posterior.mean
        return scores | {"recon": recon, "kl": kl, "kl_nats": nats}, {"mean": mean, "mean_square": mean**2}

    return keep


def active_units(moments: Sequence[Moments], threshold: float = ACTIVE_VARIANCE) -> tuple[int, int]:
    """Return (active, all) latent elements (Burda et al., ICLR 2016).

    An element is active if the variance over all frames of E_q[z | frame] is above the threshold.
    """
    count = sum(m.count for m in moments)
    first, second = (
        sum(getattr(m, name).astype(np.float64) for m in moments) / count for name in ("first", "second")
    )
    return int(np.sum(second - first**2 > threshold)), first.size


def latents(prior: list[Scored], posterior: list[Scored]) -> dict[str, float]:
    """Return what the latents carry: KL in nats per frame, active units, posterior minus prior in dB.

    The KL is summed over the latent elements and averaged over frames, clips, and scenes.
    """
    active, elements = active_units([s.moments for s in posterior if s.moments is not None])
    return {
        "kl_nats_per_frame": mean_score(posterior, "kl_nats"),
        "active_units": active,
        "active_units_share": active / elements,
        "psnr_gap": mean_score(posterior, "psnr") - mean_score(prior, "psnr"),
    }


def mean_score(scored: Sequence[Scored], name: str) -> float:
    """Return a score's mean over frames, clips, and scenes."""
    values = clip_means([s.scores[name] for s in scored])
    return mean_over_scenes(values, [s.recording.scene for s in scored])
