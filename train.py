"""Train a model: python train.py --config=configs/monotonic.py [--workdir=W] [--config.field=value]."""

from cvae_jax import platform

platform.prepare(restart=__name__ == "__main__")

from pathlib import Path  # noqa: E402

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from cvae_jax import cli  # noqa: E402

_CONFIG = cli.told(
    lambda: config_flags.DEFINE_config_file("config", "configs/default.py", "The run's config.")
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/<config.name>.")


def main() -> None:
    from cvae_jax.train import train

    config = _CONFIG.value
    cli.told(lambda: config.to_dict())  # a config file that cannot be loaded says so only when used
    workdir = Path(_WORKDIR.value or Path("runs") / config.name)
    train(config, workdir)
    print(f"Trained; now run: python evaluate.py --workdir={workdir}")


if __name__ == "__main__":
    cli.run(main)
