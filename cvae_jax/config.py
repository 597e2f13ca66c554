"""From a config to the objects of a run, and the config's life on disk."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from cvae_jax import defaults, models
from cvae_jax.data import datasets
from cvae_jax.losses import Objective
from cvae_jax.models.adversarial import AdversarialOptions
from cvae_jax.models.interface import VideoModel
from cvae_jax.options import CheckpointOptions, EvaluationOptions, refuse_below
from cvae_jax.rollout.scan import RolloutOptions
from cvae_jax.runtime import cli, processes
from cvae_jax.runtime.backend import target_backend
from cvae_jax.runtime.config_fields import unusable_values, wrong_fields
from cvae_jax.runtime.devices import AXIS
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import replacing
from cvae_jax.runtime.progress import tell
from cvae_jax.schedules import BetaSchedule, LearningRate, TeacherForcing
from cvae_jax.training.augment import Augmentation
from cvae_jax.training.nonfinite import NonFinite
from cvae_jax.training.profile import check_steps
from cvae_jax.training.state import Optimizer

FILE = "config.json"
# Fields that do not change what is trained: a resumed run may differ in them.
FREE_ON_RESUME = (
    "name",
    "data.cache",
    "data.dir",
    "wandb",
    "profile_steps",
    "rollout.fold_time",
    "rollout.time_chunk",
    "rollout.remat",
)
FREE_SECTIONS_ON_RESUME = ("eval.", "checkpoint.", "log.", "nonfinite")


@dataclasses.dataclass(frozen=True)
class Components:
    """What a config describes, checked: one object per section."""

    model: VideoModel
    objective: Objective
    rollout: RolloutOptions
    beta: BetaSchedule
    forcing: TeacherForcing
    learning_rate: LearningRate
    optimizer: Optimizer
    augmentation: Augmentation
    evaluation: EvaluationOptions
    checkpoint: CheckpointOptions
    n_past: int

    @classmethod
    def build(cls, config: ConfigDict) -> Components:
        """Unpack and check a config; raises UserError with one sentence naming the field."""
        _check_run(config)
        datasets.check(config.data)
        adversarial = AdversarialOptions(**config.adversarial)
        critic = adversarial if adversarial.weight else None
        model = models.build(config.model, config.precision, AXIS, critic)
        rollout = dict(config.rollout)
        if rollout["fold_time"] is None:
            worth_it = model.gradient_crosses_time or not model.sees_previous
            rollout["fold_time"] = worth_it or target_backend() != "cpu"
        parts = cls(
            model=model,
            objective=Objective(**config.loss),
            rollout=RolloutOptions(**rollout),
            beta=BetaSchedule(**config.beta),
            forcing=TeacherForcing(**config.teacher_forcing),
            learning_rate=LearningRate(**config.learning_rate),
            optimizer=Optimizer(**config.optimizer, critic=critic),
            augmentation=Augmentation(**config.augment),
            evaluation=EvaluationOptions(**config.eval),
            checkpoint=CheckpointOptions(**config.checkpoint),
            n_past=config.n_past,
        )
        parts.model.check(config.n_past, parts.rollout.cut_feedback)
        if parts.objective.kl_balance and not parts.model.has_learned_prior:
            kind = config.model.kind
            raise UserError(
                f"config.loss.kl_balance is {config.loss.kl_balance}, but the prior of config.model.{kind} "
                f"is fixed: set config.loss.kl_balance=0, or config.model.{kind}.prior=learned."
            )
        parts.learning_rate.check_length(config.num_epochs)
        if config.beta.unit == "epoch":
            parts.beta.value(epoch=0, step=0, num_epochs=config.num_epochs, steps_per_epoch=1)
        return parts

    def require_packages(self) -> None:
        """Raise UserError where the loss or a metric needs a package that is not installed."""
        self.objective.require_packages()
        self.evaluation.require_packages()

    @property
    def compiled(self) -> tuple[VideoModel, Objective, RolloutOptions, int, Optimizer]:
        """What the compiled programs depend on; the values of the schedules reach them as arguments.

        (Where no draw decides teacher forcing, that of the training step also depends on it: see
        `Controls.throughout`.)
        """
        return self.model, self.objective, self.rollout, self.n_past, self.optimizer


def _check_run(config: ConfigDict) -> None:
    check_fields(config, defaults.get_config())
    for sentence in unusable_values(config):
        raise UserError(f"{sentence}.")
    least = dict(num_epochs=1, batch_size=1, accumulate_steps=1, clip_length=2, n_past=1, seed=0)
    refuse_below("", config, least)
    refuse_below("data.", config.data, dict(stride=1, frame_step=1, repeats=1, clips_per_epoch=1))
    NonFinite(config.nonfinite, config.nonfinite_limit)
    check_steps(config.profile_steps)
    if config.clip_length <= config.n_past:
        raise UserError(
            f"config.clip_length is {config.clip_length}; give more than config.n_past={config.n_past}, the "
            "frames of a clip that are given."
        )
    size = config.data.frame_size
    if size is not None and (
        len(size) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 11 for n in size)
    ):
        raise UserError(
            f"config.data.frame_size is {size!r}; give (height, width) in pixels, "
            "each at least 11 (the window of SSIM)."
        )


def check_fields(config: ConfigDict, template: ConfigDict) -> None:
    """Raise UserError unless a config has exactly the fields of `template`, with values of their types.

    An int may stand for a float, and None for the value of a field that is None in `template`. A section
    that is empty in `template` is open: what it holds is not checked.
    """
    if wrong := list(wrong_fields(config, template)):
        raise UserError(f"The config does not fit: {'; '.join(wrong)} ({cli.CONFIG_HELP}).")


def agreed(config: ConfigDict) -> Components:
    """Return what a config describes, with its packages installed, in all processes of a job alike.

    Raises UserError where it does not fit, or processes have different ones; where data lie may differ.
    """
    parts = processes.on_each(lambda: Components.build(config))
    processes.on_each(parts.require_packages)
    fields = sorted(flatten_dict(config.to_dict(), sep=".").items())
    compared = [field for field in fields if field[0] not in ("data.dir", "data.cache")]
    processes.require_same("configs", repr(compared))
    processes.require_same_program()
    return parts


def save(config: ConfigDict, workdir: Path) -> None:
    """Write W/config.json atomically."""
    with replacing(workdir / FILE) as partial:
        partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def load(workdir: Path, template: ConfigDict) -> ConfigDict:
    """Read W/config.json into a copy of `template` (the defaults), which gives the fields their types."""
    path = workdir / FILE
    if not path.is_file():
        raise UserError(
            f"There is no run in {workdir} ({FILE} is missing); "
            f"give the folder of a run that {cli.script('train')} has started."
        )
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict):
            raise UserError(f"{path} cannot be read as a config: it holds no object of fields.")
        stored = models.from_first_format(stored)
        unknown = sorted(_unknown(stored, template.to_dict()))
        if unknown:
            raise UserError(f"{path} has fields this version does not know: {', '.join(map(repr, unknown))}.")
        config = copy.deepcopy(template)
        config.update(_tuples(stored))
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a config of this version: {reason}") from None
    if wrong := list(wrong_fields(config, template)):
        raise UserError(f"{path} cannot be read as a config of this version: {'; '.join(wrong)}.")
    return config


def _unknown(stored: dict, template: dict, prefix: str = "") -> Iterator[str]:
    """Yield the fields of `stored`, 'a.b', that `template` does not have."""
    for key, value in stored.items():
        if key not in template:
            yield f"{prefix}{key}"
        elif isinstance(value, dict) and isinstance(template[key], dict):
            yield from _unknown(value, template[key], f"{prefix}{key}.")


def refuse_other_training(
    config: ConfigDict, stored: ConfigDict, workdir: Path, extend: bool = False
) -> None:
    """Raise UserError naming the fields in which a resumed run would train something else.

    With `extend`, num_epochs may be larger; then a line says what that changes.
    """
    new, old = (flatten_dict(c.to_dict(), sep=".") for c in (config, stored))
    longer = new["num_epochs"] > old["num_epochs"]
    changed = [
        f"config.{field} is {new[field]!r} but was {old[field]!r}"
        for field in sorted(old)
        if new[field] != old[field]
        and not (field in FREE_ON_RESUME or field.startswith(FREE_SECTIONS_ON_RESUME))
        and not (field == "num_epochs" and longer and extend)
    ]
    if changed:
        advice = "give the same values to resume it, or another --workdir to start a new one."
        if longer and not extend:
            advice = (
                f"{_spans_the_run(config).capitalize()} over config.num_epochs, so another length is another "
                f"training: add --extend to resume with {new['num_epochs']} epochs all the same; otherwise "
                + advice
            )
        raise UserError(
            f"The run in {workdir} was started with another config: {'; '.join(changed)}. "
            f"{advice[0].upper()}{advice[1:]}"
        )
    if longer:
        tell(
            f"Extending the run from {old['num_epochs']} to {new['num_epochs']} epochs: "
            f"{_spans_the_run(config)} over all {new['num_epochs']} from here on; the epochs already trained "
            f"used the schedule of {old['num_epochs']}."
        )


def _spans_the_run(config: ConfigDict) -> str:
    """Return which schedules depend on num_epochs, with a verb."""
    if config.beta.kind == "fu_cyclical":
        return "the learning rate's cosine and beta's cycles are stretched"
    return "the learning rate's cosine is stretched"


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value
