"""The loop over time: a `lax.scan` over the steps of a clip in which a `lax.cond` picks the previous frame.

Training, evaluation and generation all run through `scan_steps`; they differ in what they do with a step.
Video is (b, t, h, w, c) outside; uint8 is turned into float32 in [0, 1] one step at a time. Step t = 1 .. T-1
predicts frame t.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, Num, PyTree, Scalar

from cvae_jax.models.interface import StepInputs, StepOutputs, Variables, VideoModel, over_steps
from cvae_jax.rollout.noise import Noise
from cvae_jax.runtime.errors import UserError


@flax.struct.dataclass
class Clips:
    """A stretch of b clips: one frame and its label, then the S frames and labels of its steps.

    frames: (b, 1 + S, h, w, c), uint8 or float in [0, 1]; None where there is nothing to compare with.
    labels: images like the frames, or vectors (b, 1 + S, a). mask: (b,), 1 for real clips, 0 for padding.
    """

    frames: Num[Array, "b t h w c"] | None
    labels: Num[Array, "b t ..."]
    mask: Float[Array, " b"]


REMAT = ("all", "elementwise", "none")


def _keep_products(primitive: Any, *_: Any, **__: Any) -> bool:
    # Most functions with a gradient of their own are products (`cvae_jax.models.products`, `ops`).
    return primitive.name in ("dot_general", "conv_general_dilated", "custom_vjp_call")


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """The section `config.rollout`.

    Attributes:
      cut_feedback: stop gradients at the fed-back frame (the report); False differentiates through time.
      fold_time: run up to `time_chunk` steps of a teacher-forced clip as one batch, where the model can.
      time_chunk: how many steps at most are folded at once.
      remat: what the backward pass computes again of each step, or chunk of several, where a clip is
        differentiated as a whole: 'all'; 'elementwise', all but products, convolutions and what else has a
        gradient of its own (normalisation, LSTM cells), whose results are kept; or 'none'. Memory grows in
        this order. A single chunk is never computed again.
    """

    cut_feedback: bool = True
    fold_time: bool = False
    time_chunk: int = 5
    remat: str = "all"

    def __post_init__(self) -> None:
        if self.time_chunk < 1:
            raise UserError(f"config.rollout.time_chunk is {self.time_chunk}; give at least 1.")
        if self.remat not in REMAT:
            raise UserError(f"config.rollout.remat is {self.remat!r}; choose one of {', '.join(REMAT)}.")

    def rematerialised(self, function: Callable) -> Callable:
        """Return the function with a backward pass that recomputes what `remat` says."""
        if self.remat == "none":
            return function
        return jax.checkpoint(function, policy=_keep_products if self.remat == "elementwise" else None)


class RolloutState(NamedTuple):
    """What a rollout hands from step to step: the latest frame (b, h, w, c), and the model's carry."""

    frame: Array
    carry: PyTree


Advance = Callable[[StepInputs, PyTree, PyTree, Any], tuple[StepOutputs, PyTree, PyTree, Any, Any]]
"""(inputs, carry, batch_stats, total) -> (outputs, carry, batch_stats, total, what to keep of the step)."""


def scan_steps(
    advance: Advance,
    clips: Clips,
    noise: Noise,
    forced: Bool[Array, " s"] | Bool[Array, "s b"] | None,
    state: RolloutState,
    batch_stats: PyTree,
    total: Any = None,
    *,
    start: int | Integer[Array, ""] = 0,
    n_past: int = 1,
    cut_feedback: bool = True,
) -> tuple[RolloutState, PyTree, Any, Any]:
    """Advance over the steps start + 1 .. start + S of clips.

    Args:
      forced: which steps see the true previous frame; None: none does.
      state: before the first step; its frame is what an unforced first step sees as previous (a context frame
        if start < n_past).
      start: the number of clips.frames[:, 0] in its video, for noise and `StepInputs.t`.
      cut_feedback: stop gradients at the frames that are fed back.

    Returns:
      The state, batch statistics and total after the last step, and what was kept, time-major (S, ...).
    """

    def body(loop, step):
        state, batch_stats, total = loop
        k, forced_k = step
        is_given = start + k <= n_past
        x = StepInputs(
            t=start + k,
            previous=_previous(forced_k, clips, k, state.frame) if forced is not None else state.frame,
            previous_is_true=forced_k | is_given,
            previous_is_given=is_given,
            label=frame_at(clips.labels, k),
            conditioning=None,
            noise=noise(start + k),
            mask=clips.mask,
            target=None if clips.frames is None else frame_at(clips.frames, k),
        )
        outputs, carry, batch_stats, total, kept = advance(x, state.carry, batch_stats, total)
        frame = lax.stop_gradient(outputs.frame) if cut_feedback else outputs.frame
        return (RolloutState(frame, carry), batch_stats, total), kept

    steps = jnp.arange(1, clips.labels.shape[1])
    decisions = jnp.zeros(len(steps), bool) if forced is None else forced
    loop, kept = over_steps(body, (state, batch_stats, total), (steps, decisions))
    return *loop, kept


def _previous(forced: Array, clips: Clips, k: Scalar, generated: Array) -> Array:
    frames = clips.frames
    assert frames is not None, "only a true frame can be forced"
    if forced.ndim == 0:
        return lax.cond(forced, lambda: frame_at(frames, k - 1), lambda: generated)
    return jnp.where(forced[:, None, None, None], frame_at(frames, k - 1), generated)


def observe_step(
    model: VideoModel, variables: Variables, constants: PyTree, carry: PyTree, x: StepInputs, train: bool
) -> tuple[StepOutputs, PyTree, PyTree]:
    """Condition on the label, then `observe`; return (outputs, carry, batch_stats)."""
    x, batch_stats = with_conditioning(model, variables, x, train)
    return model.observe({**variables, "batch_stats": batch_stats}, constants, carry, x, train)


def imagine_step(
    model: VideoModel, variables: Variables, constants: PyTree, carry: PyTree, x: StepInputs
) -> tuple[StepOutputs, PyTree]:
    """Condition on the label, then `imagine`, which never sees the target; return (outputs, carry)."""
    x, _ = with_conditioning(model, variables, dataclasses.replace(x, target=None), train=False)
    return model.imagine(variables, constants, carry, x)


def with_conditioning(
    model: VideoModel, variables: Variables, x: StepInputs, train: bool
) -> tuple[StepInputs, PyTree]:
    """Return one step's inputs with their conditioning, and the batch statistics after it."""
    conditioning, batch_stats = model.condition(variables, x.label[None], x.mask[None], train)
    conditioning = jax.tree.map(lambda leaf: leaf[0], conditioning)
    return dataclasses.replace(x, conditioning=conditioning), batch_stats


def as_float(x: Num[Array, ...]) -> Float[Array, ...]:
    """Return uint8 video as float32 in [0, 1]; float video as it is."""
    return x.astype(jnp.float32) / 255.0 if x.dtype == jnp.uint8 else x


def frame_at(video: Num[Array, "b t ..."], t: Scalar) -> Float[Array, "b ..."]:
    """Return frame (or label) t as float; nothing but this frame is ever converted."""
    return as_float(lax.dynamic_index_in_dim(video, t, axis=1, keepdims=False))


def frames_from(video: Num[Array, "b t ..."], t: Scalar, count: int) -> Float[Array, "s b ..."]:
    """Return `count` frames (or labels) from frame t on, as float and time-major."""
    return as_float(jnp.swapaxes(lax.dynamic_slice_in_dim(video, t, count, axis=1), 0, 1))
