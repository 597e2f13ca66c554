"""The multiscale model without feedback in PyTorch, as its users would write it: the measure of its speed.

Modules have the names of the Flax ones, so `load` takes over their parameters, and a test holds the two to
the same frames. Arrays are NCHW float32; images and labels are in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Maps = list[Tensor]


class Activation(nn.Module):
    """GroupNorm, then SiLU."""

    def __init__(self, channels: int):
        super().__init__()
        groups = next(g for g in range(min(8, max(1, channels // 4)), 0, -1) if channels % g == 0)
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x))


class Block(nn.Module):
    """x plus two pre-activated 3x3 convolutions."""

    def __init__(self, inputs: int, features: int):
        super().__init__()
        self.act1, self.act2 = Activation(inputs), Activation(features)
        self.conv1 = nn.Conv2d(inputs, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        if inputs != features:
            self.skip = nn.Conv2d(inputs, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.act2(self.conv1(self.act1(x))))
        return y + (self.skip(x) if hasattr(self, "skip") else x)


class ContextEncoder(nn.Module):
    """A context frame with its label to a map for each level."""

    def __init__(self, inputs: int, widths: tuple[int, ...]):
        super().__init__()
        self.stem = nn.Conv2d(inputs, widths[0], 3, padding=1)
        before = widths[0]
        for level, (width, deeper) in enumerate(zip(widths[:-1], widths[1:])):
            self.add_module(f"block_{level}", Block(before, width))
            self.add_module(f"out_{level}", nn.Conv2d(width, deeper, 1))
            before = width
        self.levels = len(widths) - 1

    def forward(self, x: Tensor) -> Maps:
        x = self.stem(x)
        maps = [x]
        for level in range(self.levels):
            x = F.avg_pool2d(getattr(self, f"block_{level}")(x), 2)
            maps.append(getattr(self, f"out_{level}")(x))
        return maps


class Encoder(nn.Module):
    """A step's label with the context's maps to a map for each level."""

    def __init__(self, inputs: int, widths: tuple[int, ...]):
        super().__init__()
        self.stem = nn.Conv2d(inputs, widths[0], 3, padding=1)
        for level, width in enumerate(widths):
            if level:
                self.add_module(f"widen_{level}", nn.Conv2d(widths[level - 1], width, 1))
            self.add_module(f"block_{level}_0", Block(width, width))
        self.levels = len(widths)

    def forward(self, x: Tensor, context: Maps) -> Maps:
        x, maps = self.stem(x), []
        for level in range(self.levels):
            if level:
                x = getattr(self, f"widen_{level}")(F.avg_pool2d(x, 2))
            x = getattr(self, f"block_{level}_0")(x + context[level])
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """From the smallest map, with the skips of the larger ones, to the channels of each pixel."""

    def __init__(self, widths: tuple[int, ...], channels: int):
        super().__init__()
        self.middle = Block(widths[-1], widths[-1])
        for level in range(len(widths) - 1):
            self.add_module(f"up_{level}", nn.Conv2d(widths[level + 1], widths[level], 3, padding=1))
            self.add_module(f"block_{level}_0", Block(2 * widths[level], widths[level]))
        self.act = Activation(widths[0])
        self.out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, x: Tensor, skips: Maps) -> Tensor:
        x = self.middle(x)
        for level in reversed(range(len(skips))):
            x = getattr(self, f"up_{level}")(F.interpolate(x, scale_factor=2, mode="nearest"))
            x = getattr(self, f"block_{level}_0")(torch.cat([x, skips[level]], 1))
        return self.out(self.act(x))


class PosteriorEncoder(nn.Module):
    """The target on its way down to the smallest map."""

    def __init__(self, inputs: int, widths: tuple[int, ...]):
        super().__init__()
        self.stem = nn.Conv2d(inputs, widths[0], 3, padding=1)
        for level in range(1, len(widths)):
            self.add_module(f"act_{level}", Activation(widths[level - 1]))
            self.add_module(f"conv_{level}", nn.Conv2d(widths[level - 1], widths[level], 3, padding=1))
        self.levels = len(widths)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for level in range(1, self.levels):
            x = getattr(self, f"conv_{level}")(F.avg_pool2d(getattr(self, f"act_{level}")(x), 2))
        return x


class Gaussian(nn.Module):
    """A map to the mean and the log-variance of a latent map."""

    def __init__(self, inputs: int, latents: int):
        super().__init__()
        self.act, self.out = Activation(inputs), nn.Conv2d(inputs, 2 * latents, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.out(self.act(x)).chunk(2, 1)
        return mean, logvar


class Multiscale(nn.Module):
    """The default of `cvae_jax.models.multiscale.Multiscale` for label images."""

    def __init__(
        self, widths: tuple[int, ...] = (32, 48, 64), latents: int = 4, octaves: int = 4, patch: int = 2
    ):
        super().__init__()
        places, pixels = 4 * octaves, patch**2
        self.octaves, self.patch = octaves, patch
        self.context_encoder = ContextEncoder(pixels * (6 + places), widths)
        self.encoder = Encoder(pixels * (3 + places), widths)
        self.decoder = Decoder(widths, pixels * 4)
        self.posterior_encoder = PosteriorEncoder(pixels * 3, widths)
        self.posterior_head = Gaussian(2 * widths[-1], latents)
        self.prior_head = Gaussian(widths[-1], latents)
        self.from_latent = nn.Conv2d(latents, widths[-1], 1)

    def context(self, frame: Tensor, label: Tensor) -> Maps:
        """Return the maps of a context frame with its label."""
        return self.context_encoder(self._blocks(torch.cat([frame, label, self._places(frame)], 1)))

    def forward(
        self, context: Maps, frame: Tensor, label: Tensor, noise: Tensor, target: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (predicted frame, KL of each frame); z comes from the posterior where there is a target."""
        maps = self.encoder(self._blocks(torch.cat([label, self._places(label)], 1)), context)
        prior = mean, logvar = self.prior_head(maps[-1])
        kl = torch.zeros(len(label))
        if target is not None:
            of_target = self.posterior_encoder(self._blocks(target))
            mean, logvar = self.posterior_head(torch.cat([of_target, maps[-1]], 1))
            widths, distance = logvar - prior[1], (mean - prior[0]) ** 2 * torch.exp(-prior[1])
            kl = -0.5 * (1 + widths - distance - widths.exp()).sum((1, 2, 3))
        x = maps[-1] + self.from_latent(mean + torch.exp(0.5 * logvar) * noise)
        x = self.decoder(x, maps[:-1])
        drawn, logits = (depth_to_space(x) if self.patch == 2 else x).split([3, 1], 1)
        keep = torch.sigmoid(logits + 1.0)
        return keep * frame + (1 - keep) * torch.sigmoid(drawn), kl

    def _blocks(self, image: Tensor) -> Tensor:
        return space_to_depth(image) if self.patch == 2 else image

    def _places(self, image: Tensor) -> Tensor:
        n, _, height, width = image.shape
        rows, columns = (torch.linspace(-1.0, 1.0, side) * 0.5 * math.pi for side in (height, width))
        channels = []
        for k in range(self.octaves):
            for wave in (torch.sin, torch.cos):
                channels.append(wave(2**k * rows)[:, None].expand(height, width))
                channels.append(wave(2**k * columns)[None].expand(height, width))
        return torch.stack(channels)[None].expand(n, -1, -1, -1)


