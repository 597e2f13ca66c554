"""The pose-conditioned CVAE of the report behind the interface of video models."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from cvae_jax.models import initial, ops
from cvae_jax.models.cvae_network import Network
from cvae_jax.models.interface import (
    Gaussian,
    StepInputs,
    StepOutputs,
    Variables,
    VideoModel,
    over_groups,
    standard_normal,
)
from cvae_jax.models.layers import refuse_octaves
from cvae_jax.runtime.errors import UserError

CHOICES = {"prior": ("standard", "learned"), "output": ("rgb", "residual"), "formulation": ops.FORMULATIONS}
LEAST = {
    "frame_features": 8,
    "label_features": 2,
    "latent_channels": 4,
    "decoder_features": 8,
    "position_octaves": 0,
    "history": 0,
}


@dataclasses.dataclass(frozen=True)
class CVAE(VideoModel):
    """The report's model, and what goes beyond it; the section `config.model.cvae`.

    The latent is a map over all pixels. No gradient crosses time unless `config.rollout.cut_feedback=False`
    asks for it.
    """

    frame_features: int = 128  # F, at least 8
    label_features: int = 32  # L, at least 2
    latent_channels: int = 12  # N, at least 4: z is H x W x N
    decoder_features: int = 192  # D, at least 8
    # standard: p(z) = N(0, I) (report); learned: p(z | previous frame, label). `cut_previous_features` also
    # keeps the prior's gradient from the frame encoder.
    prior: str = "standard"
    # rgb (report), or residual: the decoder also sees the clip's first frame with its label and draws the
    # difference to it, so that what does not move need not be drawn again.
    output: str = "rgb"
    # The decoder also sees each pixel's place as sines and cosines of this many octaves (see `positions`), so
    # that it can remember what is where before a still camera; 0 = it does not.
    position_octaves: int = 0
    # The decoder also sees this many frames before the previous one (what moves has a direction); fewer than
    # n_past.
    history: int = 0
    cut_previous_features: bool = True  # no gradient into the previous frame's features (report)
    formulation: str = "auto"  # auto (by backend), plain or cpu (see `cvae_jax.models.ops`)
    # Of the features, from `config.precision`. bfloat16: mixed precision (Micikevicius et al., 2018);
    # parameters, statistics, the posterior, the frame and every loss stay in float32.
    precision: str = "float32"
    axis_name: str | None = None

    network_class: ClassVar[type[nn.Module]] = Network

    def __post_init__(self) -> None:
        for field, least in LEAST.items():
            if getattr(self, field) < least:
                raise UserError(
                    f"config.model.cvae.{field} is {getattr(self, field)}; give at least {least}"
                    + (", the model divides it into whole parts." if least else ".")
                )
        for field, known in CHOICES.items():
            value = getattr(self, field)
            if value not in known:
                raise UserError(f"config.model.cvae.{field} is {value!r}; choose one of {', '.join(known)}.")
        refuse_octaves("cvae", self.position_octaves)

    @functools.cached_property
    def network(self) -> nn.Module:
        """The Flax module of one step."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(CVAE)}
        del fields["cut_previous_features"]
        fields["prior_kind"] = fields.pop("prior")
        return self.network_class(**fields | {"formulation": ops.resolve_formulation(self.formulation)})

    @property
    def clips_at_once(self) -> int | None:  # type: ignore[override]  # nobody sets it
        """A few clips on a CPU, whose caches they fit; everything on an accelerator."""
        return ops.clips_at_once(self.formulation)

    @property
    def has_learned_prior(self) -> bool:  # type: ignore[override]  # nobody sets it
        """Whether the prior is not N(0, I)."""
        return self.prior == "learned"

    def check(self, n_past: int, cut_feedback: bool) -> None:
        """Refuse a history that reaches back before the context frames, and feedback without a gradient."""
        if not cut_feedback and self.cut_previous_features:
            raise UserError(
                "config.rollout.cut_feedback=False needs config.model.cvae.cut_previous_features=False: the "
                "gradient through time passes through the previous frame's features."
            )
        if self.history >= n_past:
            raise UserError(
                f"config.model.cvae.history is {self.history}; give less than config.n_past={n_past}: the "
                "first predicted frame would have no such past."
            )

    def latent_shape(self, frame_size: tuple[int, int]) -> tuple[int, ...]:
        """Return (height, width, N)."""
        return (*frame_size, self.latent_channels)

    def init(self, seed: int, frame_size: tuple[int, int], label_size: int | None = None) -> Variables:
        """Return the initial variables: the same numbers on every backend.

        Draws the distribution that the network declares: uniform in +-1/sqrt(fan_in); BatchNorm 1 and 0.
        """
        inputs = initial.input_shapes(frame_size, label_size)
        return initial.draw_variables(self.network.clone(axis_name=None), seed, _uniform, *inputs)

    def begin(self, variables: Variables, given: Array, labels: Array, train: bool) -> tuple[dict, dict]:
        """Return the reference (first frame with its label image) and what the decoder remembers.

        In training the carry also holds the features of the latest true frame: they serve as "current" at its
        own step and as "previous" at the next one, where no gradient is needed.
        """
        first = given[:, 0]
        reference = jnp.concatenate([first, labels[:, 0]], axis=-1) if labels.ndim == 5 else first
        carry = {}
        if self.history:
            carry["history"] = jnp.tile(first, (1, 1, 1, self.history))
        if self._carries_features(train):
            carry["features"] = lax.stop_gradient(self._grouped_features(variables, first))
        return {"reference": reference}, carry

    def condition(
        self, variables: Variables, labels: Array, mask: Array, train: bool
    ) -> tuple[Array, PyTree]:
        """Return the label features (s, b, h, w, l); BatchNorm sees the whole batch."""
        if not train:
            features = self._apply("encode_label", variables, labels, mask, False)
            return features, variables["batch_stats"]
        features, updates = self.network.apply(
            variables, labels, mask, True, method="encode_label", mutable=["batch_stats"]
        )
        return features, updates.get("batch_stats", variables["batch_stats"])  # labels may need none

    def observe(
        self, variables: Variables, constants: dict, carry: dict, x: StepInputs, train: bool
    ) -> tuple[StepOutputs, dict, PyTree]:
        """Predict a frame with z from the posterior of the target."""

        def step(_: None, clips: tuple[dict, dict, dict]) -> tuple[None, tuple[StepOutputs, dict]]:
            constants, carry, own = clips
            return None, self._observe(variables, constants, carry, dataclasses.replace(x, **own))

        clips = (constants, carry, x.per_clip())
        _, (outputs, carry) = over_groups(self.clips_at_once, step, None, clips)
        return outputs, carry, variables["batch_stats"]

    def _observe(
        self, variables: Variables, constants: dict, carry: dict, x: StepInputs
    ) -> tuple[StepOutputs, dict]:
        frozen = lax.stop_gradient(variables)
        if "features" in carry and x.previous_is_true.ndim == 0:
            previous = lax.cond(
                x.previous_is_true,
                lambda: carry["features"],
                lambda: self._apply("encode_frame", frozen, lax.stop_gradient(x.previous)),
            )
        elif self.cut_previous_features:
            previous = self._apply("encode_frame", frozen, lax.stop_gradient(x.previous))
        else:
            previous = self._apply("encode_frame", variables, x.previous)
        encoded = x.encoded_target
        current = self._apply("encode_frame", variables, x.target) if encoded is None else encoded
        outputs = self._reconstruct(variables, constants, previous, current, carry.get("history"), x)
        return outputs, self._after(carry, x.previous, current)

    def _reconstruct(
        self,
        variables: Variables,
        constants: dict,
        previous: Array,
        current: Array,
        history: Array | None,
        x: StepInputs,
    ) -> StepOutputs:
        """Return the outputs from the features of the previous and the current frame."""
        posterior = Gaussian(*self._apply("posterior", variables, current, x.conditioning))
        z = posterior.sample(x.noise)
        raw = self._apply("decode", variables, previous, x.conditioning, z, constants["reference"], history)
        return StepOutputs(raw, self._prior(variables, previous, x, posterior.mean), posterior)

    def _prior(self, variables: Variables, previous: Array, x: StepInputs, like: Array) -> Gaussian:
        """Return p(z | ...) from the features of the previous frame; `like` has the shape of z."""
        if self.prior == "standard":
            return standard_normal(like)
        return Gaussian(*self._apply("prior", variables, previous, x.conditioning))

    def encode_targets(self, variables: Variables, targets: Array) -> Array:
        """Return the targets' features (s, b, h, w, f)."""
        features = self._apply("encode_frame", variables, targets.reshape(-1, *targets.shape[2:]))
        return features.reshape(*targets.shape[:2], *features.shape[1:])

    def imagine(
        self, variables: Variables, constants: dict, carry: dict, x: StepInputs
    ) -> tuple[StepOutputs, dict]:
        """Predict a frame with z from the prior."""

        def step(_: None, clips: tuple[dict, dict, dict]) -> tuple[None, tuple[StepOutputs, dict]]:
            constants, carry, own = clips
            here = dataclasses.replace(x, **own)
            previous = self._apply("encode_frame", variables, here.previous)
            prior = self._prior(variables, previous, here, here.noise)
            raw = self._apply(
                "decode",
                variables,
                previous,
                here.conditioning,
                prior.sample(here.noise),
                constants["reference"],
                carry.get("history"),
            )
            return None, (StepOutputs(raw, prior), self._after(carry, here.previous, None))

        clips = (constants, carry, x.per_clip())
        _, (outputs, carry) = over_groups(self.clips_at_once, step, None, clips)
        return outputs, carry

    def teacher_forced_chunk(
        self, variables: Variables, constants: dict, carry: dict, x: StepInputs, train: bool
    ) -> tuple[StepOutputs, dict, PyTree]:
        """Predict several teacher-forced frames as one batch of (steps x clips)."""
        assert x.target is not None, "there are true frames to force"
        steps, clips = x.target.shape[:2]
        fold = lambda a: a.reshape(steps * clips, *a.shape[2:])  # noqa: E731
        unfold = lambda a: a.reshape(steps, clips, *a.shape[1:])  # noqa: E731
        if "features" in carry:
            current = self.encode_targets(variables, x.target)
            before = carry["features"][None]
        else:
            features = self.encode_targets(variables, jnp.concatenate([x.previous[:1], x.target]))
            before, current = features[:1], features[1:]
        previous = jnp.concatenate([before, current[:-1]])
        if self.cut_previous_features:
            previous = lax.stop_gradient(previous)
        history = None
        if self.history:
            older = jnp.split(carry["history"], self.history, axis=-1)[::-1]
            seen = jnp.concatenate([jnp.stack(older), x.previous])
            shifted = [seen[self.history - 1 - k :][:steps] for k in range(self.history)]
            history = fold(jnp.concatenate(shifted, axis=-1))
        reference = fold(jnp.broadcast_to(constants["reference"], (steps, *constants["reference"].shape)))
        folded = dataclasses.replace(x, conditioning=fold(x.conditioning), noise=fold(x.noise))
        outputs = self._reconstruct(
            variables, {"reference": reference}, fold(previous), fold(current), history, folded
        )
        for step in range(steps):
            carry = self._after(carry, x.previous[step], current[step])
        return jax.tree.map(unfold, outputs), carry, variables["batch_stats"]

    def _after(self, carry: dict, previous: Array, current: Array | None) -> dict:
        """Return the carry after a step; `current` are the target's features."""
        after = dict(carry)
        if self.history:
            kept = carry["history"][..., : previous.shape[-1] * (self.history - 1)]
            after["history"] = jnp.concatenate([previous, kept], axis=-1)
        if "features" in carry and current is not None:
            after["features"] = lax.stop_gradient(current)
        return after

    def _carries_features(self, train: bool) -> bool:
        return train and self.cut_previous_features

    def _grouped_features(self, variables: Variables, frame: Array) -> Array:
        encode = lambda _, x: (None, self._apply("encode_frame", variables, x))  # noqa: E731
        return over_groups(self.clips_at_once, encode, None, frame)[1]

    def _apply(self, method: str, variables: Variables, *inputs: Any) -> Any:
        return self.network.apply(variables, *inputs, method=method)


def _uniform(shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw a convolution's kernel and bias from +-1/sqrt(fan_in); BatchNorm is 1 and 0."""
    if "kernel" not in shapes:
        return {name: initial.constant(name, shape) for name, shape in shapes.items()}
    bound = 1.0 / math.sqrt(math.prod(shapes["kernel"][:-1]))
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}
