"""The runs of a study: each variant of a base config over several seeds."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from cvae_jax.config import Components
from cvae_jax.data.contents import SPLITS
from cvae_jax.runtime.cli import one_line
from cvae_jax.runtime.config_fields import field_sentence
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.workdir import read_metrics

STOPPED = "stopped.json"
MOST_RUNS = 10_000


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run of a study: its variant, its seed, its whole config and its folder."""

    variant: str
    seed: int
    config: ConfigDict
    workdir: Path

    @property
    def stopped(self) -> bool:
        """Whether a non-finite number ended the run."""
        return (self.workdir / STOPPED).exists()

    @property
    def epochs_shown(self) -> list[int]:
        """After how many epochs figure 4 shows it: halfway, if that checkpoint is kept, and at the end."""
        epochs, kept = self.config.num_epochs, self.config.checkpoint.save_every
        return [epochs // 2, epochs] if kept and epochs % (2 * kept) == 0 else [epochs]

    @property
    def history(self) -> list[dict]:
        """The rows of its metrics.jsonl."""
        return read_metrics(self.workdir)

    def scores_path(self, split: str, epoch: int) -> Path:
        """Return the file with the scores of the checkpoint after `epoch` epochs on a split."""
        return self.workdir / "study" / f"{split}_epoch_{epoch}.json"

    def scores(self, split: str, epoch: int) -> dict | None:
        """Return those scores, if they have been made; UserError for a file that does not hold them."""
        path = self.scores_path(split, epoch)
        if not path.exists():
            return None
        try:
            scores = json.loads(path.read_text())
            if not {"eval", "rows"} <= scores.keys():
                raise ValueError
        except (ValueError, AttributeError, RecursionError):
            raise UserError(f"{path} is damaged: delete it, and the run is scored again.") from None
        return scores


def plan(study: ConfigDict, workdir: Path) -> list[Planned]:
    """Return the runs of a study, seed after seed, so that the runs done first can be compared.

    Raises UserError for a variant that changes a field that does not exist or gives it an invalid value, and
    for figures of variants that do not exist; variants that were not chosen are left out of the figures.
    """
    _check(study)
    runs = []
    for seed in range(study.base.seed, study.base.seed + study.seeds):
        for name in study.variants:
            config = copy.deepcopy(study.base).lock()
            try:
                config.update(study.changes[name])
            except (AttributeError, KeyError, TypeError) as error:
                text = field_sentence(error) or one_line(error)
                raise UserError(f"config.changes.{name} does not fit the config of a run: {text}") from None
            config.seed, config.name = seed, name
            Components.build(config).require_packages()
            runs.append(Planned(name, seed, config, workdir / "runs" / name / f"seed_{seed}"))
    return runs


def _check(study: ConfigDict) -> None:
    if study.seeds < 1:
        raise UserError(f"config.seeds is {study.seeds}; give at least 1.")
    if study.together is not None and study.together < 1:
        raise UserError(f"config.together is {study.together}; give at least 1, or leave it out.")
    if study.seeds * len(study.variants) > MOST_RUNS:
        raise UserError(
            f"config.seeds is {study.seeds}, for each of {len(study.variants)} variants; give at most "
            f"{MOST_RUNS} runs in all."
        )
    if study.base.seed + study.seeds > 2**32:
        raise UserError(
            f"config.seeds is {study.seeds} and config.base.seed {study.base.seed}; keep "
            "all seeds below 2**32."
        )
    if study.split not in SPLITS:
        raise UserError(f"config.split is {study.split!r}; choose one of {', '.join(SPLITS)}.")
    unknown = [name for name in study.variants if name not in study.changes]
    if unknown or not study.variants:
        raise UserError(f"config.variants is {study.variants}; choose among {', '.join(study.changes)}.")
    shown = {f"config.figures.{field}": names for field, names in study.figures.items()}
    for field, names in (shown | {"config.compare": study.compare}).items():
        for name in (names,) if isinstance(names, str) else names:
            if name and name not in study.changes:
                raise UserError(
                    f"{field} names {name!r}; choose among the variants {', '.join(study.changes)}."
                )
    if study.base.profile_steps:
        raise UserError(
            "config.base.profile_steps traces the steps of a single run: give it to train.py, and leave it "
            "out of a study."
        )
    if study.base.wandb:
        raise UserError(
            "config.base.wandb is True, but the runs of a study log to their folders only; leave it out."
        )


def scorings(study: ConfigDict, run: Planned) -> Iterator[tuple[str, int]]:
    """Yield (split, epochs trained) for each scoring of a run: for the table, and for figure 4."""
    yield study.split, run.config.num_epochs
    if run.variant in (*study.figures.schedules, *study.figures.schedules_scaled):
        for epoch in run.epochs_shown:
            if (study.split, run.config.num_epochs) != ("validation", epoch):
                yield "validation", epoch
