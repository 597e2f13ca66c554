"""One live side of a comparison: reads a request per line on stdin, answers with one on stdout.

    python -m benchmarks.worker ours|torch

Requests are JSON. Timed ones, {"case": "train", "batch": 2, "frames": 16, "teacher_forced": true} and
{"case": "rollout", "batch": 1, "frames": 16}, may also name a "model", by default the cvae. They are answered
with "seconds" of one repetition and "peak_bytes" of the process so far; where the case was new it ran once
before, in "first_seconds" with "compilations".
{"case": "check", "fixture": F} is answered with the losses on the parity fixture F,
{"case": "gemm", "size": n} with the rate of a float32 matrix product in GFLOP/s.
"""

from __future__ import annotations

import copy
import functools
import json
import resource
import sys
import time
from collections.abc import Callable

import numpy as np

HEIGHT, WIDTH = 32, 64
BETA = 1.0
GEMM_SECONDS = 0.5


def clips(batch: int, frames: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 frames and labels (b, t, h, w, 3): the same noise on both sides."""
    rng = np.random.default_rng(0)
    shape = (batch, frames, *size, 3)
    return tuple(rng.integers(0, 256, shape, np.uint8) for _ in range(2))


def build(devices, config) -> tuple:
    """Return (components, initial state on the devices, training step) of a config."""
    from cvae_jax.config import Components
    from cvae_jax.models.interface import init_variables
    from cvae_jax.training.state import TrainState
    from cvae_jax.training.step import make_train_step

    parts = Components.build(config)
    variables = init_variables(parts.model, 0, (HEIGHT, WIDTH))
    state = devices.place(TrainState.create(variables, parts.optimizer))
    step = make_train_step(*parts.compiled, augmentation=parts.augmentation)
    return parts, state, devices.map_update(step)


def inputs(devices, batch: int, frames: int, teacher_forced: bool) -> tuple[dict, dict]:
    """Return what a training step takes besides the state: a batch on the devices, and controls."""
    video, labels = clips(batch, frames)
    arrays = {
        "frames": video,
        "labels": labels,
        "mask": np.ones(batch, np.float32),
        "index": np.arange(batch, dtype=np.int32),
    }
    controls = {
        "seed": np.uint32(0),
        "beta": np.float32(BETA),
        "learning_rate": np.float32(1e-4),
        "forced": np.full(frames - 1, teacher_forced),
    }
    return devices.split(arrays), controls


class Ours:
    """This project's compiled training step and prior rollout, through pmap as `train.py` runs them.

    The CVAE is the report's. The multiscale model is that of configs/recommended.py, trained with Adam and
    without augmentation.
    """

    def __init__(self):
        from cvae_jax.runtime import platform

        platform.prepare()
        import jax

        from cvae_jax.runtime.devices import Devices

        self.compilations = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)
        self.devices = Devices(jax.local_devices()[:1])

    @functools.cache
    def _run(self, model: str) -> tuple:
        """Return (components, initial state, training step) of a model."""
        from configs import recommended
        from cvae_jax import defaults

        config = {"cvae": defaults, "multiscale": recommended}[model].get_config()
        config.optimizer.kind, config.augment.shift = "adam", 0  # as on the other side
        return build(self.devices, config)

    def _count(self, event: str, seconds: float, **_: object) -> None:
        self.compilations += event.endswith("backend_compile_duration")

    def train(self, batch: int, frames: int, teacher_forced: bool, model: str = "cvae") -> Callable[[], None]:
        _, state, step = self._run(model)
        # The step donates its state, and other cases still need this one.
        state = self.devices.place(copy.deepcopy(state))
        arrays, controls = inputs(self.devices, batch, frames, teacher_forced)

        def repeat() -> None:
            nonlocal state
            state, metrics = step(state, arrays, controls)
            assert np.isfinite(float(metrics["loss"]))

        return repeat

    def rollout_case(self, batch: int, frames: int, model: str = "cvae") -> Callable[[], None]:
        import jax

        from cvae_jax.rollout.chunks import PRIOR, ChunkedRollout, Prompt

        parts, state, _ = self._run(model)
        variables = jax.device_get(state.variables)
        video, labels = clips(batch, frames)
        prompts = [Prompt("", video[i, :1], labels[i], i) for i in range(batch)]
        rows = [(i, 0) for i in range(batch)]
        rollout = ChunkedRollout(parts.model, self.devices, PRIOR, n_past=1, batch_size=batch, chunk=frames)
        return lambda: list(rollout.run(variables, prompts, rows, seed=0))

    def check(self, fixture: str) -> dict[str, float]:
        import jax
        import jax.numpy as jnp

        from cvae_jax.losses import Objective
        from cvae_jax.models.cvae import CVAE
        from cvae_jax.models.cvae_torch import dimensions, to_variables
        from cvae_jax.rollout.scan import Clips, RolloutOptions
        from cvae_jax.training.gradients import clip_gradients

        data = np.load(fixture)
        weights = {name[3:]: data[name] for name in data.files if name.startswith("sd/")}
        model = CVAE(**dimensions(weights))
        frames, labels = (
            jnp.asarray(data[f"in/{kind}"].transpose(0, 1, 3, 4, 2)) for kind in ("frames", "labels")
        )
        eps = jnp.asarray(data["in/eps"].transpose(1, 0, 3, 4, 2))

        @jax.jit
        def loss(variables, forced):
            video = Clips(frames, labels, jnp.ones(frames.shape[0]))
            return clip_gradients(
                model,
                Objective(),
                RolloutOptions(),
                variables,
                video,
                lambda t: eps[t - 1],
                forced,
                jnp.asarray(data["in/beta"]),
                jnp.float32(frames.shape[0]),
            )[1]["loss"]

        steps = len(eps)
        return {
            "train_tf": float(loss(to_variables(weights), np.ones(steps, bool))),
            "train_ar": float(loss(to_variables(weights), np.zeros(steps, bool))),
        }

    def product(self, x: np.ndarray) -> Callable[[], None]:
        import jax

        multiply = jax.jit(lambda a: a @ a)
        x = jax.device_put(x)
        return lambda: multiply(x).block_until_ready()


class Torch:
    """The PyTorch reference, as a user of the original program runs it."""

    compilations = 0

    def __init__(self):
        import torch

        from benchmarks import reference, reference_multiscale

        torch.manual_seed(0)
        self.torch, self.reference, self.multiscale = torch, reference, reference_multiscale

    @functools.cache
    def _run(self, model: str) -> tuple:
        """Return (model, optimizer), as `Ours._run` does."""
        if model == "cvae":
            made = self.reference.CVAE()
            return made, self.torch.optim.Adam(made.parameters(), lr=1e-4)
        from configs import recommended

        config = recommended.get_config()
        options = config.model.multiscale
        made = self.multiscale.Multiscale(options.widths, options.latent_channels, patch=options.patch)
        decay = config.optimizer.weight_decay
        return made, self.torch.optim.AdamW(made.parameters(), lr=1e-4, weight_decay=decay)

    def _video(self, x: np.ndarray):
        return self.torch.from_numpy(x).permute(0, 1, 4, 2, 3).contiguous().float() / 255

    def train(self, batch: int, frames: int, teacher_forced: bool, model: str = "cvae") -> Callable[[], None]:
        video, labels = map(self._video, clips(batch, frames))
        made, optimizer = self._run(model)

        def repeat() -> None:
            made.train()
            if model == "cvae":
                loss = self.reference.train_step(made, optimizer, video, labels, BETA, teacher_forced)
            else:
                loss = self.multiscale.train_step(made, optimizer, video, labels)
            assert np.isfinite(loss)

        return repeat

    def rollout_case(self, batch: int, frames: int, model: str = "cvae") -> Callable[[], None]:
        video, labels = map(self._video, clips(batch, frames))
        made, _ = self._run(model)

        def repeat() -> None:
            made.eval()
            if model != "cvae":
                self.multiscale.prior_rollout(made, video[:, 0], labels)
                return
            shape = (batch, made.latent_channels, HEIGHT, WIDTH)
            noise = lambda t: self.torch.randn(shape)  # noqa: E731
            self.reference.prior_rollout(made, video[:, 0], labels, noise)

        return repeat

    def check(self, fixture: str) -> dict[str, float]:
        model, data = self.reference.from_fixture(fixture)
        frames, labels, eps = (data[f"in/{kind}"] for kind in ("frames", "labels", "eps"))
        losses = {}
        for case in ("train_tf", "train_ar"):
            model.train()
            loss, _ = self.reference.clip_loss(
                model, frames, labels, lambda t: eps[:, t - 1], float(data["in/beta"]), case == "train_tf"
            )
            losses[case] = loss.item()
        return losses

    def product(self, x: np.ndarray) -> Callable[[], None]:
        x = self.torch.from_numpy(x)
        return lambda: x @ x


def gemm_rate(multiply: Callable[[], None], size: int) -> float:
    """Return the best rate of an n x n product in GFLOP/s, over GEMM_SECONDS."""
    multiply()
    best, end = np.inf, time.perf_counter() + GEMM_SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def timed(repeat: Callable[[], None]) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    repeat()
    return time.perf_counter() - started


def main(side: str) -> None:
    answer = sys.stdout
    sys.stdout = sys.stderr
    worker = {"ours": Ours, "torch": Torch}[side]()
    ready: dict[str, Callable[[], None]] = {}
    print(json.dumps({"ready": True}), file=answer, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        case = request.pop("case")
        reply: dict[str, object] = {}
        if case == "check":
            reply = worker.check(**request)
        elif case == "gemm":
            size = request["size"]
            x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
            reply = {"gflops": gemm_rate(worker.product(x), size)}
        else:
            if line not in ready:
                ready[line] = (worker.train if case == "train" else worker.rollout_case)(**request)
                compiled = worker.compilations
                reply["first_seconds"] = timed(ready[line])
                reply["compilations"] = worker.compilations - compiled
            reply["seconds"] = timed(ready[line])
            reply["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(reply), file=answer, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
