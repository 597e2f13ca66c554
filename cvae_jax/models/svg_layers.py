"""Building blocks of SVG: convolutions with BatchNorm, linear layers and LSTM cells.

The initial values are the published program's: weights N(0, 0.02), biases 0, BatchNorm's weights N(1, 0.02),
LSTM cells uniform in +-1/sqrt(width). `initial_values` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cvae_jax.models import initial, strided
from cvae_jax.models.interface import over_steps
from cvae_jax.models.layers import BatchNorm, parameter
from cvae_jax.models.products import over_pixels, product

DEVIATION = 0.02  # of initial weights
SLOPE = 0.2  # of the leaky ReLUs

State = tuple[Float[Array, "b r"], Float[Array, "b r"]]
"""The state of LSTM cells: (hidden, cell)."""

KINDS: dict[str, Callable[[Array, Array, str], Array]] = {
    "downsample4x4": strided.downsample4x4,
    "upsample4x4": strided.upsample4x4,
    "conv3x3": strided.conv3x3,
    "enlarged_conv3x3": strided.enlarged_conv3x3,
    "to_vector": strided.to_vector,
    "from_vector": strided.from_vector,
}


class Layer(nn.Module):
    """A convolution of maps (g, b, h, w, inputs), BatchNorm where `normalised`, and an activation.

    kind: see KINDS. size: height and width of the kernel. skip_inputs: channels of the encoder's map that is
    joined to the input; `project` computes what they add to the convolution, because that stays the same for
    as long as the skips do.
    """

    kind: str
    size: tuple[int, int]
    inputs: int
    features: int
    activation: Callable[[Array], Array]
    formulation: str
    axis_name: str | None
    skip_inputs: int = 0
    normalised: bool = True

    def setup(self) -> None:
        shape = (*self.size, self.inputs + self.skip_inputs, self.features)
        self.kernel = parameter(self, "kernel", nn.initializers.normal(DEVIATION), shape)
        self.bias = parameter(self, "bias", nn.initializers.zeros, shape[-1:])
        if self.normalised:
            self.norm = BatchNorm(self.axis_name)  # whose weights `initial_values` draws around 1

    def __call__(
        self, x: Float[Array, "g b h w i"], mask: Float[Array, "g b"], train: bool, added: Array | None = None
    ) -> Float[Array, "g b h2 w2 o"]:
        """Apply the layer; `added` is what `project` returned for the encoder's map, (g, b, h2, w2, o)."""
        y = self._convolve(self.kind, x, self.kernel[:, :, : self.inputs])
        if added is not None:
            y = y + added
        if self.normalised:
            y = self.norm(y, mask, train, self.bias)
        else:
            y = (y + self.bias[(None,) * 4]).astype(y.dtype)
        return self.activation(y)

    def project(self, skip: Float[Array, "g b h w s"]) -> Float[Array, "g b h2 w2 o"]:
        """Return what the encoder's map adds to the convolution; the map is not enlarged, its size fits."""
        kind = "conv3x3" if self.kind == "enlarged_conv3x3" else self.kind
        return self._convolve(kind, skip, self.kernel[:, :, self.inputs :])

    def _convolve(self, kind: str, x: Array, kernel: Array) -> Array:
        folded = x.reshape(-1, *x.shape[2:])
        y = KINDS[kind](folded, kernel.astype(x.dtype), self.formulation)
        return y.reshape(*x.shape[:2], *y.shape[1:])


