"""A model trained against a critic that tells its frames from true ones.

After Everybody Dance Now (Chan et al., ICCV 2019), whose discriminator judges two consecutive frames with
their labels, so that motion has to be true as well, and pix2pixHD (Wang et al., CVPR 2018): patches are
judged, with a least-squares loss (Mao et al., ICCV 2017), and the critic's features of a predicted frame are
to match those of the true one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from cvae_jax.models import initial, ops, strided
from cvae_jax.models.interface import StepInputs, StepOutputs, Variables, VideoModel, init_variables
from cvae_jax.models.layers import Convolution, GroupNorm, halve, leaky_relu
from cvae_jax.runtime.errors import UserError

MODEL, CRITIC = "model", "critic"  # the two parts of the parameters


@dataclasses.dataclass(frozen=True)
class AdversarialOptions:
    """The section `config.adversarial`.

    Attributes:
      weight: of the adversarial loss beside the others; 0 = there is no critic.
      feature_matching: of the distance between the critic's features, relative to `weight`.
      widths: channels of the critic's levels; each halves the resolution.
      learning_rate: of the critic, relative to the model's.
      b1: of the critic's Adam.
    """

    weight: float = 0.0
    feature_matching: float = 10.0
    widths: tuple[int, ...] = (32, 64, 96)
    learning_rate: float = 1.0
    b1: float = 0.5

    def __post_init__(self) -> None:
        for field in ("weight", "feature_matching", "learning_rate"):
            if not getattr(self, field) >= 0:
                raise UserError(
                    f"config.adversarial.{field} is {getattr(self, field)!r}; give a number, 0 or more."
                )
        if not 0 <= np.float32(self.b1) < 1:
            raise UserError(f"config.adversarial.b1 is {self.b1!r}; give a number in [0, 1), in float32.")
        if not self.widths or any(
            isinstance(w, bool) or not isinstance(w, int) or w < 4 for w in self.widths
        ):
            raise UserError(
                f"config.adversarial.widths is {self.widths!r}; give numbers of channels, each at least 4."
            )


class Critic(nn.Module):
    """Two frames and the label of the second to a score for each patch, near 1 where they look true."""

    widths: tuple[int, ...]
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> tuple[Float[Array, "n h2 w2 1"], tuple[Array, ...]]:
        x, features = strided.space_to_depth(_even(x)), []
        for level, width in enumerate(self.widths):
            x = halve(_even(x)) if level else x
            x = Convolution("conv3x3", width, self.formulation, name=f"conv_{level}")(x)
            x = leaky_relu(GroupNorm(name=f"norm_{level}")(x) if level else x, 0.2)
            features.append(x)
        return Convolution("conv3x3", 1, self.formulation, name="out")(x), tuple(features)


@dataclasses.dataclass(frozen=True)
class Adversarial(VideoModel):
    """A model with its critic; what it predicts is what `inner` predicts.

    The parameters are {'model': those of `inner`, 'critic': ...}. In training, steps have a further loss, the
    sum of the model's adversarial loss, in which the critic is held fixed, and the critic's own, in which the
    frame is. Steps from a context frame have none: with `config.data.reference='random'` that is not the
    frame before.
    """

    inner: VideoModel
    options: AdversarialOptions

    @property
    def gradient_crosses_time(self) -> bool:  # type: ignore[override]
        return self.inner.gradient_crosses_time

    @property
    def sees_previous(self) -> bool:  # type: ignore[override]
        return self.inner.sees_previous

    @property
    def mask_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.mask_names

    @property
    def has_learned_prior(self) -> bool:  # type: ignore[override]
        return self.inner.has_learned_prior

    @property
    def clips_at_once(self) -> int | None:  # type: ignore[override]
        return self.inner.clips_at_once

    @property
    def teacher_forced_chunk(self) -> Callable | None:  # type: ignore[override]
        return None if self.inner.teacher_forced_chunk is None else self._teacher_forced_chunk

    def check(self, n_past: int, cut_feedback: bool) -> None:
        self.inner.check(n_past, cut_feedback)

    def latent_shape(self, frame_size: tuple[int, int]) -> tuple[int, ...]:
        return self.inner.latent_shape(frame_size)

    def init(self, seed: int, frame_size: tuple[int, int], label_size: int | None = None) -> Variables:
        variables = init_variables(self.inner, seed, frame_size, label_size)
        channels = 6 + (3 if label_size is None else 0)
        seen, _ = initial.input_shapes(frame_size, label_size, channels)
        critic = initial.draw_variables(self._critic, seed + 1, initial.normal_fan_in, seen)
        return variables | {"params": {MODEL: variables["params"], CRITIC: critic["params"]}}

    def begin(self, variables: Variables, given: Array, labels: Array, train: bool) -> tuple[PyTree, PyTree]:
        return self.inner.begin(_inner(variables), given, labels, train)

    def condition(
        self, variables: Variables, labels: Array, mask: Array, train: bool
    ) -> tuple[PyTree, PyTree]:
        return self.inner.condition(_inner(variables), labels, mask, train)

    def observe(
        self, variables: Variables, constants: PyTree, carry: PyTree, x: StepInputs, train: bool
    ) -> tuple[StepOutputs, PyTree, PyTree]:
        outputs, carry, stats = self.inner.observe(_inner(variables), constants, carry, x, train)
        return self._judged(variables, outputs, x, train), carry, stats

    def _teacher_forced_chunk(
        self, variables: Variables, constants: PyTree, carry: PyTree, x: StepInputs, train: bool
    ) -> tuple[StepOutputs, PyTree, PyTree]:
        assert self.inner.teacher_forced_chunk is not None
        outputs, carry, stats = self.inner.teacher_forced_chunk(_inner(variables), constants, carry, x, train)
        return self._judged(variables, outputs, x, train), carry, stats

    def imagine(
        self, variables: Variables, constants: PyTree, carry: PyTree, x: StepInputs
    ) -> tuple[StepOutputs, PyTree]:
        return self.inner.imagine(_inner(variables), constants, carry, x)

    def _judged(self, variables: Variables, outputs: StepOutputs, x: StepInputs, train: bool) -> StepOutputs:
        """Return the outputs with the further loss of each frame, in training."""
        if not train:
            return outputs
        assert x.target is not None, "there are true frames to learn from"
        leading = outputs.raw.shape[:-3]
        images = lambda a: a.reshape(-1, *a.shape[-3:])  # noqa: E731
        previous, frame, target = (images(a) for a in (x.previous, outputs.frame, x.target))
        label = images(x.label) if x.label.ndim == x.target.ndim else None
        critic = variables["params"][CRITIC]
        of_model, of_critic = self._losses(critic, previous, frame, target, label)
        total = (self.options.weight * of_model + of_critic).reshape(leading)
        counts = ~x.previous_is_given
        return outputs._replace(extra=jnp.where(counts.reshape(*counts.shape, 1), total, 0.0))

    def _losses(
        self, critic: PyTree, previous: Array, frame: Array, target: Array, label: Array | None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """Return (the model's loss, the critic's loss) of each frame."""

        def judge(params: PyTree, shown: Array) -> Any:
            images = [lax.stop_gradient(previous), shown, *([] if label is None else [label])]
            return self._critic.apply({"params": params}, jnp.concatenate(images, axis=-1))

        mean = lambda a: jnp.mean(a, axis=(1, 2, 3))  # noqa: E731
        fixed = lax.stop_gradient(critic)
        score, features = judge(fixed, frame)
        true, wanted = judge(critic, target)
        false, _ = judge(critic, lax.stop_gradient(frame))
        distance = sum(mean(jnp.abs(a - lax.stop_gradient(b))) for a, b in zip(features, wanted, strict=True))
        of_model = mean((score - 1) ** 2) + self.options.feature_matching * distance / len(features)
        return of_model, 0.5 * (mean((true - 1) ** 2) + mean(false**2))

    @functools.cached_property
    def _critic(self) -> Critic:
        return Critic(self.options.widths, ops.resolve_formulation("auto"))


def _inner(variables: Variables) -> Variables:
    return {**variables, "params": variables["params"][MODEL]}


def _even(x: Array) -> Array:
    """Return maps with their last row and column repeated where their sides are odd."""
    height, width = x.shape[1:3]
    return jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
