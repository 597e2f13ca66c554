"""One live side of the loaders' comparison: a request per line on stdin, an answer per line on stdout.

    python -m benchmarks.loader_worker ours|torch FOLDER CACHE

FOLDER is in the layout of the data set frame_folder, CACHE holds what was prepared from it. Requests and
answers are JSON:

    {"case": "epochs", "workers": 2}       torch: one epoch; answered with "clips" and "seconds"
    {"case": "epochs", "seconds": 1.0}     ours: so many seconds of epochs, to the device; likewise
    {"case": "host", "seconds": 1.0, "read_threads": 0}    ours: without the device (null: without grain)
    {"case": "steps", "milliseconds": 40, "number": 50}    ours: a stand-in for the training step
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cvae_jax.runtime import platform

BATCH, FRAMES = 10, 16
STUB_SIZE = 256  # of the matrices that the stand-in for a training step multiplies


class Torch:
    """The obvious loader: a clip opens its frames' and its labels' PNGs each time it is asked for."""

    def __init__(self, folder: Path, cache: Path):
        import torch

        torch.manual_seed(0)
        self.data, self.clips = torch.utils.data, PngClips(folder)

    def epochs(self, workers: int) -> dict[str, float]:
        loader = self.data.DataLoader(self.clips, batch_size=BATCH, shuffle=True, num_workers=workers)
        started = time.perf_counter()
        seen = sum(len(frames) for frames, _ in loader)
        return {"clips": seen, "seconds": time.perf_counter() - started}


class PngClips:
    """A map-style data set for PyTorch: clips of FRAMES frames and labels, float32 (T, 3, H, W) in [0, 1]."""

    def __init__(self, folder: Path):
        by_number = lambda path: int(path.stem.replace("frame", ""))  # noqa: E731
        self.files = [
            sorted((folder / "train" / kind).glob("*.png"), key=by_number)
            for kind in ("train_img", "train_label")
        ]

    def __len__(self) -> int:
        return len(self.files[0]) // FRAMES

    def __getitem__(self, index: int):
        import torch
        from PIL import Image

        def tensor(path: Path):
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
            return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

        part = slice(index * FRAMES, (index + 1) * FRAMES)
        return tuple(torch.stack([tensor(path) for path in paths[part]]) for paths in self.files)


class Ours:
    """This project's loader, and its way to the device."""

    def __init__(self, folder: Path, cache: Path):
        import jax

        from cvae_jax.data.datasets import frame_folder
        from cvae_jax.data.loader import TrainLoader
        from cvae_jax.runtime.devices import Devices

        recordings = frame_folder.load(data_dir=str(folder), cache_dir=str(cache), frame_size=None)["train"]
        self.jax = jax
        self.loader = TrainLoader(
            recordings, clip_length=FRAMES, stride=None, batch_size=BATCH, seed=0, shuffle=True
        )
        self.devices = Devices(jax.local_devices()[:1])
        self.epoch = 0

    def _to_device(self) -> Iterator[dict]:
        from cvae_jax.runtime.devices import prefetch

        self.epoch += 1
        return prefetch(self.devices.split(batch) for batch in self.loader.batches(self.epoch))

    def epochs(self, seconds: float) -> dict[str, float]:
        clips, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for batch in self._to_device():
                self.jax.block_until_ready(batch)
            clips += self.loader.num_clips
        return {"clips": clips, "seconds": time.perf_counter() - started}

    def host(self, seconds: float, read_threads: int | None) -> dict[str, float]:
        import dataclasses

        loader = dataclasses.replace(self.loader, read_threads=read_threads or 0)
        clips, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            self.epoch += 1
            if read_threads is None:
                source = loader.source(self.epoch)
                batches = (source[number] for number in range(len(source)))
            else:
                batches = loader.batches(self.epoch)
            for _ in batches:
                pass
            clips += loader.num_clips
        return {"clips": clips, "seconds": time.perf_counter() - started}

    def steps(self, milliseconds: float, number: int) -> dict[str, float]:
        """Take steps as train.py does: fed by the loader, and fed the same batch, already on the device."""
        step, products = self._stub(milliseconds)

        def feed() -> Iterator[dict]:
            while True:
                yield from self._to_device()

        def take(batches: Iterator[dict]) -> tuple[float, float]:
            previous, waited = None, 0.0
            started = asked = time.perf_counter()
            for _ in range(number):
                batch = next(batches)
                waited += time.perf_counter() - asked
                result = step(batch, products)
                if previous is not None:
                    previous.block_until_ready()
                previous, asked = result, time.perf_counter()
            previous.block_until_ready()
            return time.perf_counter() - started, waited

        resident = next(self._to_device())
        fixed, _ = take(iter([resident] * number))
        fed, waited = take(feed())
        return {"fed": fed, "resident": fixed, "waited": waited}

    def _stub(self, milliseconds: float):
        """Return a program that reads its batch and multiplies matrices, and how many take the time."""
        jax, jnp = self.jax, self.jax.numpy
        matrix = jnp.full((STUB_SIZE, STUB_SIZE), 1 / STUB_SIZE)

        @jax.jit
        def step(batch, products):
            pixels = sum(jnp.sum(batch[key], dtype=jnp.uint32) for key in ("frames", "labels"))
            start = matrix + pixels.astype(jnp.float32) * 1e-20
            return jax.lax.fori_loop(0, products, lambda _, x: x @ matrix, start).sum()

        batch = next(self._to_device())
        step(batch, 1).block_until_ready()
        trial, fastest = 100, np.inf
        for _ in range(5):
            started = time.perf_counter()
            step(batch, trial).block_until_ready()
            fastest = min(fastest, time.perf_counter() - started)
        return step, max(1, round(milliseconds / 1e3 / (fastest / trial)))


def main(side: str, folder: str, cache: str) -> None:
    answer = sys.stdout
    sys.stdout = sys.stderr
    platform.prepare()
    worker = {"ours": Ours, "torch": Torch}[side](Path(folder), Path(cache))
    print(json.dumps({"ready": True}), file=answer, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        reply = getattr(worker, request.pop("case"))(**request)
        print(json.dumps(reply), file=answer, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
