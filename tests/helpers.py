"""What several test modules use: small recordings, a small config, and comparisons."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from cvae_jax import config as config_files
from cvae_jax import defaults
from cvae_jax.config import Components
from cvae_jax.data.clips import Recording
from cvae_jax.models.interface import StepInputs, init_variables
from cvae_jax.runtime.workdir import METRICS_FILE
from cvae_jax.training.checkpoint import Checkpoints
from cvae_jax.training.state import TrainState
from cvae_jax.training.throughput import FIELDS

ROOT = Path(__file__).parent.parent
TINY = [
    "--config.model.cvae.frame_features=8",
    "--config.model.cvae.label_features=2",
    "--config.model.cvae.latent_channels=4",
    "--config.model.cvae.decoder_features=8",
    "--config.batch_size=4",
    "--config.clip_length=6",
    "--config.eval.samples=1",
]


def tiny_config():
    config = defaults.get_config()
    config.num_epochs = 3
    config.batch_size = 4
    config.clip_length = 4
    config.model.cvae.update(frame_features=8, label_features=2, latent_channels=4, decoder_features=8)
    config.model.multiscale.update(widths=(4, 8), latent_channels=2, position_octaves=1)
    config.model.svg.update(width=2, code_size=4, latents=3, rnn_size=4, label_features=2)
    config.loss.kl = "per_element"
    config.teacher_forcing.initial = 0.5
    config.learning_rate.peak = 1e-3
    config.optimizer.ema_decay = 0.5
    config.eval.batch_size = 2
    config.log.images = False
    return config


def moving_square(name: str, length: int, seed: int, size=(16, 12)) -> Recording:
    """A bright square that walks over noise; the label marks where it is."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 80, (1, *size, 3), np.uint8), length, axis=0)
    labels = np.zeros_like(frames)
    for t in range(length):
        x, y = (2 * t + seed) % 8, (t + seed) % 12
        frames[t, y : y + 4, x : x + 4] = 220
        labels[t, y : y + 4, x : x + 4] = 255
    return Recording("square", name, 0, frames, labels)


def random_batch(clips=6, length=4, size=(16, 12)):
    """A batch of clips of noise with label images, the same at every call."""
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(0, 255, (clips, length, *size, 3), np.uint8) for name in ("frames", "labels")}
    return batch | {"mask": np.ones(clips, np.float32), "index": np.arange(clips, dtype=np.int32)}


def step_controls(forced, beta=1.0, learning_rate=1e-3):
    """The controls of a training step with seed 0; forced: of each step, or None (decisions per clip)."""
    controls = {"seed": np.uint32(0), "beta": np.float32(beta), "learning_rate": np.float32(learning_rate)}
    return controls if forced is None else controls | {"forced": np.array(forced, bool)}


class Killed(Exception):
    """What ends a run that `kill_after_saving` was called for."""


def kill_after_saving(run, step, meanwhile=lambda: None):
    """Let a run save a checkpoint after every step, and raise Killed when that of `step` is on disk."""
    save = run.checkpoints.save

    def save_then_die(number, *rest, **keywords):
        save(number, *rest, **keywords)
        run.checkpoints.wait()
        if number == step:
            meanwhile()
            raise Killed

    run.checkpoints.save = save_then_die
    run.cadence = dataclasses.replace(run.cadence, checkpoint_minutes=1e-9)


def random_steps(rng, frames, label, latent_shape, n_past=1):
    """Teacher-forced steps from frames (s + 1, b, h, w, 3) and the steps' labels, with noise from `rng`."""
    steps, clips = label.shape[:2]
    return StepInputs(
        t=1 + jnp.arange(steps),
        previous=frames[:-1],
        previous_is_true=jnp.ones(steps, bool),
        previous_is_given=jnp.arange(steps) < n_past,
        label=label,
        conditioning=label,
        noise=jnp.asarray(rng.normal(size=(steps, clips, *latent_shape)), jnp.float32),
        mask=jnp.ones((steps, clips)),
        target=frames[1:],
    )


def pad_to_devices(batch, num_devices):
    """A batch filled up to a multiple of the device count with masked copies of its first clip."""
    size = len(batch["mask"])
    extra = -size % num_devices
    padded = {k: np.concatenate([v, np.repeat(v[:1], extra, axis=0)]) for k, v in batch.items()}
    padded["mask"][size:] = 0
    padded["index"][size:] = np.arange(size, size + extra)
    return padded


def equations_in_loops(program, depth=0):
    """(number of loops around it, equation) of a jaxpr and of the loops, branches and functions in it."""
    for equation in getattr(program, "jaxpr", program).eqns:
        yield depth, equation
        inner = depth + (equation.primitive.name in ("scan", "while"))
        for part in jaxprs_in_params(equation.params):
            yield from equations_in_loops(part, inner)


def all_equations(program):
    """The equations of a jaxpr, and those of the loops, branches and functions in it."""
    return (equation for _, equation in equations_in_loops(program))


def read_rows(workdir):
    rows = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k and k not in FIELDS} for row in rows]


def flat(tree):
    """All numbers of a tree in one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def same_bits(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def restored(workdir, which="best", size=(32, 64), label_size=None):
    """(config, state) of a workdir's checkpoint, through the files that a run leaves."""
    config = config_files.load(workdir, defaults.get_config())
    parts = Components.build(config)
    template = TrainState.create(init_variables(parts.model, 0, size, label_size), parts.optimizer)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return config, checkpoints.restore(template, checkpoints.find(which))[0]
