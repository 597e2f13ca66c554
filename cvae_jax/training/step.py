"""The training step: gradients of the global batch, summed over the devices, and the optimizer's update."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, PyTree

from cvae_jax.losses import Objective
from cvae_jax.models.interface import VideoModel
from cvae_jax.rollout.noise import AUGMENTATION_STREAM, TRAINING_STREAM, clip_noise, derive_keys
from cvae_jax.rollout.scan import Clips, RolloutOptions
from cvae_jax.runtime.devices import psum
from cvae_jax.training.augment import Augmentation
from cvae_jax.training.gradients import Gradients, clip_gradients
from cvae_jax.training.state import Optimizer, TrainState


def make_train_step(
    model: VideoModel,
    objective: Objective,
    rollout: RolloutOptions,
    n_past: int,
    optimizer: Optimizer,
    augmentation: Augmentation = Augmentation(),
    throughout: bool | None = None,
    accumulate_steps: int = 1,
) -> Callable:
    """Return the device function (state, batch, controls) -> (state, metrics).

    batch: frames uint8 (b, T, H, W, 3) and labels (b, T, ...), mask float32 (b,), index int32 (b,), and for
    decisions per clip forced bool (b, T-1). controls: seed uint32, beta and learning_rate float32, and
    otherwise forced bool (T-1,). throughout: see `Controls.throughout`. accumulate_steps: the parts that a
    device takes its clips in, see `accumulate`; b must be a multiple of it.

    metrics: loss, recon, kl, grad_norm, 'grad_norm/<module>' and 'param_norm/<module>' for the entries of the
    parameters, and finite. Where the loss, the gradients, the new parameters or batch statistics are not
    finite, nothing of the state changes but its step.
    """

    def train_step(state: TrainState, batch: dict, controls: dict) -> tuple[TrainState, dict]:
        step = state.step.astype(jnp.uint32)
        num_clips = psum(jnp.sum(batch["mask"]))

        def gradients_of(batch: dict, total: Callable[[Array], Array]) -> Gradients:
            clips = Clips(batch["frames"], batch["labels"], batch["mask"])
            keys = derive_keys(controls["seed"], TRAINING_STREAM, step, batch["index"])
            of_changes = derive_keys(controls["seed"], AUGMENTATION_STREAM, step, batch["index"])
            return clip_gradients(
                model,
                objective,
                rollout,
                state.variables,
                augmentation.apply(clips, of_changes),
                clip_noise(keys, model.latent_shape(batch["frames"].shape[2:4])),
                batch["forced"].T if "forced" in batch else controls["forced"],
                controls["beta"],
                num_clips,
                n_past,
                total,
                throughout=throughout,
            )

        batch_stats = state.batch_stats
        if accumulate_steps == 1:
            gradients, metrics, batch_stats = gradients_of(batch, psum)
        else:
            parts = jax.tree.map(lambda x: x.reshape(accumulate_steps, -1, *x.shape[1:]), batch)
            gradients, metrics = accumulate(gradients_of, parts, objective.is_calibrated)
        gradients, metrics = psum((gradients, metrics))
        metrics["grad_norm"] = optax.tree.norm(gradients)
        updated = state.update(optimizer, gradients, batch_stats, controls["learning_rate"])
        metrics |= {f"grad_norm/{module}": optax.tree.norm(own) for module, own in gradients.items()}
        norms = {f"param_norm/{module}": optax.tree.norm(own) for module, own in updated.params.items()}
        numbers = [metrics["loss"], metrics["grad_norm"], *norms.values(), optax.tree.norm(batch_stats)]
        finite = jnp.all(jnp.isfinite(jnp.stack(numbers)))
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        return kept.replace(step=updated.step), metrics | norms | {"finite": finite}

    return train_step


def accumulate(
    gradients_of: Callable[[dict, Callable[[Array], Array]], Gradients], parts: PyTree, is_calibrated: bool
) -> tuple[PyTree, dict[str, Array]]:
    """Return the sums of the gradients and metrics of a device's clips, taken part after part to save memory.

    gradients_of: of a part, and of what sums its share of the reconstruction error over the global batch.
    parts: arrays (parts, clips, ...). The shares of parts add up as those of devices do. The calibrated loss
    is no sum over clips: its gradient needs the error of the whole batch, which a forward pass finds first.

    Models must have no batch statistics.
    """
    total: Callable[[Array], Array] = psum
    if is_calibrated:
        # Of what is computed here only the error is used: the compiler leaves the gradients out.
        shares = lax.map(lambda part: gradients_of(part, lambda share: share)[1]["recon"], parts)
        error = psum(jnp.sum(shares))
        total = lambda share: error  # noqa: E731

    def add(sums: tuple, part: dict) -> tuple[tuple, None]:
        gradients, metrics, _ = gradients_of(part, total)
        return jax.tree.map(jnp.add, sums, (gradients, metrics)), None

    shapes = jax.eval_shape(lambda part: gradients_of(part, total)[:2], jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.scan(add, zeros, parts)[0]
