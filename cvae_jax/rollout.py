"""The loop over time: one cell, two paths.

`reconstruct` draws z from the posterior of the frame it predicts (training, and the leaky number of the
report); `predict` draws z from the prior. Both are a `lax.scan` over the same decoding cell. In
`reconstruct` a `lax.cond` on a traced per-step decision picks the true or the generated previous
frame. `clip_gradients` is the training path: where no gradient crosses time, it takes the gradient
inside the scan and carries the sum, so memory does not grow with the length of the clip; where the whole
clip is teacher-forced, an accelerator folds time into the batch instead.

Video is (b, t, h, w, c) outside and time-major inside; uint8 is turned into float32 in [0, 1] one step
at a time. Step t = 1 .. T-1 predicts frame t; frame 0 is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, Key, Num, PyTree, Scalar

from cvae_jax.errors import UserError
from cvae_jax.losses import Objective
from cvae_jax.models.cvae import CVAE

Noise = Callable[[Scalar], Array]
"""t -> eps of step t, (b, h, w, z)."""


@flax.struct.dataclass
class Clips:
    """A batch of clips: frames and labels (b, t, h, w, 3), uint8 or float in [0, 1]; mask (b,), 1 = real."""

    frames: Num[Array, "b t h w c"]
    labels: Num[Array, "b t h w c"]
    mask: Float[Array, " b"]


@dataclasses.dataclass(frozen=True)
class Feedback:
    """Where gradients stop.

    Attributes:
      cut_feedback: stop gradients at the fed-back frame (the report). False differentiates through
        time; needs `cut_previous_features=False`.
      cut_previous_features: stop gradients at the previous frame's features (the report).
      fold_time: under teacher forcing run `time_chunk` steps as one batch (accelerators).
      time_chunk: how many steps at most are folded at once; the largest divisor of T-1 is taken.
    """

    cut_feedback: bool = True
    cut_previous_features: bool = True
    fold_time: bool = False
    time_chunk: int = 5
    clip_chunk: int = int(__import__('os').environ.get('CC','1'))

    def __post_init__(self) -> None:
        if not self.cut_feedback and self.cut_previous_features:
            raise UserError(
                "config.rollout.cut_feedback=False needs config.rollout.cut_previous_features=False: "
                "the gradient through time passes through the previous frame's features."
            )
        if self.time_chunk < 1:
            raise UserError(f"config.rollout.time_chunk is {self.time_chunk}; give at least 1.")


@flax.struct.dataclass
class Step:
    """What one step of `reconstruct` computes; raw is the decoder's output before the clamp."""

    raw: Float[Array, "b h w c"]
    mu: Float[Array, "b h w z"]
    logvar: Float[Array, "b h w z"]
    current_features: Float[Array, "b h w f"]
    batch_stats: PyTree

    @property
    def frame(self) -> Array:
        """The predicted frame, clamped to [0, 1]."""
        return jnp.clip(self.raw, 0.0, 1.0)


def clip_noise(keys: Key[Array, " b"], shape: tuple[int, int, int]) -> Noise:
    """Return t -> standard normal noise (b, *shape) addressed by (key of the clip, t)."""

    def noise(t: Scalar) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)

    return noise


def address(seed: Integer[Array, ""], *parts: Num[Array, ...]) -> Key[Array, ...]:
    """Fold integers into the key of `seed`, one after the other; array parts give one key per entry."""
    key = jax.random.key(seed)
    for part in parts:
        if key.ndim == 0 and part.ndim == 1:
            key = jax.vmap(jax.random.fold_in, (None, 0))(key, part)
        elif key.ndim == 1:
            key = jax.vmap(jax.random.fold_in, (0, None if part.ndim == 0 else 0))(key, part)
        else:
            key = jax.random.fold_in(key, part)
    return key


