"""What a video model is: all that the rollout, training, evaluation and generation know of one.

A model predicts one frame at a time from the previous frame, the label of the frame to predict and a latent
z. `observe` draws z from the posterior, which sees the target; `imagine` draws it from the prior. What a
model remembers between steps is its carry; what it derives once from the context frames are its constants.
Both are pytrees that nobody else looks into. `docs/models.md` adds a small recurrent model step by step.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree, Shaped

Variables = dict[str, Any]
"""{'params': ..., 'batch_stats': ...}: nested dicts of arrays; 'batch_stats' is {} where there are none."""


class Gaussian(NamedTuple):
    """A diagonal Gaussian over the latents of one step, of any shape after the clips' axis."""

    mean: Float[Array, "*b_and_z"]
    logvar: Float[Array, "*b_and_z"]

    def sample(self, noise: Float[Array, "*b_and_z"]) -> Float[Array, "*b_and_z"]:
        """Return mean + std * noise (the reparameterisation trick, Kingma & Welling, 2014)."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


def standard_normal(like: Array) -> Gaussian:
    """Return N(0, I) over latents shaped like `like`."""
    return Gaussian(jnp.zeros_like(like), jnp.zeros_like(like))


@flax.struct.dataclass
class StepInputs:
    """What a model is given to predict frame t of b clips.

    Attributes:
      t: number of the frame to predict, at least 1 (int32).
      previous: the frame before it, in [0, 1], as chosen by the rollout: the true one or the model's own.
      previous_is_true: whether it is the true one; one decision, or one per clip (b,).
      previous_is_given: whether it is one of the clip's context frames (t <= n_past).
      label: the label of frame t: an image in [0, 1] (b, h, w, 3), or a vector (b, a).
      conditioning: what the model's `condition` made of the label.
      encoded_target: what the model's `encode_targets` made of the target; None: nothing, or not yet.
      noise: standard normal noise for z (b, *latent_shape); in `imagine` it is scaled by the temperature and
        may be correlated with that of earlier steps.
      mask: 1 for real clips, 0 for padding (b,).
      target: the true frame t in [0, 1]; None in `imagine`.
    """

    t: Shaped[Array, "*s"]
    previous: Float[Array, "*s b h w c"]
    previous_is_true: Bool[Array, ...]
    previous_is_given: Bool[Array, "*s"]
    label: Array
    conditioning: PyTree
    noise: Array
    mask: Float[Array, "*s b"]
    target: Float[Array, "*s b h w c"] | None
    encoded_target: PyTree = None

    def per_clip(self) -> dict[str, PyTree]:
        """Return the fields that have a leading axis of clips; see `over_groups`."""
        names = ["previous", "label", "conditioning", "noise", "mask"]
        names += [name for name in ("target", "encoded_target") if getattr(self, name) is not None]
        names += ["previous_is_true"] * (self.previous_is_true.ndim > self.t.ndim)
        return {name: getattr(self, name) for name in names}


class StepOutputs(NamedTuple):
    """What a model predicts of frame t.

    raw: the decoder's output, which need not be in [0, 1]. prior: p(z_t | what was before).
    posterior: q(z_t | target, ...); None from `imagine`. masks: where a model composes its frames of several
    images, the share of each in every pixel, in [0, 1], by name; otherwise None. extra: in training, a
    further loss of each frame, of a model that has one.
    """

    raw: Float[Array, "*s b h w c"]
    prior: Gaussian
    posterior: Gaussian | None = None
    masks: dict[str, Float[Array, "*s b h w 1"]] | None = None
    extra: Float[Array, "*s b"] | None = None

    @property
    def frame(self) -> Float[Array, "*s b h w c"]:
        """The predicted frame: `raw` clamped to [0, 1]."""
        return jnp.clip(self.raw, 0.0, 1.0)


class VideoModel(abc.ABC):
    """The base class of all models; a subclass is a frozen dataclass of the fields of its config section.

    Besides these a subclass has the fields `precision` ('float32' or 'bfloat16', of the features) and
    `axis_name` (the pmap axis that batch statistics are summed over; None on one device).

    Attributes:
      gradient_crosses_time: whether a step's gradient reaches earlier steps through the carry. Then a clip is
        differentiated as a whole, recomputing each step (remat) or each chunk of several; otherwise step by
        step, in memory that does not grow with the length of the clip.
      sees_previous: whether a prediction depends on the previous frame. If not, teacher forcing changes
        nothing, and clips are always treated as teacher-forced.
      mask_names: the keys of `StepOutputs.masks`; () where there are none.
      has_learned_prior: whether the prior has parameters of its own, which the KL trains.
      clips_at_once: how many clips are worked on at a time, for the caches of a CPU; None for all of them.
        A model that sets it must not mix clips in `observe` and `imagine`; `condition` always sees all.
      teacher_forced_chunk: None, or a method like `observe` that takes several teacher-forced steps at once:
        all inputs and outputs but constants and carry have a leading axis of steps, and previous[i + 1] is
        target[i]. It folds time into the batch: on accelerators, and wherever `gradient_crosses_time`.
    """

    gradient_crosses_time: ClassVar[bool] = False
    sees_previous: bool = True
    mask_names: tuple[str, ...] = ()
    has_learned_prior: bool = False
    clips_at_once: int | None = None
    teacher_forced_chunk: Callable | None = None

    @abc.abstractmethod
    def latent_shape(self, frame_size: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of one clip's z for frames of (height, width)."""

    @abc.abstractmethod
    def init(self, seed: int, frame_size: tuple[int, int], label_size: int | None) -> Variables:
        """Return the initial variables, a function of `seed` alone.

        label_size: the length of labels that are vectors; None: labels are images of the frames' size.
        """

    @abc.abstractmethod
    def begin(
        self,
        variables: Variables,
        given: Float[Array, "b p h w c"],
        labels: Float[Array, "b p ..."],
        train: bool,
    ) -> tuple[PyTree, PyTree]:
        """Return (constants, carry) before step 1, from the n_past context frames and their labels.

        Every array in them has a leading axis of clips. Constants are floating-point arrays, and gradients
        flow through them into the parameters. Steps 1 .. n_past - 1 are still run through `observe`, which
        warms the carry up.
        """

    @abc.abstractmethod
    def observe(
        self, variables: Variables, constants: PyTree, carry: PyTree, x: StepInputs, train: bool
    ) -> tuple[StepOutputs, PyTree, PyTree]:
        """Predict frame t with z from the posterior; return (outputs, carry, batch_stats).

        train: normalise with the batch's statistics (clips whose mask is 1) and return the updated running
        values; otherwise return variables['batch_stats'] as they are.
        """

    @abc.abstractmethod
    def imagine(
        self, variables: Variables, constants: PyTree, carry: PyTree, x: StepInputs
    ) -> tuple[StepOutputs, PyTree]:
        """Predict frame t with z from the prior, `outputs.prior.sample(x.noise)`; return (outputs, carry)."""

    def check(self, n_past: int, cut_feedback: bool) -> None:
        """Raise UserError if the model does not fit config.n_past or config.rollout.cut_feedback."""
        del n_past, cut_feedback

    def condition(
        self, variables: Variables, labels: Float[Array, "s b ..."], mask: Float[Array, "s b"], train: bool
    ) -> tuple[PyTree, PyTree]:
        """Return (conditioning, batch_stats) of the labels of s steps of the whole batch.

        The only place where a model with `clips_at_once` may let clips meet (batch statistics of labels). The
        conditioning is floating-point arrays with the leading axes (s, b), and gradients flow through it. By
        default it is the labels themselves.
        """
        del mask, train
        return labels, variables["batch_stats"]

    def encode_targets(self, variables: Variables, targets: Float[Array, "s b h w c"]) -> PyTree | None:
        """Return what `observe` makes of the targets of s steps alone, with leading axes (s, b).

        `observe` finds it in `StepInputs.encoded_target`, or makes it itself. On accelerators several steps
        are encoded at once, also where each sees what the model has generated before it. Floating-point
        arrays, through which gradients flow. By default None: there is no such part.
        """
        del variables, targets
        return None


