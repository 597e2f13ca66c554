"""One live side of a comparison: reads a request per line on stdin, answers with one on stdout.

    python -m benchmarks.worker ours|torch

A request is JSON: {"case": "train", "batch": 2, "frames": 16, "teacher_forced": true} or
{"case": "rollout", "batch": 1, "frames": 16}. The answer holds "seconds" of one repetition, and where the
case was new and ran once before, its "first_seconds".
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

HEIGHT, WIDTH = 32, 64
BETA = 1.0


def clips(batch: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 frames and labels (b, t, h, w, 3): the same noise on both sides."""
    rng = np.random.default_rng(0)
    shape = (batch, frames, HEIGHT, WIDTH, 3)
    return tuple(rng.integers(0, 256, shape, np.uint8) for _ in range(2))


class Ours:
    """This project's compiled training step and prior rollout, through pmap as `train.py` runs them."""

    def __init__(self):
        from cvae_jax import platform

        platform.prepare()
        import jax

        from configs import default
        from cvae_jax.config import Components
        from cvae_jax.models.cvae import init_variables
        from cvae_jax.parallel import Devices
        from cvae_jax.train import make_train_step
        from cvae_jax.train_state import TrainState

        self.parts = Components.build(default.get_config())
        self.devices = Devices(jax.local_devices()[:1])
        variables = init_variables(self.parts.model, 0, (HEIGHT, WIDTH))
        self.state = self.devices.place(TrainState.create(variables, self.parts.optimizer))
        self.step = self.devices.map_update(make_train_step(self.parts))
        self.rollout = self.devices.map_clips(self._rollout)

    def _rollout(self, variables, batch, controls):
        import jax.numpy as jnp

        from cvae_jax.rollout import address, clip_noise, predict

        z_shape = (HEIGHT, WIDTH, self.parts.model.latent_channels)
        noise = clip_noise(address(controls, batch["index"]), z_shape)
        frames = predict(
            self.parts.model, variables, batch["frames"][:, 0], batch["labels"], noise
        )
        return jnp.swapaxes(frames, 0, 1)

    def train(self, batch: int, frames: int, teacher_forced: bool) -> Callable[[], None]:
        video, labels = clips(batch, frames)
        arrays = self.devices.split({
            "frames": video, "labels": labels, "mask": np.ones(batch, np.float32),
            "index": np.arange(batch, dtype=np.int32),
        })  # fmt: skip
        controls = {
            "seed": np.uint32(0), "beta": np.float32(BETA), "learning_rate": np.float32(1e-4),
            "forced": np.full(frames - 1, teacher_forced),
        }  # fmt: skip

        def repeat() -> None:
            self.state, metrics = self.step(self.state, arrays, controls)
            assert np.isfinite(float(metrics["loss"]))

        return repeat

    def rollout_case(self, batch: int, frames: int) -> Callable[[], None]:
        video, labels = clips(batch, frames)
        arrays = self.devices.split({
            "frames": video[:, :1], "labels": labels, "index": np.arange(batch, dtype=np.int32)
        })  # fmt: skip
        return lambda: self.rollout(self.state.variables, arrays, np.uint32(0))


class Torch:
    """The PyTorch reference, as a user of the original program runs it."""

    def __init__(self):
        import torch

        from benchmarks import reference

        torch.manual_seed(0)
        self.torch, self.reference = torch, reference
        self.model = reference.CVAE()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)

    def _video(self, x: np.ndarray):
        return self.torch.from_numpy(x).permute(0, 1, 4, 2, 3).contiguous().float() / 255

    def train(self, batch: int, frames: int, teacher_forced: bool) -> Callable[[], None]:
        video, labels = map(self._video, clips(batch, frames))

        def repeat() -> None:
            self.model.train()
            loss = self.reference.train_step(
                self.model, self.optimizer, video, labels, BETA, teacher_forced
            )
            assert np.isfinite(loss)

        return repeat

    def rollout_case(self, batch: int, frames: int) -> Callable[[], None]:
        video, labels = map(self._video, clips(batch, frames))
        shape = (batch, self.model.latent_channels, HEIGHT, WIDTH)

        def repeat() -> None:
            self.model.eval()
            noise = lambda t: self.torch.randn(shape)  # noqa: E731
            self.reference.prior_rollout(self.model, video[:, 0], labels, noise)

        return repeat


def main(side: str) -> None:
    answer = sys.stdout
    sys.stdout = sys.stderr
    worker = {"ours": Ours, "torch": Torch}[side]()
    ready: dict[str, Callable[[], None]] = {}
    print(json.dumps({"ready": True}), file=answer, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        reply = {}
        key = line.strip()
        if key not in ready:
            name = request.pop("case")
            make = worker.train if name == "train" else worker.rollout_case
            ready[key] = make(**request)
            started = time.perf_counter()
            ready[key]()
            reply["first_seconds"] = time.perf_counter() - started
        started = time.perf_counter()
        ready[key]()
        reply["seconds"] = time.perf_counter() - started
        print(json.dumps(reply), file=answer, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