def reconstruct(
    model: CVAE,
    variables: dict,
    clips: Clips,
    noise: Noise,
    forced: Bool[Array, " s"] | Bool[Array, "s b"],
    *,
    train: bool = False,
    emit: Callable[[Step, Scalar, Array], Any] = lambda step, t, target: step.frame,
) -> tuple[Any, PyTree]:
    """Roll over a clip with z from the posterior of each frame.

    Args:
      forced: decisions of the steps 1 .. T-1; True feeds the true previous frame (step 1 always does).
      train: BatchNorm with batch statistics; the running values are updated step after step.
      emit: what to keep of each step; by default the predicted frame.

    Returns:
      What was emitted, time-major (T-1, ...), and the new batch statistics.
    """

    def advance(inputs: _Inputs, batch_stats: PyTree, carried: None) -> tuple[Step, None, Any]:
        step = _posterior_step(model, variables["params"], batch_stats, inputs, train)
        return step, None, emit(step, inputs.t, inputs.current)

    return _roll(model, variables, clips, noise, forced, Feedback(), advance, None)[1:]


def predict(
    model: CVAE,
    variables: dict,
    first: Num[Array, "b h w c"],
    labels: Num[Array, "b t h w c"],
    noise: Noise,
    *,
    temperature: float | Scalar = 1.0,
    emit: Callable[[Array, Scalar], Any] = lambda frame, t: frame,
) -> Any:
    """Generate a video from its first frame and labels, with z = temperature * noise.

    Returns:
      What was emitted (by default frames in [0, 1]), time-major (T-1, ...). labels[:, 0] is used by the
      model's 'residual' output only.
    """
    first = as_float(first)
    reference = _reference(first, labels)
    mask = jnp.ones(first.shape[0])

    def body(previous: Array, inputs: tuple) -> tuple[Array, Any]:
        t, label = inputs
        previous_features = _encode_frame(model, variables, previous)
        label = as_float(label)[None]
        label_features, _ = _encode_label(model, variables, label, mask, train=False)
        z = temperature * noise(t)
        frame = jnp.clip(
            _decode(model, variables, previous_features, label_features[0], z, reference), 0.0, 1.0
        )
        return frame, emit(frame, t)

    return lax.scan(body, first, (_steps(labels), _time_major(labels)[1:]))[1]


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

    def total(recon: Array, kl: Array) -> tuple[Array, dict[str, Array]]:
        loss, recon, kl = objective.reduce(recon, kl, clips.mask, beta, num_clips)
        return loss, {"loss": loss, "recon": recon, "kl": kl}

    def through_time(params: PyTree) -> tuple[Array, tuple]:
        @jax.checkpoint
        def differentiable(params, batch_stats, inputs):
            return _posterior_step(model, params, batch_stats, inputs, True)

        def advance(inputs, batch_stats, carried):
            step = differentiable(params, batch_stats, inputs)
            return step, None, score(step, inputs.current)

        rolled = _roll(
            model, {**variables, "params": params}, clips, noise, forced, feedback, advance, None
        )
        loss, metrics = total(*rolled[1])
        return loss, (metrics, rolled[2])

    def within_steps() -> tuple[PyTree, dict[str, Array], PyTree]:
        def advance(inputs, batch_stats, gradients):
            return _grouped(model, variables["params"], batch_stats, inputs, gradients, score, objective, beta, num_clips, feedback.clip_chunk)

        zeros = jax.tree.map(jnp.zeros_like, variables["params"])
        gradients, metrics, batch_stats = _roll(
            model, variables, clips, noise, forced, feedback, advance, zeros
        )
        return gradients, jax.tree.map(jnp.sum, metrics), batch_stats

    if not feedback.cut_feedback:
        gradients, (metrics, batch_stats) = jax.grad(through_time, has_aux=True)(
            variables["params"]
        )
        return gradients, metrics, batch_stats
    # Decisions per clip differ between devices; each must run the same collective operations.
    if not feedback.fold_time or forced.ndim == 2:
        return within_steps()
    return lax.cond(
        jnp.all(forced[1:]),
        lambda: _folded_gradients(model, feedback, variables, clips, noise, score, total),
        within_steps,
    )


@flax.struct.dataclass
class _Inputs:
    """What one step is given: exactly one of previous and previous_features is set."""

    t: Scalar
    previous: Array | None
    previous_features: Array | None
    current: Array
    label: Array
    reference: Array
    eps: Array
    mask: Array


