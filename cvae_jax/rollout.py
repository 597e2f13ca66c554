"""The loop over time: one cell, two paths.

`reconstruct` draws z from the posterior of the frame it predicts (the leaky number of the report);
`predict` draws z from the prior. Both are a `lax.scan` over the same decoding cell. Where the previous
frame may be a true one, a `lax.cond` on a traced per-step decision picks it (`roll`, which training shares:
see `cvae_jax.gradients`).

Video is (b, t, h, w, c) outside and time-major inside; uint8 is turned into float32 in [0, 1] one step
at a time. Step t = 1 .. T-1 predicts frame t; frame 0 is given.

The past of a step is what the decoder is shown of it, (b, h, w, 3 * (1 + history)): the previous frame, then
the `model.history` frames before that one, latest first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, Key, Num, PyTree, Scalar

from cvae_jax.errors import UserError
from cvae_jax.models.cvae import CVAE
from cvae_jax.models.ops import clips_at_once

Noise = Callable[[Scalar], Array]
"""t -> eps of step t, (b, h, w, z)."""


@flax.struct.dataclass
class Clips:
    """A batch of clips: frames (b, t, h, w, 3), uint8 or float in [0, 1]; labels alike, or vectors (b, t, a);
    mask (b,), 1 = real."""

    frames: Num[Array, "b t h w c"]
    labels: Num[Array, "b t ..."]
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

    def __post_init__(self) -> None:
        if not self.cut_feedback and self.cut_previous_features:
            raise UserError(
                "config.rollout.cut_feedback=False needs config.rollout.cut_previous_features=False: "
                "the gradient through time passes through the previous frame's features."
            )
        if self.time_chunk < 1:
            raise UserError(f"config.rollout.time_chunk is {self.time_chunk}; give at least 1.")


class Step(NamedTuple):
    """What one step of `reconstruct` computes; raw is the decoder's output before the clamp."""

    raw: Float[Array, "b h w c"]
    mu: Float[Array, "b h w z"]
    logvar: Float[Array, "b h w z"]
    current_features: Float[Array, "b h w f"]

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
    accumulate: tuple[Any, Callable[[Any, Step, Scalar], Any]] | None = None,
    reference: Float[Array, "b h w r"] | None = None,
    past: Float[Array, "b h w p"] | None = None,
) -> tuple[Any, PyTree]:
    """Roll over a clip with z from the posterior of each frame.

    Args:
      forced: decisions of the steps 1 .. T-1; True feeds the true previous frame (step 1 always does).
      train: BatchNorm with batch statistics; the running values are updated step after step.
      emit: what to keep of each step; by default the predicted frame.
      accumulate: (start, function): what goes from step to step by total = function(total, step, t).
      reference: what the clip starts from (`clip_reference`), where these frames go on from a predicted
        one; by default their own first frame and label.
      past: the past of step 1, of which the first three channels are clips.frames[:, 0]; by default that
        frame again and again.

    Returns:
      What was emitted, time-major (T-1, ...), or with `accumulate` a pair of that and the total; and the
      new batch statistics.
    """
    total, add = accumulate or (None, lambda total, step, t: total)

    def advance(inputs: Inputs, batch_stats: PyTree, carried: Any) -> tuple[Step, PyTree, Any, Any]:
        here = {"params": variables["params"], "batch_stats": batch_stats}
        label_features, batch_stats = encode_label(
            model, here, inputs.label[None], inputs.clips["mask"], train
        )
        rest = inputs.clips | {"label_features": label_features[0]}
        _, step = over_groups(model, lambda _, x: (None, posterior_cell(model, here, x)), None, rest)
        emitted = emit(step, inputs.t, inputs.clips["current"])
        return step, batch_stats, add(carried, step, inputs.t), emitted

    total, emitted, batch_stats = roll(
        model, variables, clips, noise, forced, Feedback(), advance, total, reference, past
    )
    return (emitted if accumulate is None else (emitted, total)), batch_stats


