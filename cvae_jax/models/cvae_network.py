"""The networks of the pose-conditioned CVAE: frame and label encoders, posterior, decoder.

The layers follow the reference program child by child; `layer_<i>` carries the PyTorch index i, so
`cvae_jax.models.cvae_torch` can map checkpoints by name.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cvae_jax.models.layers import (
    BatchNorm,
    Convolution,
    DepthConvBlock,
    ResidualBlock,
    leaky_relu,
    positions,
)


class FrameEncoder(nn.Module):
    """Frames to F features (PyTorch: `frame_transformation`)."""

    features: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w f"]:
        for i, divisor in enumerate((8, 4, 2)):
            width = self.features // divisor
            x = ResidualBlock(width, self.formulation, name=f"layer_{2 * i}")(x)
            x = DepthConvBlock(width, self.formulation, name=f"layer_{2 * i + 1}")(x)
        return Convolution("conv3x3", self.features, self.formulation, name="layer_6")(x)


class LabelEncoder(nn.Module):
    """Label images to L features (PyTorch: `label_transformation`); g time steps of b clips."""

    features: int
    formulation: str
    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "g b h w c"], mask: Float[Array, "g b"], train: bool
    ) -> Float[Array, "g b h w l"]:
        g, b = x.shape[:2]
        x = jnp.pad(x, ((0, 0), (0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
        x = x.reshape(g * b, *x.shape[2:])
        x = Convolution("conv7x7_valid", self.features // 2, self.formulation, name="layer_1")(x)
        x = BatchNorm(self.axis_name, name="layer_2")(x.reshape(g, b, *x.shape[1:]), mask, train)
        x = x.reshape(g * b, *x.shape[2:])
        x = ResidualBlock(self.features, self.formulation, name="layer_4")(x)
        return x.reshape(g, b, *x.shape[1:])


class VectorEncoder(nn.Module):
    """Labels that are vectors, of about unit scale, to L features, the same at every pixel.

    Vectors without entries (no labels) become no features.
    """

    features: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "g b a"]) -> Float[Array, "g b 1 1 l"]:
        g, b, entries = x.shape
        if not entries:
            return x.reshape(g, b, 1, 1, 0)
        x = x.reshape(g * b, 1, 1, entries)
        x = Convolution("dense", self.features, self.formulation, name="layer_0")(x)
        x = leaky_relu(x, 0.01)
        x = Convolution("dense", self.features, self.formulation, name="layer_2")(x)
        return x.reshape(g, b, 1, 1, self.features)


class GaussianPredictor(nn.Module):
    """Frame and label features to the posterior's (mu, logvar) maps of N channels each."""

    latents: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> tuple[Float[Array, "n h w z"], Float[Array, "n h w z"]]:
        n = self.latents
        x = ResidualBlock(n // 4, self.formulation, name="layer_0")(x)
        x = DepthConvBlock(n // 4, self.formulation, name="layer_1")(x)
        x = ResidualBlock(n // 2, self.formulation, name="layer_2")(x)
        x = DepthConvBlock(n // 2, self.formulation, name="layer_3")(x)
        x = ResidualBlock(n, self.formulation, name="layer_4")(x)
        x = Convolution("dense", 2 * n, self.formulation, name="layer_6")(x.astype(jnp.float32))
        mu, logvar = jnp.split(x, 2, axis=-1)
        return mu, logvar


class DecoderFusion(nn.Module):
    """Previous-frame features, label features and z to D features."""

    features: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w m"]) -> Float[Array, "n h w d"]:
        m, d = x.shape[-1], self.features
        x = DepthConvBlock(m, self.formulation, name="layer_0")(x)
        x = ResidualBlock(m // 4, self.formulation, name="layer_1")(x)
        x = DepthConvBlock(m // 2, self.formulation, name="layer_2")(x)
        x = ResidualBlock(m // 2, self.formulation, name="layer_3")(x)
        x = DepthConvBlock(d // 2, self.formulation, name="layer_4")(x)
        return Convolution("dense", d, self.formulation, name="layer_5")(x)


class Generator(nn.Module):
    """D features to `channels` maps, without an output activation."""

    channels: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w d"]) -> Float[Array, "n h w c"]:
        d = x.shape[-1]
        x = DepthConvBlock(d, self.formulation, name="layer_0")(x)
        for i, divisor in enumerate((2, 4, 8)):
            x = ResidualBlock(d // divisor, self.formulation, name=f"layer_{2 * i + 1}")(x)
            x = DepthConvBlock(d // divisor, self.formulation, name=f"layer_{2 * i + 2}")(x)
        last = Convolution("dense", self.channels, self.formulation, name="layer_7")
        return last(x.astype(jnp.float32))


class Network(nn.Module):
    """The networks of one step: frame and label encoders, posterior, prior and decoder; see `CVAE`."""

    frame_features: int
    label_features: int
    latent_channels: int
    decoder_features: int
    output: str
    position_octaves: int
    history: int
    prior_kind: str
    formulation: str
    precision: str
    axis_name: str | None

    def setup(self) -> None:
        form = self.formulation
        self.frame_encoder = FrameEncoder(self.frame_features, form)
        self.label_encoder = LabelEncoder(self.label_features, form, self.axis_name)
        self.vector_encoder = VectorEncoder(self.label_features, form)
        self.gaussian_predictor = GaussianPredictor(self.latent_channels, form)
        self.prior_predictor = GaussianPredictor(self.latent_channels, form)
        self.decoder_fusion = DecoderFusion(self.decoder_features, form)
        self.generator = Generator(3, form)

    def encode_frame(self, frame: Float[Array, "n h w 3"]) -> Float[Array, "n h w f"]:
        """Encode frames in [0, 1]; the same encoder serves the previous and the current frame."""
        return self.frame_encoder(self._features(frame))

    def encode_label(
        self, label: Float[Array, "g b ..."], mask: Float[Array, "g b"], train: bool
    ) -> Float[Array, "g b h w l"]:
        """Encode the labels of g time steps; `mask` is 1 for real clips, 0 for padding.

        Images (g, b, h, w, 3) in [0, 1], or vectors (g, b, a), whose features have h = w = 1.
        """
        if label.ndim == 3:
            return self.vector_encoder(self._features(label))
        return self.label_encoder(self._features(label), mask, train)

    def posterior(
        self, current_features: Float[Array, "n h w f"], label_features: Float[Array, "n hl wl l"]
    ) -> tuple[Float[Array, "n h w z"], Float[Array, "n h w z"]]:
        """Return (mu, logvar) of q(z | current frame, label)."""
        return self.gaussian_predictor(self._joined(current_features, label_features))

    def prior(
        self, previous_features: Float[Array, "n h w f"], label_features: Float[Array, "n hl wl l"]
    ) -> tuple[Float[Array, "n h w z"], Float[Array, "n h w z"]]:
        """Return (mu, logvar) of the learned p(z | previous frame, label)."""
        return self.prior_predictor(self._joined(previous_features, label_features))

    def decode(
        self,
        previous_features: Float[Array, "n h w f"],
        label_features: Float[Array, "n hl wl l"],
        z: Float[Array, "n h w z"],
        reference: Float[Array, "n h w r"],
        history: Float[Array, "n h w k"] | None = None,
    ) -> Float[Array, "n h w 3"]:
        """Return the predicted frame, not clamped.

        `reference` holds the clip's first frame and, where it is an image, its label; the 'residual' output
        uses it only. `history` holds the frames before the previous one, latest first, where the model is
        shown any.
        """
        inputs = [previous_features, _spread(label_features, z), z]
        if self.output == "residual":
            inputs.append(reference)
        if history is not None:
            inputs.append(history)
        if self.position_octaves:
            n, h, w, _ = z.shape
            places = positions(h, w, self.position_octaves)
            inputs.append(jnp.broadcast_to(places, (n, *places.shape)))
        joined = jnp.concatenate(inputs, axis=-1)
        drawn = self.generator(self.decoder_fusion(self._features(joined)))
        return drawn if self.output == "rgb" else reference[..., :3] + drawn

    def _features(self, x: Array) -> Array:
        return x.astype(self.precision)

    def _joined(self, frame_features: Array, label_features: Array) -> Array:
        joined = jnp.concatenate([frame_features, _spread(label_features, frame_features)], axis=-1)
        return self._features(joined)

    def __call__(self, frame: Float[Array, "n h w 3"], label: Float[Array, "n ..."]) -> Array:
        """Run every module once (used to create the variables)."""
        features = self.encode_frame(frame)
        label_features = self.encode_label(label[None], jnp.ones((1, frame.shape[0])), train=True)[0]
        mu, _ = self.posterior(features, label_features)
        if self.prior_kind == "learned":
            self.prior(features, label_features)
        reference = jnp.concatenate([frame, label], axis=-1) if label.ndim == 4 else frame
        history = jnp.tile(frame, (1, 1, 1, self.history)) if self.history else None
        return self.decode(features, label_features, mu, reference, history)


def _spread(label_features: Array, like: Array) -> Array:
    """Return the features of a vector at every pixel of `like`; an image's as they are."""
    return jnp.broadcast_to(label_features, (*like.shape[:3], label_features.shape[-1]))
