"""The training objective, per clip and per frame until the last line.

Report-exact is `Objective()`: mean squared error of the clamped frame, KL summed over the latents,
the reconstruction divided by the number of clips once more than the mean over them, KL on the
log-variance clipped to +-10.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from cvae_jax.models.interface import Gaussian, StepOutputs
from cvae_jax.runtime.errors import UserError

RECONSTRUCTIONS = ("mse", "l1_mse")
KL_REDUCTIONS = ("sum", "per_element")


@dataclasses.dataclass(frozen=True)
class Objective:
    """How one predicted frame is scored.

    Attributes:
      reconstruction: 'mse', or 'l1_mse' (mean absolute plus mean squared error).
      clamp: score the frame clamped to [0, 1] as the report does (out-of-range pixels then get no
        gradient); False scores the decoder's raw output.
      divide_recon_by_batch: divide the mean over clips by the number of clips once more (the report).
      kl: 'sum' over all latent elements (the report), or 'per_element' (their mean).
      logvar_clip: in training the KL's log-variance is clipped to +- this; 0 means not clipped.
    """

    reconstruction: str = "mse"
    clamp: bool = True
    divide_recon_by_batch: bool = True
    kl: str = "sum"
    logvar_clip: float = 10.0

    def __post_init__(self) -> None:
        for field, known in (("reconstruction", RECONSTRUCTIONS), ("kl", KL_REDUCTIONS)):
            if getattr(self, field) not in known:
                raise UserError(
                    f"config.loss.{field} is {getattr(self, field)!r}; choose one of {', '.join(known)}."
                )
        if not (math.isfinite(self.logvar_clip) and self.logvar_clip >= 0):
            raise UserError(
                f"config.loss.logvar_clip is {self.logvar_clip!r}; give a finite number, 0 for no clipping."
            )

    def score(
        self, step: StepOutputs, target: Float[Array, "*n h w c"], train: bool
    ) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        """Return the reconstruction error and the KL of each frame; no KL without a posterior."""
        recon = self.reconstruction_error(step.raw, target)
        if step.posterior is None:
            return recon, jnp.zeros_like(recon)
        return recon, self.kl_divergence(step.posterior, step.prior, train, recon.ndim)

    def reconstruction_error(
        self, raw: Float[Array, "*n h w c"], target: Float[Array, "*n h w c"]
    ) -> Float[Array, "*n"]:
        """Return the reconstruction error of each frame (mean over pixels and channels)."""
        frame = jnp.clip(raw, 0.0, 1.0) if self.clamp else raw
        error = jnp.mean((frame - target) ** 2, axis=(-3, -2, -1))
        if self.reconstruction == "l1_mse":
            error += jnp.mean(jnp.abs(frame - target), axis=(-3, -2, -1))
        return error

    def kl_divergence(self, posterior: Gaussian, prior: Gaussian, train: bool, leading: int = 1) -> Array:
        """Return KL(posterior || prior) of each frame in nats, or nats per element.

        leading: how many axes of the Gaussians stand before those of the latents.
        """
        if train and self.logvar_clip > 0:
            bound = self.logvar_clip
            posterior, prior = (
                gaussian._replace(logvar=jnp.clip(gaussian.logvar, -bound, bound))
                for gaussian in (posterior, prior)
            )
        reduce = jnp.sum if self.kl == "sum" else jnp.mean
        elements = kl_elements(posterior, prior)
        return reduce(elements, axis=tuple(range(leading, elements.ndim)))

    def reduce(
        self,
        recon: Float[Array, "*n b"],
        kl: Float[Array, "*n b"],
        mask: Float[Array, "*m b"],
        beta: Scalar,
        num_clips: Scalar,
    ) -> tuple[Scalar, Scalar, Scalar]:
        """Return (loss, recon, kl): sums over steps of the means over the global batch's real clips.

        On one device of many these are that device's shares; they add up to the global values.
        `mask` is 1 for what counts, per clip or per step and clip. `num_clips` is the number of real clips in
        the global batch.
        """
        weight = jnp.broadcast_to(mask, recon.shape) / num_clips
        recon_sum, kl_sum = jnp.sum(recon * weight), jnp.sum(kl * weight)
        if self.divide_recon_by_batch:
            recon_sum = recon_sum / num_clips
        return recon_sum + beta * kl_sum, recon_sum, kl_sum


def kl_elements(posterior: Gaussian, prior: Gaussian) -> Array:
    """Return KL(posterior || prior) of each latent element in nats, in closed form."""
    widths = posterior.logvar - prior.logvar
    distance = (posterior.mean - prior.mean) ** 2 * jnp.exp(-prior.logvar)
    return -0.5 * (1 + widths - distance - jnp.exp(widths))
