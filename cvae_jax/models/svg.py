"""SVG-FP and SVG-LP (Denton and Fergus, ICML 2018) behind the interface of video models.

A step encodes the previous frame, draws z from the posterior of the target (`observe`) or from the prior
(`imagine`), predicts the target's code with two LSTM cells and decodes it. The decoder also sees the skips:
the encoder's maps of given frames. The carry holds the decoder's projections of the skips, not the skips
themselves; they are computed only when the skips change.
"""

from __future__ import annotations

import dataclasses
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
    over_steps,
    standard_normal,
)
from cvae_jax.models.svg_layers import initial_values
from cvae_jax.models.svg_network import BACKBONES, Maps, Network, apply_normalised, smallest_map
from cvae_jax.runtime.errors import UserError

PRIORS = ("learned", "fixed")
SKIPS = ("last_given", "original", "running_mean")
CHOICES = {"prior": PRIORS, "backbone": BACKBONES, "skip": SKIPS, "formulation": ops.FORMULATIONS}
LEAST = {"channels": 1, "width": 1, "code_size": 1, "latents": 1, "rnn_size": 1, "label_features": 0}


@dataclasses.dataclass(frozen=True)
class SVG(VideoModel):
    """SVG with a learned or a fixed prior; the section `config.model.svg`. z is a vector.

    In training, BatchNorm takes the statistics of each encoded or decoded frame over the whole batch. Each
    frame is encoded once, so its statistics enter the running values once (the published program encodes
    frames twice). Subtracting the batch's mean cancels the biases before BatchNorm; they get no gradient.
    """

    prior: str = "learned"  # learned (SVG-LP), or fixed: N(0, I) (SVG-FP)
    backbone: str = "dcgan"  # dcgan (Moving MNIST), or vgg (KTH, BAIR)
    # Of the frames that the networks read and draw. 1: they read the mean over the frame's channels, and what
    # they draw is repeated for each (grey video is stored as RGB); otherwise as many as the frame has.
    channels: int = 3
    width: int = 64  # channels of the encoder's first layers; those after them have multiples of it
    code_size: int = 128  # numbers in the code of a frame (g)
    latents: int = 10  # numbers in z
    rnn_size: int = 256  # width of the LSTM cells (r)
    # Which frame's maps the decoder sees: last_given, of the previous frame while that is given and after it
    # of the last given frame; original (the published program), of the frame before the last given one;
    # running_mean, the mean over the given frames so far (SLAMP, Akan et al., 2021).
    skip: str = "last_given"
    label_features: int = 32  # numbers in the code of a label image; 0 = labels are ignored, also vectors
    formulation: str = "auto"  # auto (by backend), plain or cpu (see `cvae_jax.models.strided`)
    precision: str = "float32"  # of the maps, from config.precision
    axis_name: str | None = None

    gradient_crosses_time = True

    def __post_init__(self) -> None:
        for field, least in LEAST.items():
            if getattr(self, field) < least:
                raise UserError(f"config.model.svg.{field} is {getattr(self, field)}; give at least {least}.")
        for field, known in CHOICES.items():
            if getattr(self, field) not in known:
                raise UserError(
                    f"config.model.svg.{field} is {getattr(self, field)!r}; choose one of {', '.join(known)}."
                )

    @property
    def has_learned_prior(self) -> bool:  # type: ignore[override]  # nobody sets it
        """Whether this is SVG-LP."""
        return self.prior == "learned"

    def check(self, n_past: int, cut_feedback: bool) -> None:
        """Refuse the original skips with a single given frame: no frame comes before it."""
        if self.skip == "original" and n_past < 2:
            raise UserError(
                f"config.model.svg.skip='original' keeps the frame before the last given one; "
                f"config.n_past is {n_past}: give at least 2, or another skip."
            )

    def latent_shape(self, frame_size: tuple[int, int]) -> tuple[int, ...]:
        """Return (latents,)."""
        smallest_map(frame_size)
        return (self.latents,)

    def init(self, seed: int, frame_size: tuple[int, int], label_size: int | None = None) -> Variables:
        """Return the published initial values: the same numbers on every backend.

        Weights are N(0, 0.02) and biases 0, BatchNorm's weights N(1, 0.02) and LSTM cells uniform in
        +-1/sqrt(rnn_size).
        """
        if not self.label_features:
            label_size = 0
        network = self._network(frame_size).clone(axis_name=None)
        inputs = initial.input_shapes(frame_size, label_size, self.channels)
        return initial.draw_variables(network, seed, initial_values, *inputs)

    def begin(self, variables: Variables, given: Array, labels: Array, train: bool) -> tuple[dict, dict]:
        """Return the number of given frames, and states of zeros; step 1 encodes the first frame.

        (It is encoded there because BatchNorm must leave out padding and update its running values.)
        """
        batch, n_past, _, _, channels = given.shape
        if self.channels not in (1, channels):
            raise UserError(
                f"config.model.svg.channels is {self.channels} but frames have {channels}: give "
                f"{channels}, or 1 for their mean."
            )

        def first_skips(frame: Array) -> Maps:
            (_, maps), _ = self._encode(variables, frame, jnp.ones((1, batch)), train=False)
            return _only(self._project(variables, maps, frame.shape[2:4]))

        skips = jax.eval_shape(first_skips, given[None, :, 0])
        state = lambda: (jnp.zeros((batch, self.rnn_size)),) * 2  # noqa: E731
        carry: dict[str, PyTree] = {
            "code": jnp.zeros((batch, self.code_size)),
            "skips": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), skips),
            "predictor": (state(), state()),
            "posterior": state(),
        }
        if self.prior == "learned":
            carry["prior"] = state()
        return {"n_past": jnp.full(batch, n_past, jnp.float32)}, carry

    def condition(
        self, variables: Variables, labels: Array, mask: Array, train: bool
    ) -> tuple[Array, PyTree]:
        """Return the codes (s, b, l) of label images, or vectors as they are."""
        if not self.label_features:
            return jnp.zeros((*labels.shape[:2], 0)), variables["batch_stats"]
        if labels.ndim == 3:
            return labels, variables["batch_stats"]
        network = self._network(labels.shape[2:4])
        return apply_normalised(network, "encode_label", variables, train, labels, mask)

    def observe(
        self, variables: Variables, constants: dict, carry: dict, x: StepInputs, train: bool
    ) -> tuple[StepOutputs, dict, PyTree]:
        """Predict a frame with z from the posterior; also advance the states of prior and predictor."""
        outputs, carry, stats = self.teacher_forced_chunk(variables, constants, carry, _one(x), train)
        return _only(outputs), carry, stats

    def teacher_forced_chunk(
        self, variables: Variables, constants: dict, carry: dict, x: StepInputs, train: bool
    ) -> tuple[StepOutputs, dict, PyTree]:
        """Predict the frames of several steps, of which only the first may see a generated frame.

        Their frames are encoded and drawn as one batch, in which each step has its own batch statistics; the
        LSTM cells go from step to step.
        """
        assert x.target is not None, "the posterior sees the target"
        code, skips, stats = self._previous(variables, carry, _only(x), train)
        here = {**variables, "batch_stats": stats}
        (codes, maps), stats = self._encode(here, x.target, x.mask, train)
        here = {**variables, "batch_stats": stats}
        posterior, state = self._apply("posterior", variables, codes, x, carry["posterior"])
        before = jnp.concatenate([code[None], codes[:-1]])
        prior, carry = self._prior(variables, carry, before, x)
        z = Gaussian(*posterior).sample(x.noise)
        of_steps, skips = self._skips(variables, constants, skips, maps, x)
        raw, predictor, stats = self._draw(here, carry, before, z, of_steps, x, train)
        carry |= {"code": codes[-1], "skips": skips, "posterior": state, "predictor": predictor}
        return StepOutputs(raw, prior, Gaussian(*posterior)), carry, stats

    def imagine(
        self, variables: Variables, constants: dict, carry: dict, x: StepInputs
    ) -> tuple[StepOutputs, dict]:
        """Predict a frame with z from the prior; the posterior's state stays as it is."""
        code, skips, _ = self._previous(variables, carry, x, train=False)
        x, code, of_step = _one((x, code, skips))
        prior, carry = self._prior(variables, carry, code, x)
        raw, predictor, _ = self._draw(variables, carry, code, prior.sample(x.noise), of_step, x, train=False)
        return _only(StepOutputs(raw, prior)), carry | {"skips": skips, "predictor": predictor}

    def _previous(
        self, variables: Variables, carry: dict, x: StepInputs, train: bool
    ) -> tuple[Array, Maps, PyTree]:
        """Return the code of the previous frame, the skips, and the batch statistics.

        The code of a true frame comes from the carry; it was computed when that frame was the target. Encoded
        here are generated frames and, in step 1, the first frame, which also gives the first skips. Where the
        choice is per clip and any clip has a generated frame, the whole batch is encoded as it is.
        """
        first = x.t == 1
        generated = ~x.previous_is_true
        any_generated = generated
        if generated.ndim:
            any_generated = jnp.any(generated & (x.mask > 0))
            if self.axis_name is not None:
                any_generated = lax.pmax(any_generated, self.axis_name)

        def encode() -> tuple[Array, Maps, PyTree]:
            (codes, maps), stats = self._encode(variables, x.previous[None], x.mask[None], train)
            project = lambda: _only(self._project(variables, maps, x.previous.shape[1:3]))  # noqa: E731
            skips, code = lax.cond(first, project, lambda: carry["skips"]), codes[0]
            if generated.ndim:
                code = jnp.where((generated | first)[:, None], code, carry["code"])
            return code, skips, stats

        kept = carry["code"], carry["skips"], variables["batch_stats"]
        return lax.cond(first | any_generated, encode, lambda: kept)

    def _skips(
        self, variables: Variables, constants: dict, skips: Maps, maps: Maps, x: StepInputs
    ) -> tuple[Maps, Maps]:
        """Return the skips of each step and those for the next step; `maps` are those of the targets."""
        last = constants["n_past"][0] - (2 if self.skip == "original" else 1)  # frame that is a skip

        def after(skips: Maps, step: tuple[Array, Maps]) -> tuple[Maps, Maps]:
            t, of_target = step

            def refresh() -> Maps:
                new = _only(self._project(variables, _one(of_target), x.previous.shape[2:4]))
                if self.skip != "running_mean":
                    return new
                share = 1 / (t + 1)
                mean = lambda old, one: old + (one - old) * share.astype(one.dtype)  # noqa: E731
                return jax.tree.map(mean, skips, new)

            return lax.cond(t <= last, refresh, lambda: skips), skips

        skips, of_steps = over_steps(after, skips, (x.t, maps))
        return of_steps, skips

    def _encode(
        self, variables: Variables, frames: Array, mask: Array, train: bool
    ) -> tuple[tuple[Array, Maps], PyTree]:
        """Return ((codes, maps), batch statistics) of frames (s, b, h, w, c)."""
        if self.channels == 1:
            frames = jnp.mean(frames, axis=-1, keepdims=True)
        return apply_normalised(self._network(frames.shape[2:4]), "encode", variables, train, frames, mask)

    def _project(self, variables: Variables, maps: Maps, frame_size: tuple[int, ...]) -> Maps:
        """Return the decoder's projections of the encoder's maps (s, b, h, w, c)."""
        projected: Any = self._network(frame_size).apply(variables, maps, method="project")
        return projected

    def _prior(self, variables: Variables, carry: dict, codes: Array, x: StepInputs) -> tuple[Gaussian, dict]:
        """Return p(z) and the carry with the prior's next state."""
        if self.prior == "fixed":
            return standard_normal(x.noise), dict(carry)
        prior, state = self._apply("prior", variables, codes, x, carry["prior"])
        return Gaussian(*prior), carry | {"prior": state}

    def _draw(
        self,
        variables: Variables,
        carry: dict,
        codes: Array,
        z: Array,
        skips: Maps,
        x: StepInputs,
        train: bool,
    ) -> tuple[Array, PyTree, PyTree]:
        """Return the frames (s, b, h, w, c), the predictor's states and the batch statistics."""
        network = self._network(x.previous.shape[2:4])
        predicted, states = network.apply(
            variables, codes, z, x.conditioning, carry["predictor"], method="predict"
        )
        frames, stats = apply_normalised(network, "decode", variables, train, predicted, skips, x.mask)
        channels = x.previous.shape[-1]
        return jnp.repeat(frames, channels // self.channels, axis=-1), states, stats

    def _apply(self, method: str, variables: Variables, codes: Array, x: StepInputs, state: Any) -> Any:
        network = self._network(x.previous.shape[2:4])
        return network.apply(variables, codes, x.conditioning, state, method=method)

    def _network(self, frame_size: tuple[int, ...]) -> Network:
        """Return the Flax module for frames of (height, width)."""
        names = {field.name for field in dataclasses.fields(Network)} & set(vars(self))
        return Network(
            **{name: getattr(self, name) for name in names - {"formulation"}},
            learned_prior=self.prior == "learned",
            smallest=smallest_map(frame_size),
            formulation=ops.resolve_formulation(self.formulation),
        )


def _one(tree: PyTree) -> PyTree:
    """Return arrays with a leading axis of one step."""
    return jax.tree.map(lambda leaf: leaf[None], tree)


def _only(tree: PyTree) -> PyTree:
    """Return the first step of arrays with a leading axis of steps."""
    return jax.tree.map(lambda leaf: leaf[0], tree)
