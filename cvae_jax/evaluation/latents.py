"""What the latents of a model carry, computed while the samples of its clips are streamed."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from cvae_jax.evaluation.averages import clip_means, mean_over_scenes
from cvae_jax.evaluation.diversity import psnr_between
from cvae_jax.evaluation.scores import Moments, Scored
from cvae_jax.rollout.chunks import MODES, POSTERIOR, PRIOR

ACTIVE_VARIANCE = 0.01  # Burda et al., 2016
SAMPLES = range(2)  # of the prior, that `Collected` needs of each clip, with their frames


class Collected:
    """Keeps what logs and tables need of samples 0 and 1 of the prior and one sample of the posterior.

    Args:
      pictures_of: the clips whose frames are kept, if the samples have frames.

    Attributes:
      scored: for each mode, sample 0 of each clip, in the order in which they came.
      diversity: for each clip, `psnr_between` of its prior samples 0 and 1 (P,).
    """

    def __init__(self, pictures_of: Collection[int] = ()):
        self._pictures_of = pictures_of
        self.scored: dict[str, list[Scored]] = {mode: [] for mode in MODES}
        self.diversity: list[np.ndarray] = []
        self._moments: Moments | None = None
        self._first: np.ndarray | None = None

    def add(self, mode: str, scored: Scored) -> None:
        """Add one sample. The samples of a clip come in order; those after sample 1 are ignored."""
        if mode == PRIOR and scored.sample in SAMPLES:
            assert scored.frames is not None, "the frames of samples 0 and 1 are asked for"
            if scored.sample == 0:
                self._first = scored.frames
            else:
                assert self._first is not None, "sample 0 comes before sample 1"
                self.diversity.append(psnr_between(self._first, scored.frames))
        if scored.sample != 0:
            return
        if mode == POSTERIOR:
            assert scored.moments is not None, "a posterior has moments"
            self._moments = scored.moments if self._moments is None else self._moments + scored.moments
        frames = scored.frames if scored.clip in self._pictures_of else None
        self.scored[mode].append(dataclasses.replace(scored, frames=frames, moments=None))

    @property
    def pictures(self) -> list[dict[str, np.ndarray]]:
        """The frames uint8 (P, H, W, 3) by mode, for each clip whose frames were kept."""
        pairs = zip(self.scored[PRIOR], self.scored[POSTERIOR], strict=True)
        return [
            {PRIOR: prior.frames, POSTERIOR: posterior.frames}
            for prior, posterior in pairs
            if prior.frames is not None and posterior.frames is not None
        ]

    def latents(self) -> dict[str, float]:
        """Return what the latents carry.

        The KL in nats is summed over the latent elements and averaged over frames, clips, and scenes;
        psnr_gap is posterior minus prior in dB; diversity is the mean PSNR in dB between two prior samples of
        a clip; correlation is `correlation_of_successive_frames`.
        """
        assert self._moments is not None, "it has seen the posterior"
        active, elements = active_units(self._moments)
        prior, posterior = self.scored[PRIOR], self.scored[POSTERIOR]
        return {
            "kl_nats_per_frame": mean_score(posterior, "kl_nats"),
            "active_units": active,
            "active_units_share": active / elements,
            "psnr_gap": mean_score(posterior, "psnr") - mean_score(prior, "psnr"),
            "correlation": correlation_of_successive_frames(self._moments),
            "diversity": mean_over_scenes(clip_means(self.diversity), [s.recording.scene for s in prior]),
        }


def active_units(moments: Moments, threshold: float = ACTIVE_VARIANCE) -> tuple[int, int]:
    """Return (active, all) latent elements (Burda et al., ICLR 2016), from moments over all frames.

    An element is active if the variance over all frames of E_q[z | frame] is above the threshold.
    """
    first, second = (total.astype(np.float64) / moments.count for total in (moments.first, moments.second))
    return int(np.sum(second - first**2 > threshold)), first.size


def correlation_of_successive_frames(moments: Moments) -> float:
    """Return the correlation between successive frames of the posterior's deviations from the prior.

    See `Moments`. The mean is not subtracted: under the prior it is 0. Frames and latent elements are pooled.
    0 if all deviations are 0.
    """
    return moments.products / moments.squares if moments.squares else 0.0


def mean_score(scored: Sequence[Scored], name: str) -> float:
    """Return a score's mean over frames, clips, and scenes."""
    values = clip_means([s.scores[name] for s in scored])
    return mean_over_scenes(values, [s.recording.scene for s in scored])
