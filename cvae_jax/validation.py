"""Whole clips rolled out on the devices and scored frame by frame, in memory that does not grow with T.

A rollout is a sequence of calls of one compiled program, each over at most `chunk` frames: the past stays on
the device between calls, scores and, where they are wanted, frames leave it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from cvae_jax.config import Components
from cvae_jax.data.clips import Recording, extend
from cvae_jax.data.loader import past_at, rollout_batches
from cvae_jax.losses import kl_elements
from cvae_jax.metrics import psnr_per_frame, ssim_per_frame
from cvae_jax.parallel import Devices
from cvae_jax.rollout import (
    Clips,
    address,
    as_float,
    clip_noise,
    clip_reference,
    past_of,
    predict,
    reconstruct,
)

EVALUATION_STREAM = jnp.uint32(1)
MODES = ("prior", "posterior")
ACTIVE_VARIANCE = 0.01  # Burda et al., 2016


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums of the posterior mean of each latent element over `count` frames: of mu and mu^2, (H, W, N)."""

    count: int
    first: np.ndarray
    second: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scored:
    """One sample of one clip: frames uint8 (P, H, W, 3) if asked for, scores per predicted frame (P,).

    P = T - n_past: the last frames of the recording, those that were not given.

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


class Validator:
    """Autoregressive rollouts of whole recordings from their first `n_past` true frames.

    mode 'prior' draws z from N(0, I); mode 'posterior' draws it from the posterior of the very frame it
    predicts, so its numbers are reconstructions. Noise is addressed by (seed, clip, sample, t): it does not
    depend on batch size, chunk, device count or the number of samples.
    """

    def __init__(self, parts: Components, devices: Devices, batch_size: int, chunk: int, with_ssim: bool):
        self._devices = devices
        self._batch_size = batch_size
        self._chunk = chunk
        self._n_past = parts.n_past
        self._history = parts.model.history
        self._compiled = {mode: devices.map_clips(make_rollout(parts, mode, with_ssim)) for mode in MODES}

    def run(
        self,
        variables: PyTree,
        recordings: list[Recording],
        mode: str,
        seed: int,
        samples: Sequence[int] = range(1),
        temperature: float = 1.0,
        frames_of: Sequence[int] = range(1),
    ) -> Iterator[Scored]:
        """Yield the rollout of each sample of each recording: sample after sample, clips in order.

        temperature scales the prior's noise. Frames are brought from the devices for the samples
        `frames_of` only.
        """
        controls = {"seed": np.uint32(seed), "temperature": np.float32(temperature)}
        batches = rollout_batches(recordings, samples, self._batch_size, len(self._devices))
        for rows, batch in batches:
            wanted = any(sample in frames_of for _, sample in rows)
            out, moments = self._roll(mode, variables, batch, controls, wanted)
            for row, (clip, sample) in enumerate(rows):
                predicted = len(recordings[clip].frames) - self._n_past
                own = {name: values[row, :predicted] for name, values in out.items()}
                frames = own.pop("frames", None)
                yield Scored(
                    clip,
                    recordings[clip],
                    frames if sample in frames_of else None,
                    own,
                    sample,
                    Moments(predicted, *(sums[row] for sums in moments)) if moments else None,
                )

    def _roll(
        self, mode: str, variables: PyTree, batch: dict, controls: dict, with_frames: bool
    ) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Return {name: (clips, P, ...)} and, for the posterior, the two sums of `Moments` per clip."""
        split, fetch, given = self._devices.split, self._devices.fetch, self._n_past
        steps = batch["frames"].shape[1] - given
        chunks = -(-steps // self._chunk)
        size = -(-steps // chunks)
        constant = split({name: batch[name] for name in ("mask", "index", "sample", "length")})
        start = split({"first": batch["frames"][:, 0], "first_label": batch["labels"][:, 0]})
        past = split({"past": past_at(batch["frames"][:, :given], self._history)})["past"]
        moments: list[np.ndarray] = []
        found = []
        for begin in range(0, steps, size):
            part = slice(given + begin, given + begin + size)
            video = split({name: _filled(batch[name][:, part], size) for name in ("frames", "labels")})
            inputs = constant | start | video | {"past": past}
            place = {"start": np.int32(given - 1 + begin)}
            out = self._compiled[mode](variables, inputs, controls | place)
            past = out.pop("past")
            if not with_frames:
                del out["frames"]
            sums = fetch(out.pop("moments", []))
            moments = [a + b for a, b in zip(moments or [0.0] * len(sums), sums, strict=True)]
            found.append(fetch(out))
        return {name: np.concatenate([f[name] for f in found], 1) for name in found[0]}, moments


def _filled(video: np.ndarray, length: int) -> np.ndarray:
    """Return (B, T, ...) with the last frame repeated up to `length` frames."""
    return np.swapaxes(extend(np.swapaxes(video, 0, 1), length), 0, 1)


def make_rollout(parts: Components, mode: str, with_ssim: bool) -> Callable:
    """Return the device function (variables, batch, controls) -> outputs of one chunk of a rollout.

    batch: first (b, H, W, 3) and first_label (b, ...), what the clips start from; past float32 (b, H, W, p)
    of the chunk (see `cvae_jax.rollout`); frames and labels (b, C, ...) of its steps; mask, index, sample,
    length (b,). controls: seed, temperature, and start, the index of the frame before the chunk. Outputs:
    {name: (b, C, ...)}, and past, that after the chunk; for the posterior moments, two (b, H, W, N).
    """
    model, objective = parts.model, parts.objective

    def score(frame: Array, target: Array) -> dict[str, Array]:
        scores = {"psnr": psnr_per_frame(frame, target)}
        return scores | ({"ssim": ssim_per_frame(frame, target)} if with_ssim else {})

    def run(variables: PyTree, batch: dict, controls: dict) -> dict:
        first, past, start = as_float(batch["first"]), batch["past"], controls["start"]
        targets = as_float(batch["frames"])
        labels = jnp.concatenate([batch["first_label"][:, None], batch["labels"]], axis=1)
        keys = address(controls["seed"], EVALUATION_STREAM, batch["index"], batch["sample"])
        noise = clip_noise(keys, (*first.shape[1:3], model.latent_channels))

        if mode == "prior":
            moments = None

            def emit_prior(frame, t):
                target = lax.dynamic_index_in_dim(targets, t - start - 1, 1, keepdims=False)
                return frame, score(frame, target)

            frames, out = predict(
                model,
                variables,
                first,
                labels,
                noise,
                temperature=controls["temperature"],
                past=past,
                start=start,
                emit=emit_prior,
            )
        else:

            def emit_posterior(step, t, target):
                return step.frame, score(step.frame, target) | {
                    "recon": objective.reconstruction_error(step.raw, target),
                    "kl": objective.kl_divergence(step.mu, step.logvar, train=False),
                    "kl_nats": jnp.sum(kl_elements(step.mu, step.logvar), axis=(-3, -2, -1)),
                }

            def add(sums, step, t):
                known = (start + t < batch["length"])[:, None, None, None]
                return [sums[0] + known * step.mu, sums[1] + known * step.mu**2]

            frames = jnp.concatenate([past[:, None, ..., :3], targets], axis=1)
            clips = Clips(frames, labels, batch["mask"])
            forced = jnp.zeros(targets.shape[1], bool)
            zeros = jnp.zeros((len(past), *first.shape[1:3], model.latent_channels))
            ((frames, out), moments), _ = reconstruct(
                model,
                variables,
                clips,
                lambda t: noise(start + t),
                forced,
                emit=emit_posterior,
                accumulate=([zeros, zeros], add),
                reference=clip_reference(first, labels),
                past=past,
            )
        out["frames"] = jnp.round(255.0 * frames).astype(jnp.uint8)
        out = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), out)
        out["past"] = past_of(model, frames, past)
        return out if moments is None else out | {"moments": moments}

    return run


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

    The KL is summed over the latent elements and averaged over frames, then clips.
    """
    active, elements = active_units([s.moments for s in posterior])
    return {
        "kl_nats_per_frame": _mean(posterior, "kl_nats"),
        "active_units": active,
        "active_units_share": active / elements,
        "psnr_gap": _mean(posterior, "psnr") - _mean(prior, "psnr"),
    }


def _mean(scored: list[Scored], name: str) -> float:
    """Return the mean over clips of the mean over frames."""
    return float(np.mean([s.scores[name].mean(dtype=np.float64) for s in scored]))


def summary(prior: list[Scored], posterior: list[Scored], beta: float) -> dict[str, float | dict[str, float]]:
    """Return the validation fields of an epoch: means over clips, and the prior PSNR per scene.

    val_loss is the report's: per clip (B = 1) the sum over steps of recon + beta * kl, with z from the
    posterior. What `latents` tells has the prefix val_.
    """
    losses = [np.sum(s.scores["recon"] + beta * s.scores["kl"], dtype=np.float64) for s in posterior]
    scenes = sorted({s.recording.scene for s in prior})
    return {
        "val_loss": float(np.mean(losses)),
        "val_psnr_prior": _mean(prior, "psnr"),
        "val_psnr_posterior": _mean(posterior, "psnr"),
        "val_psnr_prior_by_scene": {
            scene: _mean([s for s in prior if s.recording.scene == scene], "psnr") for scene in scenes
        },
    } | {f"val_{name}": value for name, value in latents(prior, posterior).items()}


SUMMARY_FIELDS = (
    "val_loss",
    "val_psnr_prior",
    "val_psnr_posterior",
    "val_psnr_prior_by_scene",
    "val_kl_nats_per_frame",
    "val_active_units",
    "val_active_units_share",
    "val_psnr_gap",
)
