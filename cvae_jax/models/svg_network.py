"""The networks of SVG (Denton and Fergus, 2018): encoder, decoder, frame predictor, posterior and prior."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from cvae_jax.models import strided
from cvae_jax.models.interface import Variables
from cvae_jax.models.layers import leaky_relu
from cvae_jax.models.svg_layers import SLOPE, GaussianLSTM, Layer, Predictor, State
from cvae_jax.runtime.errors import UserError

# Channels of each layer as multiples of `width`: groups of layers at a half, a quarter ... of the resolution
# (dcgan), or at the full one, a half ... (vgg). The decoder's groups begin at the lowest resolution; its last
# layer, which draws the frame, is not in them.
ENCODERS = {"dcgan": ((1,), (2,), (4,), (8,)), "vgg": ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8))}
DECODERS = {"dcgan": ((4,), (2,), (1,)), "vgg": ((8, 8, 4), (4, 4, 2), (2, 1), (1,))}
BACKBONES = tuple(ENCODERS)
REDUCTION = 16  # the frame's size over that of the smallest map

Maps = tuple[Array, ...]
"""Maps (g, b, h, w, c), each of another size."""

_activate = functools.partial(leaky_relu, slope=SLOPE)


class Encoder(nn.Module):
    """Turns frames into a code in (-1, 1) and the maps that the decoder sees, in the order they are computed.

    In training, BatchNorm takes the statistics of each of the g frames over the batch. smallest: height and
    width of the last map before the code.
    """

    backbone: str
    channels: int
    width: int
    code_size: int
    smallest: tuple[int, int]
    formulation: str
    axis_name: str | None

    def setup(self) -> None:
        common: dict[str, Any] = dict(formulation=self.formulation, axis_name=self.axis_name)
        kind, size = ("downsample4x4", (4, 4)) if self.backbone == "dcgan" else ("conv3x3", (3, 3))
        inputs, groups = self.channels, []
        for parts in ENCODERS[self.backbone]:
            group = []
            for part in parts:
                features = part * self.width
                group.append(Layer(kind, size, inputs, features, _activate, **common))
                inputs = features
            groups.append(group)
        self.groups = groups
        self.code = Layer("to_vector", self.smallest, inputs, self.code_size, jnp.tanh, **common)

    def __call__(
        self, x: Float[Array, "g b h w c"], mask: Float[Array, "g b"], train: bool
    ) -> tuple[Float[Array, "g b f"], Maps]:
        maps = []
        for group in self.groups:
            for layer in group:
                x = layer(x, mask, train)
            maps.append(x)
            if self.backbone == "vgg":
                g, b = x.shape[:2]
                pooled = strided.max_pool2x2(x.reshape(g * b, *x.shape[2:]))
                x = pooled.reshape(g, b, *pooled.shape[1:])
        code = self.code(x, mask, train)
        return code.reshape(*code.shape[:2], -1).astype(jnp.float32), tuple(maps)


class Decoder(nn.Module):
    """Turns a code, and the encoder's maps as `project` returns them, into frames in (0, 1)."""

    backbone: str
    channels: int
    width: int
    code_size: int
    smallest: tuple[int, int]
    formulation: str
    axis_name: str | None

    def setup(self) -> None:
        common: dict[str, Any] = dict(formulation=self.formulation, axis_name=self.axis_name)
        widths = [parts[-1] * self.width for parts in reversed(ENCODERS[self.backbone])]
        inputs = widths[0]
        self.first = Layer("from_vector", self.smallest, self.code_size, inputs, _activate, **common)
        first, kind, size = (
            ("upsample4x4", "upsample4x4", (4, 4))
            if self.backbone == "dcgan"
            else ("enlarged_conv3x3", "conv3x3", (3, 3))
        )
        groups = []
        for number, parts in enumerate(DECODERS[self.backbone]):
            group = []
            for place, part in enumerate(parts):
                skip_inputs = widths[number] if place == 0 else 0
                here = kind if place else first
                features = part * self.width
                group.append(
                    Layer(here, size, inputs, features, _activate, skip_inputs=skip_inputs, **common)
                )
                inputs = features
            groups.append(group)
        self.groups = groups
        skip_inputs = widths[-1] if self.backbone == "dcgan" else 0
        self.last = Layer(
            kind, size, inputs, self.channels, nn.sigmoid, skip_inputs=skip_inputs, normalised=False, **common
        )

    def project(self, maps: Maps) -> Maps:
        """Return what the encoder's maps add to the layers they are joined to, in the decoder's order."""
        layers = [group[0] for group in self.groups] + [self.last]
        joined = [layer for layer in layers if layer.skip_inputs]
        pairs = zip(joined, reversed(maps), strict=True)
        return tuple(layer.project(_input(layer, skip)) for layer, skip in pairs)

    def __call__(
        self, code: Float[Array, "g b f"], projected: Maps, mask: Float[Array, "g b"], train: bool
    ) -> Float[Array, "g b h w c"]:
        added = iter(projected)
        x = code[:, :, None, None].astype(projected[0].dtype)
        x = self.first(x, mask, train)
        for layer in (*(layer for group in self.groups for layer in group), self.last):
            x = layer(_input(layer, x), mask, train, next(added) if layer.skip_inputs else None)
        return x


