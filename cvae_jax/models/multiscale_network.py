"""The networks of the multiscale model: a strided U-Net whose output is composed by soft masks.

Frames are read and drawn in blocks of `patch` x `patch` pixels (space to depth); each further level halves
the resolution. Residual blocks are pre-activated (He et al., ECCV 2016) with GroupNorm (Wu & He, ECCV 2018)
and SiLU; skip connections join the levels of the way down and the way up (Ronneberger et al., MICCAI 2015).
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cvae_jax.models import strided
from cvae_jax.models.layers import Convolution, GroupNorm, halve, positions

Maps = tuple[Array, ...]
"""One map (n, h, w, c) for each level, the largest first."""

COPY_BIAS = 1.0  # of the masks' logits at first: more is copied than drawn


class Activation(nn.Module):
    """GroupNorm, then SiLU."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return nn.silu(GroupNorm(name="norm")(x))


class Block(nn.Module):
    """x plus two pre-activated 3x3 convolutions; x passes a 1x1 convolution where its width changes."""

    features: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h w o"]:
        convolution = functools.partial(Convolution, features=self.features, formulation=self.formulation)
        y = convolution("conv3x3", name="conv1")(Activation(name="act1")(x))
        y = convolution("conv3x3", name="conv2")(Activation(name="act2")(y))
        return y + (x if x.shape[-1] == self.features else convolution("dense", name="skip")(x))


class ContextEncoder(nn.Module):
    """A context frame with its label to a map for each level."""

    widths: tuple[int, ...]
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Maps:
        x = Convolution("conv3x3", self.widths[0], self.formulation, name="stem")(x)
        maps = [x]
        for level, (width, deeper) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            x = halve(Block(width, self.formulation, name=f"block_{level}")(x))
            maps.append(Convolution("dense", deeper, self.formulation, name=f"out_{level}")(x))
        return tuple(maps)


class Encoder(nn.Module):
    """The way down: the step's inputs with the context's maps to a map for each level."""

    widths: tuple[int, ...]
    blocks: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], context: Maps, vector: Array | None) -> Maps:
        form = self.formulation
        x = Convolution("conv3x3", self.widths[0], form, name="stem")(x)
        maps = []
        for level, width in enumerate(self.widths):
            if level:
                x = Convolution("dense", width, form, name=f"widen_{level}")(halve(x))
            x = x + context[level]
            if vector is not None:
                x = x + Convolution("dense", width, form, name=f"vector_{level}")(vector)
            for number in range(self.blocks):
                x = Block(width, form, name=f"block_{level}_{number}")(x)
            maps.append(x)
        return tuple(maps)


class Decoder(nn.Module):
    """The way up: from the smallest map, with the skips of the larger ones, to `channels` per pixel."""

    widths: tuple[int, ...]
    blocks: int
    channels: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], skips: Maps) -> Float[Array, "n h2 w2 c"]:
        form = self.formulation
        x = Block(self.widths[-1], form, name="middle")(x)
        for level in reversed(range(len(self.widths) - 1)):
            width = self.widths[level]
            x = Convolution("enlarged_conv3x3", width, form, name=f"up_{level}")(x)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            for number in range(self.blocks):
                x = Block(width, form, name=f"block_{level}_{number}")(x)
        x = Activation(name="act")(x).astype(jnp.float32)
        return Convolution("conv3x3", self.channels, form, name="out")(x)


class PosteriorEncoder(nn.Module):
    """The target on its way down to the smallest map, one convolution for each level."""

    widths: tuple[int, ...]
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        x = Convolution("conv3x3", self.widths[0], self.formulation, name="stem")(x)
        for level, width in enumerate(self.widths[1:], 1):
            x = halve(Activation(name=f"act_{level}")(x))
            x = Convolution("conv3x3", width, self.formulation, name=f"conv_{level}")(x)
        return x


