"""Whole clips rolled out on the devices and scored frame by frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cvae_jax.config import Components
from cvae_jax.data.clips import Recording
from cvae_jax.data.loader import validation_batches
from cvae_jax.metrics import psnr_per_frame, ssim_per_frame
from cvae_jax.parallel import Devices
from cvae_jax.rollout import Clips, address, as_float, clip_noise, predict, reconstruct

EVALUATION_STREAM = jnp.uint32(1)
MODES = ("prior", "posterior")


@dataclasses.dataclass(frozen=True)
class Scored:
    """One clip's rollout: frames uint8 (T-1, H, W, 3) and its scores per predicted frame (T-1,).

    `scores` holds 'psnr' (dB), with SSIM asked for 'ssim', and for the posterior 'recon' and 'kl' as the
    objective defines them (without the training clip of the log-variance).
    """

    clip: int
    recording: Recording
    frames: np.ndarray
    scores: dict[str, np.ndarray]


class Validator:
    """Autoregressive rollouts of whole recordings from their first true frame.

    mode 'prior' draws z from N(0, I); mode 'posterior' draws it from the posterior of the very frame it
    predicts, so its numbers are reconstructions. Noise is addressed by (seed, clip, sample, t): it does not
    depend on batch size, device count or the number of samples.
    """

    def __init__(self, parts: Components, devices: Devices, batch_size: int, with_ssim: bool):
        self._devices = devices
        self._batch_size = batch_size
        self._compiled = {
            mode: devices.map_clips(_rollout(parts, mode, with_ssim)) for mode in MODES
        }

    def run(
        self, variables: dict, recordings: list[Recording], mode: str, seed: int, sample: int = 0
    ) -> Iterator[Scored]:
        """Yield each recording's rollout, in order."""
        controls = {"seed": np.uint32(seed), "sample": np.uint32(sample)}
        batches = validation_batches(recordings, self._batch_size, len(self._devices))
        for ids, batch in batches:
            out = self._compiled[mode](variables, self._devices.split(batch), controls)
            for row, clip in enumerate(ids):
                predicted = len(recordings[clip].frames) - 1
                own = {name: values[row, :predicted] for name, values in out.items()}
                yield Scored(clip, recordings[clip], own.pop("frames"), own)


def _rollout(parts: Components, mode: str, with_ssim: bool) -> Callable:
    """Return the device function (variables, batch, controls) -> {name: (clips, T-1, ...)}."""
    model, objective = parts.model, parts.objective

    def score(frame, target):
        target = as_float(target)
        scores = {
            "frames": jnp.round(255.0 * frame).astype(jnp.uint8),
            "psnr": psnr_per_frame(frame, target),
        }
        if with_ssim:
            scores["ssim"] = ssim_per_frame(frame, target)
        return scores

    def run(variables, batch, controls):
        frames = batch["frames"]
        z_shape = (*frames.shape[2:4], model.latent_channels)
        keys = address(controls["seed"], EVALUATION_STREAM, batch["index"], controls["sample"])
        noise = clip_noise(keys, z_shape)

        if mode == "prior":

            def emit_prior(frame, t):
                return score(frame, lax.dynamic_index_in_dim(frames, t, 1, keepdims=False))

            out = predict(
                model, variables, frames[:, 0], batch["labels"], noise, emit=emit_prior
            )
        else:

            def emit_posterior(step, t, target):
                return score(
                    step.frame, lax.dynamic_index_in_dim(frames, t, 1, keepdims=False)
                ) | {
                    "recon": objective.reconstruction_error(step.raw, target),
                    "kl": objective.kl_divergence(step.mu, step.logvar, train=False),
                }

            forced = jnp.zeros(frames.shape[1] - 1, bool)
            clips = Clips(frames, batch["labels"], batch["mask"])
            out, _ = reconstruct(model, variables, clips, noise, forced, emit=emit_posterior)
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), out)

    return run


def summary(
    prior: list[Scored], posterior: list[Scored], beta: float
) -> dict[str, float | dict[str, float]]:
    """Return the validation fields of an epoch: means over clips, and the prior PSNR per scene.

    val_loss is the report's: per clip (B = 1) the sum over steps of recon + beta * kl, with z from the
    posterior.
    """

    def psnr(scored: list[Scored]) -> float:
        return float(np.mean([s.scores["psnr"].mean(dtype=np.float64) for s in scored]))

    losses = [
        np.sum(s.scores["recon"] + beta * s.scores["kl"], dtype=np.float64) for s in posterior
    ]
    scenes = sorted({s.recording.scene for s in prior})
    return {
        "val_loss": float(np.mean(losses)),
        "val_psnr_prior": psnr(prior),
        "val_psnr_posterior": psnr(posterior),
        "val_psnr_prior_by_scene": {
            scene: psnr([s for s in prior if s.recording.scene == scene]) for scene in scenes
        },
    }