def init_variables(
    model: VideoModel, seed: int, frame_size: tuple[int, int], label_size: int | None = None
) -> Variables:
    """Return `model.init(...)` with an empty 'batch_stats' where the model has none."""
    return {"batch_stats": {}} | dict(model.init(seed, frame_size, label_size))


def variable_shapes(
    model: VideoModel, frame_size: tuple[int, int], label_size: int | None = None
) -> Variables:
    """Return the shapes and dtypes of a model's variables."""
    return jax.eval_shape(lambda: init_variables(model, 0, frame_size, label_size))


def over_steps(step: Callable, init: Any, xs: Any, reverse: bool = False) -> tuple[Any, Any]:
    """Scan over steps; a single step is not compiled as a loop."""
    return lax.scan(step, init, xs, reverse=reverse, unroll=len(jax.tree.leaves(xs)[0]) == 1)


def over_groups(
    size: int | None,
    function: Callable[[Any, PyTree], tuple[Any, PyTree]],
    carried: Any,
    clips: PyTree,
) -> tuple[Any, PyTree]:
    """Scan function(carried, group) -> (carried, outputs) over groups of clips; outputs are (b, ...).

    A group has the largest divisor of the batch that is at most `size` clips; None takes the batch at once.
    """
    batch = jax.tree.leaves(clips)[0].shape[0]
    size = largest_divisor(batch, size or batch)
    if size == batch:
        return function(carried, clips)
    groups = jax.tree.map(lambda x: x.reshape(batch // size, size, *x.shape[1:]), clips)
    carried, outputs = lax.scan(function, carried, groups)
    return carried, jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), outputs)


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit`."""
    return max(d for d in range(1, min(limit, number) + 1) if number % d == 0)
