"""The original program's model and steps in PyTorch, written from the layer specification.

The measure of speed and memory for `benchmarks/run.py`; docs/parity.md says what it shares with the fixture.
Module names are the original's, so a fixture's weights load with `load_state_dict`. Arrays are NCHW float32,
video (b, t, c, h, w) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Noise = Callable[[int], Tensor]
"""t -> eps of step t, (b, N, h, w)."""


class ResidualBlock(nn.Module):
    """RB(i, o): two 3x3 convolutions with leaky ReLU and a skip."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv1(x), 0.01)
        y = F.leaky_relu(self.conv2(y), 0.01)
        return y + self.skip(x)


class DepthConv(nn.Module):
    """1x1, leaky ReLU, depthwise 3x3, 1x1, and a skip."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(inputs, inputs, 1), nn.LeakyReLU(0.01))
        self.depth_conv = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 1)
        self.adaptor = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.depth_conv(self.conv1(x))) + self.adaptor(x)


class ConvFFN(nn.Module):
    """A gated feed-forward residual of 1x1 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 1)
        self.conv_out = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, dim=1)
        return x + self.conv_out(a * F.leaky_relu(b, 0.1))


class DepthConvBlock(nn.Module):
    """DCB(i, o): DepthConv, then ConvFFN."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.block = nn.Sequential(DepthConv(inputs, outputs), ConvFFN(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class CVAE(nn.Module):
    """The whole model; F, L, N, D are the widths of frame and label features, latent and decoder."""

    def __init__(
        self,
        frame_features: int = 128,
        label_features: int = 32,
        latent_channels: int = 12,
        decoder_features: int = 192,
    ):
        super().__init__()
        f, label, n, d = frame_features, label_features, latent_channels, decoder_features
        m = f + label + n
        self.latent_channels = n
        self.frame_transformation = nn.Sequential(
            ResidualBlock(3, f // 8),
            DepthConvBlock(f // 8, f // 8),
            ResidualBlock(f // 8, f // 4),
            DepthConvBlock(f // 4, f // 4),
            ResidualBlock(f // 4, f // 2),
            DepthConvBlock(f // 2, f // 2),
            nn.Conv2d(f // 2, f, 3, padding=1),
        )
        self.label_transformation = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, label // 2, 7),
            nn.BatchNorm2d(label // 2),
            nn.Identity(),
            ResidualBlock(label // 2, label),
        )
        self.Gaussian_Predictor = nn.Sequential(
            ResidualBlock(f + label, n // 4),
            DepthConvBlock(n // 4, n // 4),
            ResidualBlock(n // 4, n // 2),
            DepthConvBlock(n // 2, n // 2),
            ResidualBlock(n // 2, n),
            nn.Identity(),
            nn.Conv2d(n, 2 * n, 1),
        )
        self.Decoder_Fusion = nn.Sequential(
            DepthConvBlock(m, m),
            ResidualBlock(m, m // 4),
            DepthConvBlock(m // 4, m // 2),
            ResidualBlock(m // 2, m // 2),
            DepthConvBlock(m // 2, d // 2),
            nn.Conv2d(d // 2, d, 1),
        )
        self.Generator = nn.Sequential(
            DepthConvBlock(d, d),
            ResidualBlock(d, d // 2),
            DepthConvBlock(d // 2, d // 2),
            ResidualBlock(d // 2, d // 4),
            DepthConvBlock(d // 4, d // 4),
            ResidualBlock(d // 4, d // 8),
            DepthConvBlock(d // 8, d // 8),
            nn.Conv2d(d // 8, 3, 1),
        )

    def posterior(self, frame_features: Tensor, label_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mu, logvar) of q(z | current frame, label)."""
        return self.Gaussian_Predictor(torch.cat([frame_features, label_features], 1)).chunk(2, 1)

    def decode(self, previous_features: Tensor, label_features: Tensor, z: Tensor) -> Tensor:
        """Return the predicted frame in [0, 1]."""
        fused = self.Decoder_Fusion(torch.cat([previous_features, label_features, z], 1))
        return self.Generator(fused).clamp(0, 1)


def from_fixture(path: str) -> tuple[CVAE, dict[str, Tensor]]:
    """Return the model with a parity fixture's weights, and all its arrays (see docs/parity.md)."""
    import numpy as np

    data = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    model = CVAE(*(int(width) for width in data["dims"]))
    model.load_state_dict({name[3:]: value for name, value in data.items() if name.startswith("sd/")})
    return model, data


def clip_loss(
    model: CVAE, frames: Tensor, labels: Tensor, noise: Noise, beta: float, teacher_forced: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return the report's loss of a batch of clips and the frames it predicted, (b, c, h, w) each."""
    batch = frames.shape[0]
    loss = frames.new_zeros(())
    predicted: list[Tensor] = []
    for t in range(1, frames.shape[1]):
        previous = frames[:, t - 1] if teacher_forced or t == 1 else predicted[-1].detach()
        with torch.no_grad():
            previous_features = model.frame_transformation(previous)
        label_features = model.label_transformation(labels[:, t])
        current_features = model.frame_transformation(frames[:, t])
        mu, logvar = model.posterior(current_features, label_features)
        z = mu + torch.exp(0.5 * logvar) * noise(t)
        frame = model.decode(previous_features, label_features, z)
        clipped = logvar.clamp(-10, 10)
        kl = -0.5 * torch.sum(1 + clipped - mu**2 - clipped.exp()) / batch
        loss = loss + F.mse_loss(frame, frames[:, t]) / batch + beta * kl
        predicted.append(frame)
    return loss, predicted


def train_step(
    model: CVAE,
    optimizer: torch.optim.Optimizer,
    frames: Tensor,
    labels: Tensor,
    beta: float,
    teacher_forced: bool,
) -> float:
    """Take the report's training step (gradient norm clipped to 1) and return the loss."""
    shape = (frames.shape[0], model.latent_channels, *frames.shape[3:])
    optimizer.zero_grad(set_to_none=True)
    loss, _ = clip_loss(model, frames, labels, lambda t: torch.randn(shape), beta, teacher_forced)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def prior_rollout(model: CVAE, first: Tensor, labels: Tensor, noise: Noise) -> Tensor:
    """Return the frames (b, t - 1, c, h, w) generated from the first one with z = noise."""
    frame, frames = first, []
    for t in range(1, labels.shape[1]):
        features = model.frame_transformation(frame)
        frame = model.decode(features, model.label_transformation(labels[:, t]), noise(t))
        frames.append(frame)
    return torch.stack(frames, 1)