def _roll(model, variables, clips, noise, forced, feedback, advance, carried):
    """Scan `advance` over the steps of a clip, picking the previous frame; (carried, outputs, stats)."""
    frames, labels = _time_major(clips.frames), _time_major(clips.labels)
    first = as_float(frames[0])
    reference = _reference(first, clips.labels)
    # A true frame's features serve as "current" at its own step and as "previous" at the next one. They
    # can be carried only where they need no gradient and where one decision serves the whole batch.
    carry_features = feedback.cut_previous_features and forced.ndim == 1
    t = _steps(clips.frames)
    first_step = t == 1
    forced = forced | (first_step if forced.ndim == 1 else first_step[:, None])

    def body(carry, xs):
        generated, true_features, batch_stats, carried = carry
        t, forced_t, true_previous, current, label = xs
        previous = previous_features = None
        if carry_features:
            previous_features = lax.cond(
                forced_t,
                lambda: true_features,
                lambda: _encode_frame(model, variables, generated),
            )
        else:
            true_previous = as_float(true_previous)
            if forced_t.ndim == 0:
                previous = lax.cond(forced_t, lambda: true_previous, lambda: generated)
            else:
                previous = jnp.where(forced_t[:, None, None, None], true_previous, generated)
            if feedback.cut_previous_features:
                previous_features = _encode_frame(model, variables, previous)
                previous = None
        inputs = _Inputs(
            t=t,
            previous=previous,
            previous_features=lax.stop_gradient(previous_features),  # given only where they are cut
            current=as_float(current),
            label=as_float(label),
            reference=reference,
            eps=noise(t),
            mask=clips.mask,
        )
        step, carried, output = advance(inputs, batch_stats, carried)
        true_features = lax.stop_gradient(step.current_features) if carry_features else None
        generated = lax.stop_gradient(step.frame) if feedback.cut_feedback else step.frame
        return (generated, true_features, step.batch_stats, carried), output

    features = _encode_frame(model, variables, first) if carry_features else None
    start = (first, features, variables["batch_stats"], carried)
    (_, _, batch_stats, carried), outputs = lax.scan(
        body, start, (t, forced, frames[:-1], frames[1:], labels[1:])
    )
    return carried, outputs, batch_stats