class Linear(nn.Module):
    """A linear layer, in float32."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "s b i"]) -> Float[Array, "s b o"]:
        kernel = parameter(self, "kernel", nn.initializers.normal(DEVIATION), (x.shape[-1], self.features))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        return product(x, kernel) + bias[None, None]


class LSTM(nn.Module):
    """A layer of LSTM cells that runs over the s steps of its input, in float32.

    Each cell has two biases. Its gates are input, forget, cell and output, in PyTorch's order.
    """

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "s b i"], state: State) -> tuple[Float[Array, "s b r"], State]:
        shapes = {
            "input_kernel": (x.shape[-1], 4 * self.width),
            "hidden_kernel": (self.width, 4 * self.width),
            "input_bias": (4 * self.width,),
            "hidden_bias": (4 * self.width,),
        }
        p = {name: parameter(self, name, _uniform(self.width), shape) for name, shape in shapes.items()}
        gates = product(x, p["input_kernel"]) + (p["input_bias"] + p["hidden_bias"])[None, None]
        return _lstm(gates, p["hidden_kernel"], state)


class Predictor(nn.Module):
    """The frame predictor: a linear layer, two LSTM cells on top of each other, a linear layer, tanh."""

    width: int
    features: int

    def setup(self) -> None:
        self.embed = Linear(self.width)
        self.cells = [LSTM(self.width) for _ in range(2)]
        self.output = Linear(self.features)

    def __call__(
        self, x: Float[Array, "s b i"], states: tuple[State, State]
    ) -> tuple[Float[Array, "s b o"], tuple[State, State]]:
        x = self.embed(x)
        after = []
        for cell, state in zip(self.cells, states, strict=True):
            x, state = cell(x, state)
            after.append(state)
        return jnp.tanh(self.output(x)), (after[0], after[1])


class GaussianLSTM(nn.Module):
    """The posterior and the prior: a linear layer, an LSTM cell, and the mean and log-variance of z."""

    width: int
    latents: int

    def setup(self) -> None:
        self.embed = Linear(self.width)
        self.cell = LSTM(self.width)
        self.mean = Linear(self.latents)
        self.logvar = Linear(self.latents)

    def __call__(
        self, x: Float[Array, "s b i"], state: State
    ) -> tuple[tuple[Float[Array, "s b z"], Float[Array, "s b z"]], State]:
        hidden, state = self.cell(self.embed(x), state)
        return (self.mean(hidden), self.logvar(hidden)), state


def initial_values(shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw the arrays of one layer as its initialisers do; a rule of `cvae_jax.models.initial`."""
    drawn = {}
    for name, shape in shapes.items():
        if "hidden_kernel" in shapes:
            bound = 1 / math.sqrt(shapes["hidden_kernel"][0])
            value = rng.uniform(-bound, bound, shape)
        elif name in ("kernel", "scale"):
            value = rng.normal(name == "scale", DEVIATION, shape)
        else:
            value = initial.constant(name, shape)
        drawn[name] = value.astype(np.float32)
    return drawn


def _uniform(width: int) -> Callable[..., Array]:
    bound = 1 / math.sqrt(width)
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


@jax.custom_vjp
def _lstm(gates: Array, kernel: Array, state: State) -> tuple[Array, State]:
    """Return the outputs of LSTM cells at each step, (s, b, r), and their state after the last.

    gates: (s, b, 4 r), what the inputs and biases add to the gates. kernel: (r, 4 r), for the hidden state of
    the step before. The gradient of the kernel is one product over all steps; adding up one product per step
    would take half of the time of a training step.
    """
    return _lstm_forward(gates, kernel, state)[0]


def _lstm_forward(gates, kernel, state):
    def step(state, gates):
        gates = gates + product(state[0], kernel)
        after = _cell(gates, state[1])
        return after, (after[0], gates, state)

    after, (hidden, gates, before) = over_steps(step, state, gates)
    return (hidden, after), (gates, kernel, before)


def _lstm_backward(residuals, cotangents):
    gates, kernel, (hidden, cell) = residuals
    of_hidden, of_state = cotangents

    def step(of_state, inputs):
        gates, cell, of_hidden = inputs
        of_gates, of_cell = jax.vjp(_cell, gates, cell)[1]((of_state[0] + of_hidden, of_state[1]))
        return (product(of_gates, kernel.T), of_cell), of_gates

    of_state, of_gates = over_steps(step, of_state, (gates, cell, of_hidden), reverse=True)
    return of_gates, over_pixels(hidden, of_gates), of_state


_lstm.defvjp(_lstm_forward, _lstm_backward)


def _cell(gates: Array, cell: Array) -> State:
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
    return nn.sigmoid(o) * jnp.tanh(cell), cell
