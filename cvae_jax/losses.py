"""The training objective, per clip and per frame until the last line.

Report-exact is `Objective()`: mean squared error of the clamped frame, KL summed over the latents,
the reconstruction divided by the number of clips once more than the mean over them, KL on the
log-variance clipped to +-10.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Scalar

from cvae_jax.metrics import LEAST_MSE
from cvae_jax.models.interface import Gaussian, StepOutputs
from cvae_jax.perceptual import lpips
from cvae_jax.perceptual.weights import require
from cvae_jax.runtime.errors import UserError

CALIBRATED = "calibrated"
RECONSTRUCTIONS = ("mse", "l1_mse", CALIBRATED)
KL_REDUCTIONS = ("sum", "per_element")


@dataclasses.dataclass(frozen=True)
class Objective:
    """How predicted frames are scored.

    Attributes:
      reconstruction: 'mse'; 'l1_mse' (mean squared error plus `l1_weight` times the mean absolute error); or
        'calibrated', the Gaussian likelihood with the variance that fits best (sigma-VAE, Rybkin, Daniilidis
        & Levine, ICML 2021): with the mean squared error M over the global batch, its steps, pixels and
        channels, the loss is 0.5 log M + beta * KL / D, where KL is in nats per frame and D = height * width
        * channels. With beta = 1 that is the negative evidence lower bound per value, up to a constant.
        Frames have three channels, also those of grey video: its equal channels count as three values, so
        that a nat is cheaper by that factor (set beta to 3 to undo it).
      l1_weight: see 'l1_mse'.
      lpips: this times LPIPS (see `cvae_jax.perceptual.lpips`) is added to the error, whichever it is. It
        needs the extra `metrics`. 0 = off.
      clamp: score the frame clamped to [0, 1] as the report does (out-of-range pixels then get no
        gradient); False scores the decoder's raw output.
      divide_recon_by_batch: divide the mean over clips by the number of clips once more (the report).
      kl: 'sum' over all latent elements (the report), or 'per_element' (their mean).
      logvar_clip: in training the KL's log-variance is clipped to +- this; 0 means not clipped.
      free_bits: nats per frame; in training a frame whose KL is below has this as its KL, without a gradient
        (Kingma et al., NIPS 2016; as in DreamerV3, over all latents of the frame). 0 = off.
      kl_balance: in training the KL's gradient is this times that of KL(stop_gradient(q) || p), which moves
        the prior, and (1 - this) times that of KL(q || stop_gradient(p)) (KL balancing, DreamerV2, Hafner et
        al., ICLR 2021; DreamerV3 weighs the same two terms by independent factors). The KL's value stays the
        same. It needs a model whose prior is learned. 0 = off.
    """

    reconstruction: str = "mse"
    l1_weight: float = 1.0
    lpips: float = 0.0
    clamp: bool = True
    divide_recon_by_batch: bool = True
    kl: str = "sum"
    logvar_clip: float = 10.0
    free_bits: float = 0.0
    kl_balance: float = 0.0

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
        for field in ("l1_weight", "lpips"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"config.loss.{field} is {value!r}; give a finite number, 0 or more.")
        if not (math.isfinite(self.free_bits) and self.free_bits >= 0):
            raise UserError(
                f"config.loss.free_bits is {self.free_bits!r}; give a finite number of nats, 0 for none."
            )
        if not 0 <= self.kl_balance < 1:
            raise UserError(
                f"config.loss.kl_balance is {self.kl_balance!r}; give a number in [0, 1), 0 for no balancing."
            )
        if self.is_calibrated and (self.divide_recon_by_batch or self.kl != "sum"):
            raise UserError(
                "config.loss.reconstruction='calibrated' weighs the KL against the error itself; set "
                "config.loss.divide_recon_by_batch=False and config.loss.kl=sum."
            )

    def require_packages(self) -> None:
        """Raise UserError where LPIPS is asked for and its package is not installed."""
        if self.lpips:
            require(lpips.PACKAGE, f"config.loss.lpips={self.lpips}")

    def check_frame_size(self, height: int, width: int) -> None:
        """Raise UserError where LPIPS is asked for and frames are too small for it."""
        if self.lpips and min(height, width) < lpips.LEAST_SIZE:
            raise UserError(
                f"config.loss.lpips is {self.lpips}, but LPIPS needs frames of {lpips.LEAST_SIZE} x "
                f"{lpips.LEAST_SIZE} and these are {height} x {width}: set it to 0."
            )

    @property
    def is_calibrated(self) -> bool:
        """Whether the loss is no sum over steps, so that a clip has to be differentiated as a whole."""
        return self.reconstruction == CALIBRATED

    def score(
        self, step: StepOutputs, target: Float[Array, "*n h w c"], train: bool
    ) -> tuple[Float[Array, "*n"], ...]:
        """Return the reconstruction error and the KL of each frame, and its extra loss where it has one.

        Without a posterior the KL is 0.
        """
        recon = self.reconstruction_error(step.raw, target)
        kl = jnp.zeros_like(recon)
        if step.posterior is not None:
            kl = self.kl_divergence(step.posterior, step.prior, train, recon.ndim)
        return (recon, kl) if step.extra is None else (recon, kl, step.extra)

    def reconstruction_error(
        self, raw: Float[Array, "*n h w c"], target: Float[Array, "*n h w c"]
    ) -> Float[Array, "*n"]:
        """Return the reconstruction error of each frame: means over pixels and channels."""
        frame = jnp.clip(raw, 0.0, 1.0) if self.clamp else raw
        error = jnp.mean((frame - target) ** 2, axis=(-3, -2, -1))
        if self.reconstruction == "l1_mse":
            error += self.l1_weight * jnp.mean(jnp.abs(frame - target), axis=(-3, -2, -1))
        if self.lpips:
            weights = lpips.load_weights()
            images = lambda x: x.reshape(-1, *x.shape[-3:])  # noqa: E731
            one, other = (lpips.features(weights, images(x)) for x in (frame, target))
            error += self.lpips * lpips.distance(weights, one, other).reshape(error.shape)
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
        elements = kl_elements(posterior, prior)
        if train and self.kl_balance:
            of_prior = kl_elements(lax.stop_gradient(posterior), prior)
            of_posterior = kl_elements(posterior, lax.stop_gradient(prior))
            elements = self.kl_balance * of_prior + (1 - self.kl_balance) * of_posterior
        latents = tuple(range(leading, elements.ndim))
        nats = jnp.sum(elements, axis=latents)
        if train and self.free_bits:
            nats = jnp.maximum(nats, self.free_bits)
        if self.kl == "sum":
            return nats
        return nats / math.prod(elements.shape[leading:])

    def reduce(
        self,
        recon: Float[Array, "*n b"],
        kl: Float[Array, "*n b"],
        mask: Float[Array, "*m b"],
        beta: Scalar,
        num_clips: Scalar,
        frame_size: int | None = None,
        psum: Callable[[Scalar], Scalar] = lambda share: share,
        extra: Float[Array, "*n b"] | None = None,
    ) -> tuple[Scalar, Scalar, Scalar]:
        """Return (loss, recon, kl): recon and kl are sums over steps of the means over the global batch.

        On one device of many these are that device's shares; they add up to the global values, and so do
        their gradients. Only real clips count.

        Args:
          recon, kl: of each frame, from `score`.
          mask: 1 for what counts, per clip or per step and clip.
          num_clips: the number of real clips in the global batch.
          frame_size: values in a frame, D = height * width * channels; the calibrated loss needs it.
          extra: a further loss of each frame, added with weight 1.
          psum: sums over the devices; the calibrated loss needs the error of the global batch.
        """
        weight = jnp.broadcast_to(mask, recon.shape) / num_clips
        recon_sum, kl_sum = jnp.sum(recon * weight), jnp.sum(kl * weight)
        more = jnp.zeros(()) if extra is None else jnp.sum(extra * weight)
        if self.is_calibrated:
            assert frame_size is not None and recon.ndim == 2, "whole clips are reduced"
            steps = len(recon)
            error = jnp.maximum(psum(lax.stop_gradient(recon_sum)) / steps, LEAST_MSE)
            # The gradient of 0.5 log(error) is that of error / (2 error); its value is shared in proportion.
            share = recon_sum / steps / (2 * error)
            value = lax.stop_gradient(share * jnp.log(error))
            likelihood = value + share - lax.stop_gradient(share)
            return likelihood + beta * kl_sum / (steps * frame_size) + more / steps, recon_sum, kl_sum
        if self.divide_recon_by_batch:
            recon_sum = recon_sum / num_clips
        return recon_sum + beta * kl_sum + more, recon_sum, kl_sum

    def of_clip(
        self, recon: Float[np.ndarray, " s"], kl: Float[np.ndarray, " s"], beta: float, frame_size: int
    ) -> float:
        """Return the loss of one clip as a batch of one.

        recon, kl: of each step, from `score`. frame_size: values in a frame.
        """
        of_steps, kl_of_steps = (jnp.asarray(values)[:, None] for values in (recon, kl))
        one = jnp.ones(())
        loss, *_ = self.reduce(of_steps, kl_of_steps, one[None], jnp.asarray(beta), one, frame_size)
        return float(loss)


def kl_elements(posterior: Gaussian, prior: Gaussian) -> Array:
    """Return KL(posterior || prior) of each latent element in nats, in closed form."""
    widths = posterior.logvar - prior.logvar
    distance = (posterior.mean - prior.mean) ** 2 * jnp.exp(-prior.logvar)
    return -0.5 * (1 + widths - distance - jnp.exp(widths))
