"""Train a model: python train.py --config=configs/monotonic.py [--workdir=W] [--config.field=value]."""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from cvae_jax import config_flag, defaults
from cvae_jax.runtime import cli, platform


def main() -> None:
    """Train the run in --workdir, or resume it, and print the command that scores it."""
    platform.prepare(restart=True)
    config = config_flag.define_file(defaults.__file__, "The run's config.")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/<config.name>.")
    extend = flags.DEFINE_boolean(
        "extend", False, "Resume with a larger config.num_epochs, which changes the schedules."
    )
    cli.run(
        lambda: _train(config_flag.read(config, defaults.get_config()), workdir.value, extend.value),
        __doc__,
        explain=config_flag.explained,
    )


def _train(config: ConfigDict, workdir: str | None, extend: bool) -> None:
    from cvae_jax.train import train

    folder = Path(workdir or Path("runs") / config.name)
    train(config, folder, extend=extend)
    print(f"Trained; now run: {cli.command('evaluate')} --workdir={folder}")
