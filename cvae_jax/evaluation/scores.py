"""Whole recordings rolled out on the devices and scored frame by frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from cvae_jax.data.clips import Recording
from cvae_jax.evaluation.measures import Measures
from cvae_jax.losses import Objective, kl_elements
from cvae_jax.models.interface import StepOutputs, VideoModel
from cvae_jax.rollout.chunks import MODES, POSTERIOR, ChunkedRollout, Keep, Prompt
from cvae_jax.runtime.devices import Devices

# Of at most this many latent elements, a fixed random subset, the deviations are fetched.
_MOST_DEVIATIONS = 256


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over frames of posterior statistics.

    Attributes:
      count: number of frames.
      first, second: of the posterior mean of each latent element and of its square.
      products, squares: over pairs of successive frames, of the products of their deviations and of the mean
        of the two squares. A deviation is (posterior mean - prior mean) / prior standard deviation.
    """

    count: int
    first: np.ndarray
    second: np.ndarray
    products: float
    squares: float

    def __add__(self, other: Moments) -> Moments:
        _, *sums = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Moments(self.count + other.count, *(np.add(a, b, dtype=np.float64) for a, b in sums))


@dataclasses.dataclass(frozen=True)
class Scored:
    """One sample of one clip: frames uint8 (P, H, W, 3) if asked for, scores per predicted frame (P,).

    P = T - n_past: the frames of the recording that were not given.

    `scores` holds the results of the scorer's measures, 'psnr' (dB) and others. For the prior it also holds
    'prior_std', the mean over latent elements of the prior's standard deviation. For the posterior it holds
    'recon' and 'kl' as the objective defines them (but without the clipping of the log-variance in training),
    and 'kl_nats', the KL summed over the latent elements. `moments` are the posterior's.
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
        measures: Measures = Measures(),
        noise_correlation: float = 0.0,
    ):
        self._n_past = n_past
        measure = measures.mapped(devices)
        self.rollouts = {
            mode: ChunkedRollout(
                model,
                devices,
                mode,
                n_past=n_past,
                batch_size=batch_size,
                chunk=chunk,
                keep=_keep_scores(objective),
                measure=measure,
                noise_correlation=noise_correlation,
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
        """Yield the rollout of each sample of each recording: clip after clip, a clip's samples in order.

        temperature scales the prior's noise. Frames are fetched from the devices only for the samples in
        `frames_of`.
        """
        prompts = [Prompt.of(r, self._n_past, i, scored=True) for i, r in enumerate(recordings)]
        rows = [(clip, sample) for clip in range(len(prompts)) for sample in samples]
        rolled = self.rollouts[mode].run(variables, prompts, rows, seed, temperature, frames_of)
        for clip, sample, frames, values, sums in rolled:
            recording = recordings[clip]
            moments = None
            if mode == POSTERIOR:
                deviations = values.pop("deviations").astype(np.float64)
                before, after = deviations[:-1], deviations[1:]
                moments = Moments(
                    count=len(deviations),
                    first=sums["mean"],
                    second=sums["mean_square"],
                    products=float(np.sum(before * after)),
                    squares=float(np.sum(before**2 + after**2)) / 2,
                )
            yield Scored(clip, recording, frames, values, sample, moments)


def _keep_scores(objective: Objective) -> Keep:
    """Return what to keep of a step besides its frame: what the latents carry."""

    def keep(outputs: StepOutputs, target: Array | None) -> tuple[dict[str, Array], dict[str, Array]]:
        if outputs.posterior is None:
            return {"prior_std": _mean_of_clips(jnp.exp(0.5 * outputs.prior.logvar))}, {}
        assert target is not None, "a posterior has seen a true frame"
        recon, kl, *_ = objective.score(outputs, target, train=False)
        elements = kl_elements(outputs.posterior, outputs.prior)
        nats = jnp.sum(elements.reshape(len(elements), -1), axis=1)
        mean = outputs.posterior.mean
        deviations = (mean - outputs.prior.mean) * jnp.exp(-0.5 * outputs.prior.logvar)
        deviations = deviations.reshape(len(mean), -1)
        some = np.random.default_rng(0).permutation(deviations.shape[1])[:_MOST_DEVIATIONS]
        values = {"recon": recon, "kl": kl, "kl_nats": nats, "deviations": deviations[:, some]}
        return values, {"mean": mean, "mean_square": mean**2}

    return keep


def _mean_of_clips(values: Array) -> Array:
    return jnp.mean(values.reshape(len(values), -1), axis=1)
