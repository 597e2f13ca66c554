"""Training steps of the report's model in PyTorch on a GPU: python -m benchmarks.accelerator_torch [--tiny].

Prints one line of JSON: for the step as it is and for the compiled one, the milliseconds of each round. In a
process of its own, because JAX reserves most of a GPU's memory. The forward pass is in bfloat16 (autocast),
and the host waits for the device once in a round, as on the other side.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.cases import TINY_CVAE, milliseconds
from benchmarks.reference import CVAE, clip_loss
from benchmarks.worker import BETA, clips

BATCH, FRAMES = 10, 16


def measure(loss_of: Callable, place: str, tiny: bool) -> dict:
    """Return {"ms": of a step in each round, ascending, "first_seconds", "batch"} of teacher-forced clips."""
    batch, frames = (2, 3) if tiny else (BATCH, FRAMES)
    torch.manual_seed(0)
    model = (CVAE(**TINY_CVAE) if tiny else CVAE()).to(place)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    video, labels = (
        torch.from_numpy(x).permute(0, 1, 4, 2, 3).contiguous().float().to(place) / 255
        for x in clips(batch, frames)
    )
    shape = (batch, model.latent_channels, *video.shape[3:])

    def seconds(repeats: int) -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(place, torch.bfloat16):
                noise = lambda t: torch.randn(shape, device=place)  # noqa: E731
                loss, _ = loss_of(model, video, labels, noise, BETA, True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        loss.item()
        return time.perf_counter() - started

    first = seconds(1)
    seconds(2)
    return {"ms": milliseconds(seconds, tiny), "first_seconds": first, "batch": batch}


def main(tiny: bool) -> None:
    place = "cuda" if torch.cuda.is_available() else "cpu"
    if place == "cpu" and not tiny:
        sys.exit("PyTorch finds no GPU")
    forms = {"eager": clip_loss} | ({} if tiny else {"torch.compile": torch.compile(clip_loss)})
    for name, loss_of in forms.items():
        print(json.dumps({"title": f"PyTorch, {name}"} | measure(loss_of, place, tiny)), flush=True)


if __name__ == "__main__":
    main("--tiny" in sys.argv[1:])