def predict(
    model: CVAE,
    variables: dict,
    first: Num[Array, "b h w c"],
    labels: Num[Array, "b t ..."],
    noise: Noise,
    *,
    temperature: float | Scalar = 1.0,
    past: Float[Array, "b h w p"] | None = None,
    start: int | Integer[Array, ""] = 0,
    emit: Callable[[Array, Scalar], Any] = lambda frame, t: frame,
) -> Any:
    """Generate a video from its first frame and labels, with z = temperature * noise.

    A video can be generated in pieces, and from more than one given frame: the piece that begins with frame
    start + 1 is given `past`, of which frame number `start` is the latest, and labels of which labels[:, 0]
    belongs to the clip's first frame and labels[:, k] to frame start + k.

    Args:
      past: see the top of this module, and `past_of`; None for the first frame alone.
      start: the number of its latest frame; the steps are start + 1 .. start + T-1, for noise and emit too.

    Returns:
      What was emitted (by default frames in [0, 1]), time-major (T-1, ...). labels[:, 0] is used by the
      model's 'residual' output only.
    """
    first = as_float(first)
    mask = jnp.ones(first.shape[0])

    def next_frame(_: None, x: dict[str, Array]) -> tuple[None, Array]:
        previous, history = split_past(model, x["past"])
        previous_features = encode_frame(model, variables, previous)
        label_features, _ = encode_label(model, variables, x["label"][None], x["mask"], train=False)
        raw = decode(model, variables, previous_features, label_features[0], x["z"], x["reference"], history)
        return None, jnp.clip(raw, 0.0, 1.0)

    constant = {"reference": clip_reference(first, labels), "mask": mask}

    def body(past: Array, t: Scalar) -> tuple[Array, Any]:
        label = frame_at(labels, t - start)
        changing = {"past": past, "label": label, "z": temperature * noise(t)}
        _, frame = over_groups(model, next_frame, None, constant | changing)
        return push(past, frame), emit(frame, t)

    begin = past_of(model, first[None]) if past is None else past
    return lax.scan(body, begin, start + step_numbers(labels))[1]


def past_of(
    model: CVAE, frames: Num[Array, "n b h w c"], before: Float[Array, "b h w p"] | None = None
) -> Float[Array, "b h w p"]:
    """Return the past after `frames`, time-major, the latest last.

    before: the past of the first of the frames; None: that frame stands in for what would be before it.
    """
    frames = as_float(frames)
    past = jnp.tile(frames[0], (1, 1, 1, 1 + model.history)) if before is None else before
    for frame in frames[-(1 + model.history) :]:
        past = push(past, frame)
    return past


def push(past: Float[Array, "b h w p"], frame: Float[Array, "b h w c"]) -> Float[Array, "b h w p"]:
    """Return the past after one more frame."""
    return jnp.concatenate([frame, past[..., : past.shape[-1] - frame.shape[-1]]], axis=-1)


def split_past(model: CVAE, past: Float[Array, "b h w p"]) -> tuple[Array, Array | None]:
    """Return (previous frame, history) of a past; history is None for a model that is shown none."""
    return (past[..., :3], past[..., 3:]) if model.history else (past, None)


@flax.struct.dataclass
class Inputs:
    """What one step is given.

    `clips` holds the arrays of each clip (b, ...): 'current', 'eps', 'reference', 'mask', either 'previous',
    the frame, or 'previous_features', without gradient, and for a model that is shown it 'history'.
    """

    t: Scalar
    label: Float[Array, "b ..."]
    clips: dict[str, Array]


def roll(model, variables, clips, noise, forced, feedback, advance, carried, reference=None, past=None):
    """Scan `advance` over the steps of a clip, picking the previous frame.

    advance(inputs, batch_stats, carried) returns (step, batch_stats, carried, output); of the step
    `frame` and `current_features` go on. Returns (carried, outputs time-major, batch_stats).
    """
    first = as_float(clips.frames[:, 0])
    if reference is None:
        reference = clip_reference(first, clips.labels)
    # A true frame's features serve as "current" at its own step and as "previous" at the next one. They
    # can be carried only where they need no gradient and where one decision serves the whole batch.
    carry_features = feedback.cut_previous_features and forced.ndim == 1
    t = step_numbers(clips.frames)
    first_step = t == 1
    forced = forced | (first_step if forced.ndim == 1 else first_step[:, None])

    def features_of(frame: Array) -> Array:
        return over_groups(model, lambda _, x: (None, encode_frame(model, variables, x)), None, frame)[1]

    if past is None:
        past = past_of(model, first[None])

    def pick(forced_t, true, generated):
        if forced_t.ndim == 0:
            return lax.cond(forced_t, lambda: true, lambda: generated)
        return jnp.where(forced_t[:, None, None, None], true, generated)

    def body(carry, xs):
        generated, history, true_features, batch_stats, carried = carry
        t, forced_t = xs
        of_history = {}
        if model.history:
            of_history = {"history": history}
            history = push(history, pick(forced_t, frame_at(clips.frames, t - 1), generated))
        if carry_features:
            previous = lax.cond(forced_t, lambda: true_features, lambda: features_of(generated))
        else:
            previous = pick(forced_t, frame_at(clips.frames, t - 1), generated)
            if feedback.cut_previous_features:
                previous = features_of(previous)
        if feedback.cut_previous_features:
            given = {"previous_features": lax.stop_gradient(previous)}
        else:
            given = {"previous": previous}
        of_clips = {
            "current": frame_at(clips.frames, t),
            "eps": noise(t),
            "reference": reference,
            "mask": clips.mask,
        }
        inputs = Inputs(t, frame_at(clips.labels, t), given | of_history | of_clips)
        step, batch_stats, carried, output = advance(inputs, batch_stats, carried)
        true_features = lax.stop_gradient(step.current_features) if carry_features else None
        generated = lax.stop_gradient(step.frame) if feedback.cut_feedback else step.frame
        return (generated, history, true_features, batch_stats, carried), output

    start = (
        first,
        split_past(model, past)[1],
        features_of(first) if carry_features else None,
        variables["batch_stats"],
        carried,
    )
    (*_, batch_stats, carried), outputs = lax.scan(body, start, (t, forced))
    return carried, outputs, batch_stats


