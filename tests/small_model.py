"""The model's interface with one layer in place of each network: it compiles in a second.

For tests of what is built around the model (the loop over time, training, evaluation), which do not
depend on what its networks compute. The layers keep the names that those tests reach for; the label
encoder has the model's own BatchNorm, masks and all.
"""

import flax.linen as nn
import jax.numpy as jnp

from cvae_jax.models.cvae import CVAE
from cvae_jax.models.cvae_network import Network, VectorEncoder
from cvae_jax.models.layers import BatchNorm, Convolution, leaky_relu


class Layer(nn.Module):
    kind: str
    features: int
    layer: str
    last: bool = False  # in float32, as the model's own last layers

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32) if self.last else x
        return Convolution(self.kind, self.features, "plain", name=self.layer)(x)


class LabelLayer(nn.Module):
    features: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x, mask, train):
        g, b = x.shape[:2]
        x = Convolution("dense", 1, "plain", name="layer_1")(x.reshape(g * b, *x.shape[2:]))
        x = BatchNorm(self.axis_name, name="layer_2")(x.reshape(g, b, *x.shape[1:]), mask, train)
        return jnp.concatenate([x, leaky_relu(x, 0.1)], axis=-1)


class GaussianLayer(nn.Module):
    latents: int

    @nn.compact
    def __call__(self, x):
        x = leaky_relu(x.astype(jnp.float32), 0.1)
        x = Convolution("dense", 2 * self.latents, "plain", name="layer_6")(x)
        return tuple(jnp.split(x, 2, axis=-1))


class SmallNetwork(Network):
    """Five layers in place of the networks."""

    def setup(self):
        self.frame_encoder = Layer("conv3x3", self.frame_features, "layer_6")
        self.label_encoder = LabelLayer(2, self.axis_name)
        self.vector_encoder = VectorEncoder(2, "plain")
        self.gaussian_predictor = GaussianLayer(self.latent_channels)
        self.prior_predictor = GaussianLayer(self.latent_channels)
        self.decoder_fusion = Layer("dense", self.decoder_features, "layer_5")
        self.generator = Layer("conv3x3", 3, "layer_7", last=True)


class SmallCVAE(CVAE):
    """A CVAE of five layers; `frame_features`, `latent_channels` and `decoder_features` count."""

    network_class = SmallNetwork