class Network(nn.Module):
    """The networks of one step; see `cvae_jax.models.multiscale.Multiscale`.

    Images are padded: their sides are multiples of `Multiscale.smallest_block`.
    """

    widths: tuple[int, ...]
    patch: int
    blocks: int
    latent_channels: int
    feedback: int
    position_octaves: int
    formulation: str
    precision: str

    def setup(self) -> None:
        form = self.formulation
        sources = 1 + (self.feedback > 0)
        self.context_encoder = ContextEncoder(self.widths, form)
        self.encoder = Encoder(self.widths, self.blocks, form)
        self.decoder = Decoder(self.widths, self.blocks, (3 + sources) * self.patch**2, form)
        self.posterior_encoder = PosteriorEncoder(self.widths, form)
        self.posterior_head = Gaussian(self.latent_channels, form)
        self.prior_head = Gaussian(self.latent_channels, form)
        self.from_latent = Convolution("dense", self.widths[-1], form)

    def encode_context(self, frame: Float[Array, "n h w 3"], label: Array | None) -> Maps:
        """Return the maps of context frames with their label images, in [0, 1]; other labels are None."""
        shown = [frame] if label is None else [frame, label]
        return self.context_encoder(self._blocks(jnp.concatenate(shown, axis=-1), places=True))

    def encode(
        self,
        label: Float[Array, "n h w 3"] | Float[Array, "n a"],
        previous: Float[Array, "n h w k"] | None,
        context: Maps,
    ) -> Maps:
        """Return the step's maps, from its label, the previous frames (newest first) and the context."""
        n, (height, width) = len(label), (side * self.patch for side in context[0].shape[1:3])
        images = [previous] if previous is not None else []
        vector = None
        if label.ndim == 4:
            images.append(label)
        elif label.shape[-1]:
            vector = label[:, None, None].astype(self.precision)
        x = jnp.concatenate(images, axis=-1) if images else jnp.zeros((n, height, width, 0))
        return self.encoder(self._blocks(x, places=True), context, vector)

    def prior(self, smallest: Array) -> tuple[Array, Array]:
        """Return (mean, logvar) of p(z | context, label, previous frames) from the step's smallest map."""
        return self.prior_head(smallest)

    def posterior(self, smallest: Array, target: Float[Array, "n h w 3"]) -> tuple[Array, Array]:
        """Return (mean, logvar) of q(z | target, context, label, previous frames)."""
        of_target = self.posterior_encoder(self._blocks(target, places=False))
        return self.posterior_head(jnp.concatenate([of_target, smallest], axis=-1))

    def decode(
        self, maps: Maps, z: Float[Array, "n hz wz z"] | None, sources: Float[Array, "k n h w 3"]
    ) -> tuple[Float[Array, "n h w 3"], Float[Array, "n h w k"]]:
        """Return the frame in [0, 1], and its masks: the share of each source in each pixel.

        A pixel is the mean of the sources' pixels and a drawn one, weighted by a softmax. What the masks
        leave of 1 is the share of the drawn pixel.
        """
        x = maps[-1]
        if z is not None:
            x = x + self.from_latent(z.astype(x.dtype))
        drawn, logits = jnp.split(self._pixels(self.decoder(x, maps[:-1])), [3], axis=-1)
        logits = jnp.concatenate([logits + COPY_BIAS, jnp.zeros_like(drawn[..., :1])], axis=-1)
        shares = nn.softmax(logits, axis=-1)
        copied = jnp.einsum("nhwk,knhwc->nhwc", shares[..., :-1], sources, precision="highest")
        return copied + shares[..., -1:] * nn.sigmoid(drawn), shares[..., :-1]

    def _blocks(self, x: Float[Array, "n h w c"], places: bool) -> Float[Array, "n h2 w2 c2"]:
        """Return an image as a map of the largest level, with each pixel's place among its channels."""
        if places:
            height, width = x.shape[1:3]
            where = positions(height, width, self.position_octaves)
            x = jnp.concatenate([x, jnp.broadcast_to(where, (len(x), *where.shape))], axis=-1)
        x = x.astype(self.precision)
        return strided.space_to_depth(x) if self.patch == 2 else x

    def _pixels(self, x: Array) -> Array:
        return strided.depth_to_space(x) if self.patch == 2 else x

    def __call__(self, frame: Float[Array, "n h w 3"], label: Float[Array, "n ..."]) -> Array:
        """Run every network once (used to create the variables)."""
        context = self.encode_context(frame, label if label.ndim == 4 else None)
        previous = jnp.tile(frame, (1, 1, 1, self.feedback)) if self.feedback else None
        maps = self.encode(label, previous, context)
        z = None
        if self.latent_channels:
            z, _ = self.posterior(maps[-1], frame)
            self.prior(maps[-1])
        sources = jnp.stack([frame] * (1 + (self.feedback > 0)))
        return self.decode(maps, z, sources)[0]


class Gaussian(nn.Module):
    """A map to the mean and the log-variance of a latent map, in float32."""

    latents: int
    formulation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> tuple[Float[Array, "n h w z"], Float[Array, "n h w z"]]:
        x = Activation(name="act")(x).astype(jnp.float32)
        x = Convolution("conv3x3", 2 * self.latents, self.formulation, name="out")(x)
        mean, logvar = jnp.split(x, 2, axis=-1)
        return mean, logvar
