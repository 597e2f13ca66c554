"""Train a model: python train.py --config=configs/monotonic.py [--workdir=W] [--config.field=value]."""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from cvae_jax import config_flag, defaults
from cvae_jax.runtime import cli, platform, preemption, processes
from cvae_jax.runtime.workdir import default_workdir
from cvae_jax.scripts import job


def main() -> None:
    """Train the run in --workdir, or resume it, and print the command that scores it."""
    platform.prepare(restart=True)
    config = config_flag.define_file(defaults.__file__, "The run's config.")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/<config.name>.")
    extend = flags.DEFINE_boolean(
        "extend", False, "Resume with a larger config.num_epochs, which changes the schedules."
    )
    resume_from = flags.DEFINE_integer(
        "resume_from",
        None,
        "Go back to the checkpoint of this step and set newer ones aside; ignored if that has been done.",
    )
    job.define()
    cli.run(
        lambda: _train(
            config_flag.read(config, defaults.get_config()), workdir.value, extend.value, resume_from.value
        ),
        __doc__,
        explain=config_flag.explained,
        resumes=True,
    )


def _train(config: ConfigDict, workdir: str | None, extend: bool, resume_from: int | None) -> None:
    from cvae_jax.train import open_run
    from cvae_jax.training.loop import Preempted

    folder = Path(workdir) if workdir else default_workdir(config.name)

    def body() -> None:
        run = open_run(config, folder, extend=extend, resume_from=resume_from)
        said = f"Trained; now run: {cli.command('evaluate')} --workdir={folder}"
        with preemption.noticed() as preempted:
            try:
                run.finish(preempted)
            except Preempted as stop:
                said = "Stopped by SIGTERM before the first step: nothing was saved."
                if stop.step:
                    said = (
                        f"Stopped by SIGTERM; the checkpoint of step {stop.step} is in {folder}. Run the "
                        "same command again to resume."
                    )
        if processes.is_first():
            print(said)

    job.run(body, resumes=True)