def _grouped(model, params, batch_stats, inputs, gradients, score, objective, beta, num_clips, chunk):
    def labels_of(params):
        v = {"params": params, "batch_stats": batch_stats}
        f, stats = _encode_label(model, v, inputs.label[None], inputs.mask, True)
        return f[0], stats

    label_features, label_vjp, new_stats = jax.vjp(labels_of, params, has_aux=True)
    b = inputs.mask.shape[0]
    size = max(d for d in range(1, min(chunk, b) + 1) if b % d == 0)
    group = lambda x: x.reshape(b // size, size, *x.shape[1:])
    ungroup = lambda x: x.reshape(b, *x.shape[2:])
    per_clip = dict(previous=inputs.previous, previous_features=inputs.previous_features, current=inputs.current,
                    eps=inputs.eps, reference=inputs.reference, mask=inputs.mask, label_features=label_features)

    def body(gradients, x):
        def loss_of(params, lf):
            v = {"params": params, "batch_stats": batch_stats}
            pf = x["previous_features"]
            if pf is None:
                pf = _encode_frame(model, v, x["previous"])
            cf = _encode_frame(model, v, x["current"])
            step = _posterior_cell(model, v, pf, cf, lf, x["eps"], x["reference"], None)
            recon, kl = score(step, x["current"])
            loss, recon, kl = objective.reduce(recon, kl, x["mask"], beta, num_clips)
            return loss, (step, {"loss": loss, "recon": recon, "kl": kl})
        (g, dl), (step, metrics) = jax.grad(loss_of, argnums=(0, 1), has_aux=True)(params, x["label_features"])
        return jax.tree.map(jnp.add, gradients, g), (dl, step, metrics)

    gradients, (dl, step, metrics) = lax.scan(body, gradients, jax.tree.map(group, per_clip))
    gradients = jax.tree.map(jnp.add, gradients, label_vjp(ungroup(dl))[0])
    step = jax.tree.map(ungroup, step)
    return step.replace(batch_stats=new_stats), gradients, jax.tree.map(lambda m: m.sum(0), metrics)


def _posterior_step(model, params, batch_stats, inputs: _Inputs, train: bool) -> Step:
    variables = {"params": params, "batch_stats": batch_stats}
    label_features, batch_stats = _encode_label(
        model, variables, inputs.label[None], inputs.mask, train
    )
    previous_features = inputs.previous_features
    if previous_features is None:
        previous_features = _encode_frame(model, variables, inputs.previous)
    current_features = _encode_frame(model, variables, inputs.current)
    return _posterior_cell(
        model, variables, previous_features, current_features, label_features[0], inputs.eps,
        inputs.reference, batch_stats,
    )  # fmt: skip


def _posterior_cell(
    model, variables, previous_features, current_features, label_features, eps, reference, batch_stats
) -> Step:
    mu, logvar = model.apply(variables, current_features, label_features, method="posterior")
    z = mu + jnp.exp(0.5 * logvar) * eps
    raw = _decode(model, variables, previous_features, label_features, z, reference)
    return Step(raw, mu, logvar, current_features, batch_stats)


def _folded_gradients(model, feedback, variables, clips, noise, score, total):
    """Gradients of a teacher-forced clip with time folded into the batch, chunk after chunk."""
    frames, labels = _time_major(clips.frames), _time_major(clips.labels)
    num_steps, clips_here = frames.shape[0] - 1, frames.shape[1]
    size = max(
        d for d in range(1, min(feedback.time_chunk, num_steps) + 1) if num_steps % d == 0
    )
    reference = _reference(as_float(frames[0]), clips.labels)

    def fold(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])

    def unfold(x: Array) -> Array:
        return x.reshape(size, clips_here, *x.shape[1:])

    def body(carry, chunk):
        batch_stats, gradients = carry
        start = chunk * size
        window = as_float(lax.dynamic_slice_in_dim(frames, start, size + 1))
        label = as_float(lax.dynamic_slice_in_dim(labels, start + 1, size))
        eps = jax.vmap(noise)(start + 1 + jnp.arange(size))

        def loss_of(params):
            here = {"params": params, "batch_stats": batch_stats}
            label_features, new_stats = _encode_label(model, here, label, clips.mask, train=True)
            features = _encode_frame(model, here, fold(window)).reshape(
                size + 1, clips_here, *frames.shape[2:4], -1
            )
            previous = features[:-1]
            if feedback.cut_previous_features:
                previous = lax.stop_gradient(previous)
            references = jnp.broadcast_to(reference[None], (size, *reference.shape))
            step = _posterior_cell(
                model, here, fold(previous), fold(features[1:]), fold(label_features), fold(eps),
                fold(references), new_stats,
            )  # fmt: skip
            recon, kl = score(step, fold(window[1:]))
            loss, metrics = total(unfold(recon), unfold(kl))
            return loss, (metrics, step.batch_stats)

        new, (metrics, batch_stats) = jax.grad(loss_of, has_aux=True)(variables["params"])
        return (batch_stats, jax.tree.map(jnp.add, gradients, new)), metrics

    zeros = jax.tree.map(jnp.zeros_like, variables["params"])
    (batch_stats, gradients), metrics = lax.scan(
        body, (variables["batch_stats"], zeros), jnp.arange(num_steps // size)
    )
    return gradients, jax.tree.map(jnp.sum, metrics), batch_stats


def _encode_frame(model: CVAE, variables: dict, frame: Array) -> Array:
    return model.apply(variables, frame, method="encode_frame")


def _encode_label(model, variables, label, mask, train: bool) -> tuple[Array, PyTree]:
    if not train:
        features = model.apply(variables, label, mask, False, method="encode_label")
        return features, variables["batch_stats"]
    features, updates = model.apply(
        variables, label, mask, True, method="encode_label", mutable=["batch_stats"]
    )
    return features, updates["batch_stats"]


def _decode(model, variables, previous_features, label_features, z, reference) -> Array:
    return model.apply(
        variables, previous_features, label_features, z, reference, method="decode"
    )


def _reference(first: Array, labels: Array) -> Array:
    """What a clip starts from, (b, h, w, 6): its first frame and that frame's label."""
    return jnp.concatenate([first, as_float(labels[:, 0])], axis=-1)


def as_float(x: Num[Array, ...]) -> Float[Array, ...]:
    """Return uint8 video as float32 in [0, 1]; float video as it is."""
    return x.astype(jnp.float32) / 255.0 if x.dtype == jnp.uint8 else x


def _time_major(x: Array) -> Array:
    return jnp.swapaxes(x, 0, 1)


def _steps(video: Array) -> Array:
    return jnp.arange(1, video.shape[1])
