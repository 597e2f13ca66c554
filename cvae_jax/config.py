"""From a config to the objects of a run, and the config's life on disk."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cvae_jax.errors import UserError
from cvae_jax.files import replacing
from cvae_jax.losses import Objective
from cvae_jax.models.cvae import CVAE, OUTPUTS, PRECISIONS
from cvae_jax.models.ops import FORMULATIONS
from cvae_jax.parallel import AXIS
from cvae_jax.rollout import Feedback
from cvae_jax.schedules import BetaSchedule, LearningRate, TeacherForcing
from cvae_jax.train_state import Optimizer

FILE = "config.json"
LEAST_DIMENSIONS = {
    "frame_features": 8,
    "label_features": 2,
    "latent_channels": 4,
    "decoder_features": 8,
}
# Fields that do not change what is trained: a resumed run may differ in them.
FREE_ON_RESUME = ("name", "data.cache", "data.dir", "eval.", "checkpoint.", "log.", "wandb")


@dataclasses.dataclass(frozen=True)
class Components:
    """What a config describes, checked: one object per section."""

    model: CVAE
    objective: Objective
    feedback: Feedback
    beta: BetaSchedule
    forcing: TeacherForcing
    learning_rate: LearningRate
    optimizer: Optimizer
    n_past: int

    @classmethod
    def build(cls, config: ConfigDict) -> Components:
        """Unpack and check a config; raises UserError with one sentence naming the field."""
        _check_run(config)
        rollout = dict(config.rollout)
        if rollout["fold_time"] is None:
            rollout["fold_time"] = jax.default_backend() != "cpu"
        parts = cls(
            model=_model(config),
            objective=Objective(**config.loss),
            feedback=Feedback(**rollout),
            beta=BetaSchedule(**config.beta),
            forcing=TeacherForcing(**config.teacher_forcing),
            learning_rate=LearningRate(**config.learning_rate),
            optimizer=Optimizer(**config.optimizer),
            n_past=config.n_past,
        )
        place = dict(epoch=0, step=0, num_epochs=config.num_epochs)
        parts.learning_rate.value(**place, steps_per_epoch=1)
        if config.beta.unit == "epoch":
            parts.beta.value(**place, steps_per_epoch=1)
        return parts

    @property
    def traced(self) -> Components:
        """These components but for the schedules, whose values reach the compiled step as arguments.

        Runs for which this is equal have the same compiled programs.
        """
        return dataclasses.replace(
            self, beta=BetaSchedule(), forcing=TeacherForcing(), learning_rate=LearningRate()
        )


def _model(config: ConfigDict) -> CVAE:
    section = config.model
    for field, least in LEAST_DIMENSIONS.items():
        if section[field] < least:
            raise UserError(
                f"config.model.{field} is {section[field]}; give at least {least}, "
                "the model divides it into whole parts."
            )
    for field, known in (("output", OUTPUTS), ("formulation", FORMULATIONS)):
        if section[field] not in known:
            raise UserError(f"config.model.{field} is {section[field]!r}; choose one of {', '.join(known)}.")
    if config.precision not in PRECISIONS:
        raise UserError(f"config.precision is {config.precision!r}; choose one of {', '.join(PRECISIONS)}.")
    return CVAE(**section, precision=config.precision, axis_name=AXIS)


def _check_run(config: ConfigDict) -> None:
    least = {
        "num_epochs": 1,
        "batch_size": 1,
        "clip_length": 2,
        "n_past": 1,
        "seed": 0,
        "data.stride": 1,
        "data.frame_step": 1,
        "data.dancer.seed": 0,
        "data.dancer.train_frames": 1,
        "data.dancer.validation_frames": 2,
        "data.dancer.test_sequences": 0,
        "data.dancer.test_frames": 2,
        "data.stochastic_moving_mnist.seed": 0,
        "data.stochastic_moving_mnist.digits": 1,
        "data.stochastic_moving_mnist.train_sequences": 1,
        "data.stochastic_moving_mnist.train_frames": 2,
        "data.stochastic_moving_mnist.validation_sequences": 1,
        "data.stochastic_moving_mnist.test_sequences": 0,
        "data.stochastic_moving_mnist.eval_frames": 2,
        "data.kth.eval_frames": 2,
        "data.bair.train_sequences": 1,
        "data.bair.validation_sequences": 1,
        "model.position_octaves": 0,
        "model.history": 0,
        "eval.every": 1,
        "eval.samples": 1,
        "eval.best_of": 0,
        "eval.temperature": 0,
        "eval.batch_size": 1,
        "eval.chunk": 1,
        "eval.seed": 0,
        "data.clips_per_epoch": 1,
        "checkpoint.every": 1,
        "checkpoint.keep": 1,
        "checkpoint.save_every": 0,
        "checkpoint.minutes": 0,
    }
    values = flatten(config.to_dict())
    for field, smallest in least.items():
        value = values[field]
        if value is not None and not value >= smallest:
            raise UserError(f"config.{field} is {value!r}; give at least {smallest}.")
    for field in ("seed", "eval.seed", "data.dancer.seed", "data.stochastic_moving_mnist.seed"):
        if not values[field] < 2**32:
            raise UserError(f"config.{field} is {values[field]!r}; give a number below 2**32.")
    if config.clip_length <= config.n_past:
        raise UserError(
            f"config.clip_length is {config.clip_length}; give more than config.n_past={config.n_past}, the "
            "frames of a clip that are given."
        )
    if config.model.history >= config.n_past:
        raise UserError(
            f"config.model.history is {config.model.history}; give less than config.n_past={config.n_past}: "
            "the first predicted frame would have no such past."
        )
    every, kept = config.checkpoint.every, config.checkpoint.save_every
    if kept % every:
        raise UserError(
            f"config.checkpoint.save_every is {kept}; give a multiple of config.checkpoint.every={every}, "
            "the epochs that have a checkpoint to keep."
        )
    size = config.data.frame_size
    if size is not None and (
        len(size) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 11 for n in size)
    ):
        raise UserError(
            f"config.data.frame_size is {size!r}; give (height, width) in pixels, "
            "each at least 11 (the window of SSIM)."
        )


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Return {'a.b': value} of nested dicts."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def save(config: ConfigDict, workdir: Path) -> None:
    """Write W/config.json atomically."""
    try:
        with replacing(workdir / FILE) as partial:
            partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"Cannot write to the workdir {workdir} ({error.strerror}); give --workdir a folder that can "
            "be written."
        ) from error


def load(workdir: Path, template: ConfigDict) -> ConfigDict:
    """Read W/config.json into a copy of `template` (the defaults), which gives the fields their types."""
    path = workdir / FILE
    if not path.is_file():
        raise UserError(
            f"There is no run in {workdir} ({FILE} is missing); "
            "give the --workdir of a run that train.py has started."
        )
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict):
            raise UserError(f"{path} cannot be read as a config: it holds no object of fields.")
        unknown = sorted(_unknown(stored, template.to_dict()))
        if unknown:
            raise UserError(f"{path} has fields this version does not know: {', '.join(map(repr, unknown))}.")
        config = copy.deepcopy(template)
        config.update(_tuples(stored))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a config of this version: {reason}") from None
    return config


def _unknown(stored: dict, template: dict, prefix: str = "") -> Iterator[str]:
    """Yield the fields of `stored`, 'a.b', that `template` does not have."""
    for key, value in stored.items():
        if key not in template:
            yield f"{prefix}{key}"
        elif isinstance(value, dict) and isinstance(template[key], dict):
            yield from _unknown(value, template[key], f"{prefix}{key}.")


def refuse_other_training(config: ConfigDict, stored: ConfigDict, workdir: Path) -> None:
    """Raise UserError naming the fields in which a resumed run would train something else."""
    new, old = flatten(config.to_dict()), flatten(stored.to_dict())
    changed = [
        f"config.{field} is {new[field]!r} but was {old[field]!r}"
        for field in sorted(old)
        if new[field] != old[field]
        and not field.startswith(FREE_ON_RESUME)
        and not (field == "num_epochs" and new[field] > old[field])
    ]
    if changed:
        raise UserError(
            f"The run in {workdir} was started with another config: {'; '.join(changed)}. "
            "Give the same values to go on with it, or another --workdir to start anew."
        )


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value
