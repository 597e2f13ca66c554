"""The training step: gradients of the global batch, summed over the devices, and the optimizer's update."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cvae_jax.losses import Objective
from cvae_jax.models.interface import VideoModel
from cvae_jax.rollout.noise import AUGMENTATION_STREAM, TRAINING_STREAM, clip_noise, derive_keys
from cvae_jax.rollout.scan import Clips, RolloutOptions
from cvae_jax.runtime.devices import psum
from cvae_jax.training.augment import Augmentation
from cvae_jax.training.gradients import clip_gradients
from cvae_jax.training.state import Optimizer, TrainState


def make_train_step(
    model: VideoModel,
    objective: Objective,
    rollout: RolloutOptions,
    n_past: int,
    optimizer: Optimizer,
    augmentation: Augmentation = Augmentation(),
    throughout: bool | None = None,
) -> Callable:
    """Return the device function (state, batch, controls) -> (state, metrics).

    batch: frames uint8 (b, T, H, W, 3) and labels (b, T, ...), mask float32 (b,), index int32 (b,), and for
    decisions per clip forced bool (b, T-1). controls: seed uint32, beta and learning_rate float32, and
    otherwise forced bool (T-1,). throughout: see `Controls.throughout`. metrics: loss, recon, kl,
    grad_norm, and finite. Where loss or gradients are not finite the state is returned unchanged.
    """

    def train_step(state: TrainState, batch: dict, controls: dict) -> tuple[TrainState, dict]:
        clips = Clips(batch["frames"], batch["labels"], batch["mask"])
        step = state.step.astype(jnp.uint32)
        keys = derive_keys(controls["seed"], TRAINING_STREAM, step, batch["index"])
        of_changes = derive_keys(controls["seed"], AUGMENTATION_STREAM, step, batch["index"])
        clips = augmentation.apply(clips, of_changes)
        gradients, metrics, batch_stats = clip_gradients(
            model,
            objective,
            rollout,
            state.variables,
            clips,
            clip_noise(keys, model.latent_shape(batch["frames"].shape[2:4])),
            batch["forced"].T if "forced" in batch else controls["forced"],
            controls["beta"],
            psum(jnp.sum(clips.mask)),
            n_past,
            psum,
            throughout=throughout,
        )
        gradients, metrics = psum((gradients, metrics))
        metrics["grad_norm"] = optax.tree.norm(gradients)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        updated = state.update(optimizer, gradients, batch_stats, controls["learning_rate"])
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        return state, metrics | {"finite": finite}

    return train_step
