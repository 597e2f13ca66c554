"""The multiscale CVAE: a U-Net from a label and the context frames to a frame, composed by soft masks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from cvae_jax.models import initial, ops
from cvae_jax.models.interface import (
    Gaussian,
    StepInputs,
    StepOutputs,
    Variables,
    VideoModel,
    standard_normal,
)
from cvae_jax.models.layers import refuse_octaves
from cvae_jax.models.multiscale_network import Maps, Network
from cvae_jax.runtime.errors import UserError

LEAST = {"blocks": 1, "latent_channels": 0, "feedback": 0, "position_octaves": 1}
PATCHES = (1, 2)


@dataclasses.dataclass(frozen=True)
class Multiscale(VideoModel):
    """A strided CVAE with skip connections; the section `config.model.multiscale`.

    The context frames with their labels are encoded once per clip; of several, the mean of their maps is
    used. A step encodes its label, the place of each pixel and, with `feedback`, the previous frames. Each
    pixel of the output is a weighted mean of that pixel in the last context frame, in the previous frame
    (with `feedback`) and in a drawn image; the weights come from a softmax (a composition by masks as in
    SAVP, Lee et al., 2018). The latent is a map at the smallest resolution. Its learned prior sees all that
    the decoder sees.

    Frames of any size are padded to multiples of `smallest_block` pixels.
    """

    # Channels of each level. Each level after the first has half the resolution of the one before it.
    widths: tuple[int, ...] = (32, 48, 64)
    patch: int = 2  # the first level works on blocks of 2 x 2 pixels, or 1: on pixels
    blocks: int = 1  # residual blocks at each level, on the way down and on the way up
    latent_channels: int = 4  # of the z map, 0 = no latent
    # Share of the training frames that are predicted from the prior's mean instead of the posterior's z. The
    # rest alone would teach the decoder nothing about that mean, and it would be a worse prediction than that
    # of a model without a latent.
    prior_share: float = 0.5
    # Previous frames that a step sees, as the rollout chose them. 0: frames do not depend on each other, so
    # that errors cannot add up and all steps of a clip are computed as one batch.
    feedback: int = 0
    position_octaves: int = 4  # of the sines and cosines that tell each pixel's place, at least 1
    formulation: str = "auto"  # auto (by backend), plain or cpu (see `cvae_jax.models.ops`)
    precision: str = "float32"  # of the maps, from config.precision
    axis_name: str | None = None

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or any(
            isinstance(w, bool) or not isinstance(w, int) or w < 4 for w in self.widths
        ):
            raise UserError(
                f"config.model.multiscale.widths is {self.widths!r}; give at least two numbers of channels, "
                "each at least 4."
            )
        for field, least in LEAST.items():
            if getattr(self, field) < least:
                raise UserError(
                    f"config.model.multiscale.{field} is {getattr(self, field)}; give at least {least}."
                )
        if not 0 <= self.prior_share < 1:
            raise UserError(
                f"config.model.multiscale.prior_share is {self.prior_share}; give a number in [0, 1)."
            )
        for field, known in (("patch", PATCHES), ("formulation", ops.FORMULATIONS)):
            if getattr(self, field) not in known:
                raise UserError(
                    f"config.model.multiscale.{field} is {getattr(self, field)!r}; choose one of "
                    f"{', '.join(map(str, known))}."
                )
        refuse_octaves("multiscale", self.position_octaves)

    @property
    def has_learned_prior(self) -> bool:  # type: ignore[override]  # nobody sets it
        """Whether there is a latent."""
        return self.latent_channels > 0

    @property
    def sees_previous(self) -> bool:  # type: ignore[override]  # nobody sets it
        """Whether there is feedback."""
        return self.feedback > 0

    @property
    def mask_names(self) -> tuple[str, ...]:  # type: ignore[override]  # nobody sets it
        """The images that pixels are copied from."""
        return ("context", "previous") if self.feedback else ("context",)

    @property
    def smallest_block(self) -> int:
        """The side in pixels of what one place of the smallest map stands for."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def check(self, n_past: int, cut_feedback: bool) -> None:
        """Refuse feedback that reaches back before the context frames."""
        if self.feedback > n_past:
            raise UserError(
                f"config.model.multiscale.feedback is {self.feedback}, more than config.n_past={n_past}: "
                "give no more than the context has frames."
            )

    def latent_shape(self, frame_size: tuple[int, int]) -> tuple[int, ...]:
        """Return (h, w, latent_channels); without a latent (1,), a number that nothing depends on."""
        if not self.latent_channels:
            return (1,)
        height, width = (-(-side // self.smallest_block) for side in frame_size)
        return height, width, self.latent_channels

    def init(self, seed: int, frame_size: tuple[int, int], label_size: int | None = None) -> Variables:
        """Return the initial values: kernels N(0, 1 / fan_in), cut at two standard deviations; biases 0."""
        below, beside = self._padding(frame_size)
        inputs = initial.input_shapes((frame_size[0] + below, frame_size[1] + beside), label_size)
        return initial.draw_variables(self._network, seed, initial.normal_fan_in, *inputs)

    def begin(self, variables: Variables, given: Array, labels: Array, train: bool) -> tuple[dict, dict]:
        """Return the context's maps and last frame; the carry holds the frames before the previous one."""
        clips, n_past = given.shape[:2]
        fold = lambda video: self._padded(video.reshape(clips * n_past, *video.shape[2:]))  # noqa: E731
        images = fold(labels) if labels.ndim == given.ndim else None
        maps = self._apply("encode_context", variables, fold(given), images)
        mean = lambda x: jnp.mean(x.reshape(clips, n_past, *x.shape[1:]), axis=1)  # noqa: E731
        constants = {"maps": jax.tree.map(mean, maps), "frame": self._padded(given[:, -1])}
        # The first frame stands for those before it.
        older = jnp.tile(given[:, 0], (1, 1, 1, self.feedback - 1)) if self.feedback > 1 else None
        return constants, {} if older is None else {"older": older}

    def observe(
        self, variables: Variables, constants: dict, carry: dict, x: StepInputs, train: bool
    ) -> tuple[StepOutputs, dict, PyTree]:
        """Predict a frame with z from the posterior."""
        one = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)  # noqa: E731
        outputs, carry, stats = self.teacher_forced_chunk(variables, constants, carry, one(x), train)
        return jax.tree.map(lambda leaf: leaf[0], outputs), carry, stats

    def teacher_forced_chunk(
        self, variables: Variables, constants: dict, carry: dict, x: StepInputs, train: bool
    ) -> tuple[StepOutputs, dict, PyTree]:
        """Predict the frames of several steps as one batch of (steps x clips)."""
        assert x.target is not None, "the posterior sees the target"
        steps, clips = x.target.shape[:2]
        previous, carry = self._with_older(carry, x.previous)
        fold = lambda a: a.reshape(steps * clips, *a.shape[2:])  # noqa: E731
        repeat = lambda a: fold(jnp.broadcast_to(a, (steps, *a.shape)))  # noqa: E731
        label, target, noise = fold(x.conditioning), fold(x.target), fold(x.noise)
        previous = None if previous is None else fold(previous)
        size = x.target.shape[2:4]
        constants = jax.tree.map(repeat, constants)
        outputs = self._predict(variables, constants, label, previous, noise, size, target, train)
        unfold = lambda a: a.reshape(steps, clips, *a.shape[1:])  # noqa: E731
        return jax.tree.map(unfold, outputs), carry, variables["batch_stats"]

    def imagine(
        self, variables: Variables, constants: dict, carry: dict, x: StepInputs
    ) -> tuple[StepOutputs, dict]:
        """Predict a frame with z from the prior."""
        previous, carry = self._with_older(carry, x.previous[None])
        previous = None if previous is None else previous[0]
        return self._predict(
            variables, constants, x.conditioning, previous, x.noise, x.previous.shape[1:3]
        ), carry

    def _predict(
        self,
        variables: Variables,
        constants: dict,
        label: Array,
        previous: Array | None,
        noise: Array,
        frame_size: tuple[int, ...],
        target: Array | None = None,
        train: bool = False,
    ) -> StepOutputs:
        """Predict n frames; z comes from the posterior where their targets are given.

        In training a share of the frames has z = prior.mean; their posterior is the prior, so their KL is 0.
        """
        previous = None if previous is None else self._padded(previous)
        label = self._padded(label) if label.ndim == 4 else label
        maps: Maps = self._apply("encode", variables, label, previous, constants["maps"])
        prior = standard_normal(noise)
        posterior = prior if target is not None else None
        z = None
        if self.latent_channels:
            prior = Gaussian(*self._apply("prior", variables, maps[-1]))
            if target is not None:
                posterior = Gaussian(*self._apply("posterior", variables, maps[-1], self._padded(target)))
            z = (posterior or prior).sample(noise)
            if posterior is not None and train and self.prior_share:
                from_prior = (_uniform(noise) < self.prior_share)[:, None, None, None]
                z = jnp.where(from_prior, prior.mean, z)
                posterior = Gaussian(
                    *(jnp.where(from_prior, p, q) for p, q in zip(prior, posterior, strict=True))
                )
        sources = [constants["frame"]] + ([] if previous is None else [previous[..., :3]])
        frame, shares = self._apply("decode", variables, maps, z, jnp.stack(sources))
        crop = lambda image: image[:, : frame_size[0], : frame_size[1]]  # noqa: E731
        masks = {name: crop(shares[..., k : k + 1]) for k, name in enumerate(self.mask_names)}
        return StepOutputs(crop(frame), prior, posterior, masks)

    def _with_older(self, carry: dict, previous: Array) -> tuple[Array | None, dict]:
        """Return the earlier frames that each step sees, newest first, and the next carry.

        previous: the frame before each step (s, b, h, w, 3). Returned: (s, b, h, w, 3 * feedback).
        """
        if self.feedback < 2:
            return (previous if self.feedback else None), carry
        older = jnp.split(carry["older"], self.feedback - 1, axis=-1)[::-1]
        frames = jnp.concatenate([jnp.stack(older), previous])
        steps, last = len(previous), self.feedback - 1
        seen = jnp.concatenate([frames[last - k :][:steps] for k in range(self.feedback)], axis=-1)
        return seen, {"older": seen[-1][..., : 3 * last]}

    def _padding(self, frame_size: tuple[int, ...]) -> tuple[int, int]:
        height, width = frame_size
        return -height % self.smallest_block, -width % self.smallest_block

    def _padded(self, images: Array) -> Array:
        """Return images (n, h, w, c) with their last rows and columns repeated up to a whole block."""
        for axis, more in zip((1, 2), self._padding(images.shape[1:3]), strict=True):
            if more:
                last = lax.slice_in_dim(images, images.shape[axis] - 1, None, axis=axis)
                images = jnp.concatenate([images, jnp.repeat(last, more, axis=axis)], axis=axis)
        return images

    @functools.cached_property
    def _network(self) -> Network:
        names = {field.name for field in dataclasses.fields(Network)} & set(vars(self))
        fields = {name: getattr(self, name) for name in names}
        return Network(**fields | {"formulation": ops.resolve_formulation(self.formulation)})

    def _apply(self, method: str, variables: Variables, *inputs: Any) -> Any:
        return self._network.apply(variables, *inputs, method=method)


def _uniform(noise: Array) -> Array:
    """Return one number in [0, 1) for each frame, from the lowest bits of its standard normal noise (n, ...).

    The lowest eight bits say next to nothing about a number's value: the two draws are independent.
    """
    first = noise.reshape(len(noise), -1)[:, 0]
    bits = lax.bitcast_convert_type(first, jnp.uint32) & 0xFF
    return bits.astype(jnp.float32) / 256
