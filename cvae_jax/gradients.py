"""The gradient of the objective over a batch of clips, in three forms that give the same numbers.

No gradient crosses time where feedback is cut, so the clip's gradient is the sum of its steps'. It is taken
inside the scan over time and the sum is carried: memory does not grow with the length of the clip. Where
the whole clip is teacher-forced, an accelerator folds time into the batch instead. Uncut feedback
differentiates through the scan, recomputing each step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, PyTree, Scalar

from cvae_jax.losses import Objective
from cvae_jax.models.cvae import CVAE
from cvae_jax.rollout import (
    Clips,
    Feedback,
    Inputs,
    Noise,
    Step,
    as_float,
    clip_reference,
    encode_frame,
    encode_label,
    frames_from,
    largest_divisor,
    over_groups,
    posterior_cell,
    roll,
)


def clip_gradients(
    model: CVAE,
    objective: Objective,
    feedback: Feedback,
    variables: dict,
    clips: Clips,
    noise: Noise,
    forced: Bool[Array, " s"] | Bool[Array, "s b"],
    beta: Scalar,
    num_clips: Scalar,
) -> tuple[PyTree, dict[str, Array], PyTree]:
    """Return (gradients, metrics, new batch statistics) of the objective over a batch of clips.

    Gradients and metrics are this device's shares of the global batch's: their sum over devices is the
    whole. Metrics: 'loss', 'recon', 'kl' (sums over steps, as in the objective).
    """

    def score(step: Step, target: Array) -> tuple[Array, Array]:
        recon = objective.reconstruction_error(step.raw, target)
        return recon, objective.kl_divergence(step.mu, step.logvar, train=True)

    def total(recon: Array, kl: Array, mask: Array = clips.mask) -> tuple[Array, dict[str, Array]]:
        loss, recon, kl = objective.reduce(recon, kl, mask, beta, num_clips)
        return loss, {"loss": loss, "recon": recon, "kl": kl}

    common = (model, feedback, variables, clips, noise)
    if not feedback.cut_feedback:
        return _through_time(*common, forced, score, total)
    # Decisions per clip differ between devices; each must run the same collective operations.
    if not feedback.fold_time or forced.ndim == 2:
        return _within_steps(*common, forced, score, total)
    return lax.cond(
        jnp.all(forced[1:]),
        lambda: _folded(*common, score, total),
        lambda: _within_steps(*common, forced, score, total),
    )


def _through_time(model, feedback, variables, clips, noise, forced, score, total):
    @jax.checkpoint
    def differentiable(params, batch_stats, inputs):
        here = {"params": params, "batch_stats": batch_stats}
        label_features, batch_stats = encode_label(
            model, here, inputs.label[None], inputs.clips["mask"], True
        )
        step = posterior_cell(model, here, inputs.clips | {"label_features": label_features[0]})
        return step, batch_stats

    def loss_of(params):
        def advance(inputs, batch_stats, carried):
            step, batch_stats = differentiable(params, batch_stats, inputs)
            return step, batch_stats, None, score(step, inputs.clips["current"])

        here = {**variables, "params": params}
        _, scores, stats = roll(model, here, clips, noise, forced, feedback, advance, None)
        loss, metrics = total(*scores)
        return loss, (metrics, stats)

    gradients, (metrics, batch_stats) = jax.grad(loss_of, has_aux=True)(variables["params"])
    return gradients, metrics, batch_stats


def _within_steps(model, feedback, variables, clips, noise, forced, score, total):
    params = variables["params"]

    def advance(inputs: Inputs, batch_stats, gradients):
        here = {"params": params, "batch_stats": batch_stats}

        def labels_of(params):
            # BatchNorm's statistics are of the whole batch: labels go through it together.
            return encode_label(
                model, {**here, "params": params}, inputs.label[None], inputs.clips["mask"], True
            )

        label_features, pull_back, batch_stats = jax.vjp(labels_of, params, has_aux=True)

        def add_group(gradients, x):
            def loss_of(params, label_features):
                step = posterior_cell(
                    model, {**here, "params": params}, x | {"label_features": label_features}
                )
                scores = score(step, x["current"])
                return total(*scores, x["mask"])[0], (step, scores)

            new, aux = jax.grad(loss_of, argnums=(0, 1), has_aux=True)(params, x["label_features"])
            return jax.tree.map(jnp.add, gradients, new[0]), (new[1], *aux)

        gradients, (of_labels, step, scores) = over_groups(
            model, add_group, gradients, inputs.clips | {"label_features": label_features[0]}
        )
        gradients = jax.tree.map(jnp.add, gradients, pull_back(of_labels[None])[0])
        return step, batch_stats, gradients, total(*scores)[1]

    zeros = jax.tree.map(jnp.zeros_like, params)
    gradients, metrics, batch_stats = roll(model, variables, clips, noise, forced, feedback, advance, zeros)
    return gradients, jax.tree.map(jnp.sum, metrics), batch_stats


def _folded(model, feedback, variables, clips, noise, score, total):
    """Gradients of a teacher-forced clip with time folded into the batch, chunk after chunk."""
    clips_here, num_steps = clips.frames.shape[0], clips.frames.shape[1] - 1
    size = largest_divisor(num_steps, feedback.time_chunk)
    reference = clip_reference(as_float(clips.frames[:, 0]), clips.labels)

    def fold(x: Array) -> Array:
        return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

    def unfold(x: Array) -> Array:
        return x.reshape(-1, clips_here, *x.shape[1:])

    def true_history(start: Array) -> Array:
        """The frames before the previous one of each step from start + 1 on, (size, b, h, w, 3 * history)."""
        steps = start + jnp.arange(size)
        frames = [clips.frames[:, jnp.maximum(steps - 1 - k, 0)] for k in range(model.history)]
        return as_float(jnp.swapaxes(jnp.concatenate(frames, axis=-1), 0, 1))

    def body(carry, chunk):
        batch_stats, gradients = carry
        start = chunk * size
        window = frames_from(clips.frames, start, size + 1)
        label = frames_from(clips.labels, start + 1, size)
        eps = jax.vmap(noise)(start + 1 + jnp.arange(size))

        def loss_of(params):
            here = {"params": params, "batch_stats": batch_stats}
            label_features, new_stats = encode_label(model, here, label, clips.mask, True)
            features = unfold(encode_frame(model, here, fold(window)))
            previous = features[:-1]
            if feedback.cut_previous_features:
                previous = lax.stop_gradient(previous)
            history = {"history": fold(true_history(start))} if model.history else {}
            step = posterior_cell(
                model,
                here,
                history
                | {
                    "previous_features": fold(previous),
                    "current_features": fold(features[1:]),
                    "label_features": fold(label_features),
                    "eps": fold(eps),
                    "reference": fold(jnp.broadcast_to(reference[None], (size, *reference.shape))),
                },
            )
            recon, kl = score(step, fold(window[1:]))
            loss, metrics = total(unfold(recon), unfold(kl))
            return loss, (metrics, new_stats)

        new, (metrics, batch_stats) = jax.grad(loss_of, has_aux=True)(variables["params"])
        return (batch_stats, jax.tree.map(jnp.add, gradients, new)), metrics

    zeros = jax.tree.map(jnp.zeros_like, variables["params"])
    (batch_stats, gradients), metrics = lax.scan(
        body, (variables["batch_stats"], zeros), jnp.arange(num_steps // size)
    )
    return gradients, jax.tree.map(jnp.sum, metrics), batch_stats