def posterior_cell(model: CVAE, variables: dict, x: dict[str, Array]) -> Step:
    """One step of some clips from `Inputs.clips` and their 'label_features'."""
    previous_features = x.get("previous_features")
    if previous_features is None:
        previous_features = encode_frame(model, variables, x["previous"])
    current_features = x.get("current_features")
    if current_features is None:
        current_features = encode_frame(model, variables, x["current"])
    label_features = x["label_features"]
    mu, logvar = model.apply(variables, current_features, label_features, method="posterior")
    z = mu + jnp.exp(0.5 * logvar) * x["eps"]
    raw = decode(model, variables, previous_features, label_features, z, x["reference"], x.get("history"))
    return Step(raw, mu, logvar, current_features)


def over_groups(
    model: CVAE, function: Callable[[Any, PyTree], tuple[Any, PyTree]], carried: Any, clips: PyTree
) -> tuple[Any, PyTree]:
    """Scan function(carried, group) -> (carried, outputs) over groups of clips; outputs are (b, ...).

    On a CPU a group is small enough for the caches; elsewhere it is the whole batch and nothing is
    scanned (see `ops.clips_at_once`).
    """
    batch = jax.tree.leaves(clips)[0].shape[0]
    size = largest_divisor(batch, clips_at_once(model.formulation) or batch)
    if size == batch:
        return function(carried, clips)
    groups = jax.tree.map(lambda x: x.reshape(batch // size, size, *x.shape[1:]), clips)
    carried, outputs = lax.scan(function, carried, groups)
    return carried, jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), outputs)


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit`."""
    return max(d for d in range(1, min(limit, number) + 1) if number % d == 0)


def encode_frame(model: CVAE, variables: dict, frame: Array) -> Array:
    """Return the features (n, h, w, f) of frames in [0, 1]."""
    return model.apply(variables, frame, method="encode_frame")


def encode_label(model, variables, label, mask, train: bool) -> tuple[Array, PyTree]:
    """Return the features of labels (g, b, ...) and the batch statistics after them."""
    if not train:
        features = model.apply(variables, label, mask, False, method="encode_label")
        return features, variables["batch_stats"]
    features, updates = model.apply(
        variables, label, mask, True, method="encode_label", mutable=["batch_stats"]
    )
    return features, updates.get("batch_stats", variables["batch_stats"])  # labels may need none


def decode(model, variables, previous_features, label_features, z, reference, history=None) -> Array:
    """Return the decoder's output, not clamped."""
    return model.apply(variables, previous_features, label_features, z, reference, history, method="decode")


def clip_reference(first: Array, labels: Array) -> Array:
    """Return what a clip starts from, (b, h, w, 6): its first frame and that frame's label.

    Of labels that are no images the frame alone, (b, h, w, 3).
    """
    if labels.ndim != 5:
        return first
    return jnp.concatenate([first, as_float(labels[:, 0])], axis=-1)


def as_float(x: Num[Array, ...]) -> Float[Array, ...]:
    """Return uint8 video as float32 in [0, 1]; float video as it is."""
    return x.astype(jnp.float32) / 255.0 if x.dtype == jnp.uint8 else x


def frame_at(video: Num[Array, "b t ..."], t: Scalar) -> Float[Array, "b ..."]:
    """Return frame (or label) t, as float: nothing but this frame is ever laid out anew."""
    return as_float(lax.dynamic_index_in_dim(video, t, axis=1, keepdims=False))


def frames_from(video: Num[Array, "b t ..."], t: Scalar, count: int) -> Float[Array, "g b ..."]:
    """Return `count` frames (or labels) from frame t on, as float and time-major."""
    return as_float(jnp.swapaxes(lax.dynamic_slice_in_dim(video, t, count, axis=1), 0, 1))


def step_numbers(video: Array) -> Array:
    """Return t = 1 .. T-1 of a video (b, t, ...)."""
    return jnp.arange(1, video.shape[1])