def space_to_depth(x: Tensor) -> Tensor:
    """Return blocks of 2x2 pixels as pixels of 4c channels, in the order of our formulation."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def depth_to_space(x: Tensor) -> Tensor:
    """Return the inverse of `space_to_depth`."""
    n, c, h, w = x.shape
    return x.reshape(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


def train_step(
    model: Multiscale, optimizer: torch.optim.Optimizer, video: Tensor, labels: Tensor, clip_norm: float = 1.0
) -> float:
    """Make one step on clips (b, t, c, h, w) whose first frame is the context; return the calibrated loss."""
    batch, steps = video.shape[0], video.shape[1] - 1
    context = model.context(video[:, 0], labels[:, 0])
    repeat = lambda x: x.repeat_interleave(steps, 0)  # noqa: E731
    target, label = video[:, 1:].flatten(0, 1), labels[:, 1:].flatten(0, 1)
    height, width = context[-1].shape[2:]
    noise = torch.randn(batch * steps, model.from_latent.in_channels, height, width)
    frame, kl = model([repeat(m) for m in context], repeat(video[:, 0]), label, noise, target)
    loss = 0.5 * torch.log(torch.mean((frame - target) ** 2)) + kl.mean() / target[0].numel()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def prior_rollout(model: Multiscale, first: Tensor, labels: Tensor) -> list[Tensor]:
    """Return the frames 1 .. T-1 of clips from their first frame (b, c, h, w) and labels (b, t, c, h, w)."""
    context = model.context(first, labels[:, 0])
    height, width = context[-1].shape[2:]
    shape = (len(first), model.from_latent.in_channels, height, width)
    return [model(context, first, labels[:, t], torch.randn(shape))[0] for t in range(1, labels.shape[1])]


def load(model: Multiscale, params: dict) -> None:
    """Take over the parameters of the Flax model, {module: {...: kernel (HWIO), bias, scale}}."""

    def flat(tree: dict, path: tuple[str, ...]) -> dict[str, Tensor]:
        found = {}
        for name, leaf in tree.items():
            if isinstance(leaf, dict):
                found |= flat(leaf, (*path, name))
                continue
            values = np.asarray(leaf)
            values = values.transpose(3, 2, 0, 1) if name == "kernel" else values
            renamed = {"kernel": "weight", "scale": "weight"}.get(name, name)
            found[".".join((*path, renamed))] = torch.from_numpy(values.copy())
        return found

    model.load_state_dict(flat(params, ()))
