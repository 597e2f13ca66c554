"""Score a run: python evaluate.py --workdir=W [--checkpoint=best|last|<step>] [--split=validation|test]."""

from pathlib import Path
from typing import cast

from absl import flags
from ml_collections import ConfigDict

from cvae_jax import config_flag, defaults
from cvae_jax.runtime import cli, platform, preemption, processes
from cvae_jax.scripts import job


def main() -> None:
    """Score a checkpoint of the run in --workdir; print the table and where the pictures are."""
    platform.prepare(restart=True)
    workdir = flags.DEFINE_string("workdir", None, f"Folder of a run that {cli.script('train')} has started.")
    checkpoint = flags.DEFINE_string("checkpoint", "best", "best, last, or a step.")
    split = flags.DEFINE_enum(
        "split",
        None,
        ("validation", "test"),
        "Split to score; default: test if the data set has one, otherwise validation.",
    )
    job.define()
    config = config_flag.define_stored(defaults.get_config())  # ends the program without --workdir
    cli.run(
        lambda: _evaluate(config.value, Path(cast(str, workdir.value)), checkpoint.value, split.value),
        __doc__,
    )


def _evaluate(config: ConfigDict, workdir: Path, checkpoint: str, split: str | None) -> None:
    from cvae_jax.evaluation.evaluate import evaluate
    from cvae_jax.report.results import folder_with

    def body() -> None:
        preemption.end_at_once()
        results = evaluate(config, workdir, checkpoint, split=split)
        if processes.is_first():
            folder = folder_with(workdir, results["protocol"]["split"])
            print((folder / "table.md").read_text())
            print(f"Pictures and numbers are in {folder}.")

    job.run(body)