def smallest_map(frame_size: tuple[int, ...]) -> tuple[int, int]:
    """Return the size of the smallest map; UserError for frames whose sides cannot be halved that often."""
    height, width = frame_size
    if height % REDUCTION or width % REDUCTION:
        raise UserError(
            f"Frames are {height} x {width}; config.model.kind='svg' needs a height and a width that are "
            f"multiples of {REDUCTION}: set config.data.frame_size."
        )
    return height // REDUCTION, width // REDUCTION


def _input(layer: Layer, x: Array) -> Array:
    """Return the input of a layer: in float32 for the one that draws the frame."""
    return x if layer.normalised else x.astype(jnp.float32)


class Network(nn.Module):
    """All networks of a step. Label vectors are appended to the input of the linear layers.

    smallest: the frame's height and width over REDUCTION.
    """

    learned_prior: bool
    backbone: str
    channels: int
    width: int
    code_size: int
    latents: int
    rnn_size: int
    label_features: int
    smallest: tuple[int, int]
    formulation: str
    precision: str
    axis_name: str | None

    def setup(self) -> None:
        common: dict[str, Any] = dict(
            smallest=self.smallest, formulation=self.formulation, axis_name=self.axis_name
        )
        sizes = (self.channels, self.width, self.code_size)
        self.encoder = Encoder(self.backbone, *sizes, **common)
        self.decoder = Decoder(self.backbone, *sizes, **common)
        self.frame_predictor = Predictor(self.rnn_size, self.code_size)
        self.posterior_network = GaussianLSTM(self.rnn_size, self.latents)
        if self.learned_prior:
            self.prior_network = GaussianLSTM(self.rnn_size, self.latents)
        narrow = max(1, self.width // 4)
        self.label_encoder = Encoder("dcgan", 3, narrow, self.label_features, **common)

    def encode(
        self, frame: Float[Array, "g b h w c"], mask: Float[Array, "g b"], train: bool
    ) -> tuple[Float[Array, "g b f"], Maps]:
        """Return the codes of frames in [0, 1] and the encoder's maps."""
        return self.encoder(frame.astype(self.precision), mask, train)

    def encode_label(
        self, label: Float[Array, "g b h w 3"], mask: Float[Array, "g b"], train: bool
    ) -> Float[Array, "g b l"]:
        """Return the codes of label images in [0, 1]."""
        return self.label_encoder(label.astype(self.precision), mask, train)[0]

    def project(self, maps: Maps) -> Maps:
        """Return what the encoder's maps add to the decoder's layers."""
        return self.decoder.project(maps)

    def posterior(self, codes: Float[Array, "s b f"], labels: Float[Array, "s b l"], state: State) -> Any:
        """Return ((mean, logvar), state) of q(z | frames up to the target), for s targets in order."""
        return self.posterior_network(jnp.concatenate([codes, labels], axis=-1), state)

    def prior(self, codes: Float[Array, "s b f"], labels: Float[Array, "s b l"], state: State) -> Any:
        """Return ((mean, logvar), state) of p(z | frames before the target), for s targets in order."""
        return self.prior_network(jnp.concatenate([codes, labels], axis=-1), state)

    def predict(
        self,
        codes: Float[Array, "s b f"],
        z: Float[Array, "s b z"],
        labels: Float[Array, "s b l"],
        states: tuple[State, State],
    ) -> tuple[Float[Array, "s b f"], tuple[State, State]]:
        """Return the codes of the frames to draw, and the predictor's states."""
        return self.frame_predictor(jnp.concatenate([codes, z, labels], axis=-1), states)

    def decode(
        self, code: Float[Array, "g b f"], projected: Maps, mask: Float[Array, "g b"], train: bool
    ) -> Float[Array, "g b h w c"]:
        """Return the frames of codes, in (0, 1)."""
        return self.decoder(code, projected, mask, train)

    def __call__(self, frame: Float[Array, "b h w c"], label: Float[Array, "b ..."]) -> Array:
        """Run every network for one step (used to create the variables)."""
        ones = jnp.ones((1, len(frame)))
        labels = label[None]
        if label.ndim == 4:
            labels = self.encode_label(labels, ones, train=True)
        codes, maps = self.encode(frame[None], ones, train=True)
        state = (jnp.zeros((len(frame), self.rnn_size)),) * 2
        (z, _), _ = self.posterior(codes, labels, state)
        if self.learned_prior:
            self.prior(codes, labels, state)
        predicted, _ = self.predict(codes, z, labels, (state, state))
        return self.decode(predicted, self.project(maps), ones, train=True)


def apply_normalised(
    network: Network, method: str, variables: Variables, train: bool, *inputs: Any
) -> tuple[Any, PyTree]:
    """Return the output of a method whose arguments end in (mask, train), and the new batch statistics."""
    if not train:
        return network.apply(variables, *inputs, False, method=method), variables["batch_stats"]
    outputs, updates = network.apply(variables, *inputs, True, method=method, mutable=["batch_stats"])
    return outputs, updates["batch_stats"]
