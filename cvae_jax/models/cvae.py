"""The pose-conditioned CVAE: frame and label encoders, posterior, decoder. No loss, no loop.

The layers follow the reference program child by child; `layer_<i>` carries the PyTorch index i, so
`cvae_jax.import_torch` can map checkpoints by name.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cvae_jax.models.blocks import BatchNorm, Convolution, DepthConvBlock, ResidualBlock, leaky_relu
from cvae_jax.models.ops import resolve_formulation

OUTPUTS = ("rgb", "residual")
PRECISIONS = ("float32", "bfloat16")


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
        self, x: Float[Array, "g b h w c"], mask: Float[Array, " b"], train: bool
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


def positions(height: int, width: int, octaves: int) -> Float[Array, "{height} {width} c"]:
    """Return where each pixel is, (height, width, 4 * octaves), in [-1, 1].

    With row and column running over [-1, 1]: sin and cos of pi/2 * 2^k times each, k < octaves (Fourier
    features, Tancik et al., 2020; with one octave the image's sides are told apart, as in CoordConv,
    Liu et al., 2018).
    """
    channels = []
    for k in range(octaves):
        row, column = (0.5 * jnp.pi * 2**k * jnp.linspace(-1.0, 1.0, n) for n in (height, width))
        for wave in (jnp.sin, jnp.cos):
            channels.append(jnp.broadcast_to(wave(row)[:, None], (height, width)))
            channels.append(jnp.broadcast_to(wave(column)[None, :], (height, width)))
    return jnp.stack(channels, axis=-1)


class CVAE(nn.Module):
    """The model of one step: `encode_frame`, `encode_label`, `posterior` and `decode`.

    Attributes:
      frame_features: F, at least 8.
      label_features: L, at least 2.
      latent_channels: N, channels of the latent map z (H x W x N), at least 4.
      decoder_features: D, at least 8.
      output: 'rgb' as in the reference, or 'residual': the decoder also sees the clip's first frame with
        its label and draws the difference to it, so that what does not move need not be drawn again.
      position_octaves: the decoder also sees each pixel's place as sines and cosines of this many
        octaves (see `positions`), so that it can remember what is where before a still camera; 0 = not.
      history: the decoder also sees this many frames before the previous one, as they are: what moves has a
        direction; 0 = none.
      formulation: 'auto', 'plain' or 'cpu' (see `cvae_jax.models.ops`).
      precision: of the features: 'float32', or 'bfloat16' (mixed precision, Micikevicius et al., 2018:
        parameters, statistics, the posterior, the frame and every loss stay in float32).
      axis_name: pmap axis over which BatchNorm's statistics are summed; None on one device.
    """

    frame_features: int
    label_features: int
    latent_channels: int
    decoder_features: int
    output: str = "rgb"
    position_octaves: int = 0
    history: int = 0
    formulation: str = "auto"
    precision: str = "float32"
    axis_name: str | None = None

    def setup(self) -> None:
        form = resolve_formulation(self.formulation)
        self.frame_encoder = FrameEncoder(self.frame_features, form)
        self.label_encoder = LabelEncoder(self.label_features, form, self.axis_name)
        self.vector_encoder = VectorEncoder(self.label_features, form)
        self.gaussian_predictor = GaussianPredictor(self.latent_channels, form)
        self.decoder_fusion = DecoderFusion(self.decoder_features, form)
        self.generator = Generator(3, form)

    def encode_frame(self, frame: Float[Array, "n h w 3"]) -> Float[Array, "n h w f"]:
        """Encode frames in [0, 1]; the same encoder serves the previous and the current frame."""
        return self.frame_encoder(self._features(frame))

    def encode_label(
        self, label: Float[Array, "g b ..."], mask: Float[Array, " b"], train: bool
    ) -> Float[Array, "g b h w l"]:
        """Encode the labels of g time steps; `mask` is 1 for real clips, 0 for padding.

        Images (g, b, h, w, 3) in [0, 1], or vectors (g, b, a), whose features have h = w = 1.
        """
        if label.ndim == 3:
            return self.vector_encoder(self._features(label))
        return self.label_encoder(self._features(label), mask, train)

    def posterior(
        self, frame_features: Float[Array, "n h w f"], label_features: Float[Array, "n hl wl l"]
    ) -> tuple[Float[Array, "n h w z"], Float[Array, "n h w z"]]:
        """Return (mu, logvar) of q(z | current frame, label)."""
        joined = jnp.concatenate([frame_features, _spread(label_features, frame_features)], axis=-1)
        return self.gaussian_predictor(self._features(joined))

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
        if self.history:
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

    def __call__(self, frame: Float[Array, "n h w 3"], label: Float[Array, "n ..."]) -> Array:
        """Run every module once (used to create the variables)."""
        features = self.encode_frame(frame)
        label_features = self.encode_label(label[None], jnp.ones(frame.shape[0]), train=True)[0]
        mu, _ = self.posterior(features, label_features)
        reference = jnp.concatenate([frame, label], axis=-1) if label.ndim == 4 else frame
        history = jnp.tile(frame, (1, 1, 1, self.history)) if self.history else None
        return self.decode(features, label_features, mu, reference, history)


def _spread(label_features: Array, like: Array) -> Array:
    """Return the features of a vector at every pixel of `like`; an image's as they are."""
    return jnp.broadcast_to(label_features, (*like.shape[:3], label_features.shape[-1]))


def init_variables(
    model: CVAE, seed: int, frame_size: tuple[int, int], label_size: int | None = None
) -> dict:
    """Create {'params', 'batch_stats'} from `seed`: the same numbers on every backend.

    `label_size` is the length of labels that are vectors; None: they are images.
    Draws the distribution that `model.init` declares (uniform in +-1/sqrt(fan_in); BatchNorm 1 and 0)
    with NumPy, because compiling 130 random draws takes half a minute on a CPU and this takes none.
    """
    frame = jax.ShapeDtypeStruct((1, *frame_size, 3), jnp.float32)
    label = frame if label_size is None else jax.ShapeDtypeStruct((1, label_size), jnp.float32)
    shapes = jax.eval_shape(model.clone(axis_name=None).init, jax.random.key(0), frame, label)
    rng = np.random.default_rng(np.random.SeedSequence([seed]))

    def fill(tree: dict) -> dict:
        if "kernel" in tree:
            bound = 1.0 / math.sqrt(math.prod(tree["kernel"].shape[:-1]))
            return {
                name: rng.uniform(-bound, bound, leaf.shape).astype(np.float32)
                for name, leaf in sorted(tree.items())
            }
        if isinstance(next(iter(tree.values())), dict):
            return {name: fill(branch) for name, branch in sorted(tree.items())}
        constants = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
        return {name: np.full(leaf.shape, constants[name], np.float32) for name, leaf in tree.items()}

    return {"batch_stats": {}} | fill(shapes)
