"""Score a run: python evaluate.py --workdir=W [--checkpoint=best|last|<step>] [--split=validation|test]."""

import sys
from pathlib import Path

from cvae_jax import platform

platform.prepare(restart=__name__ == "__main__")

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from configs import default  # noqa: E402
from cvae_jax import cli  # noqa: E402

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run that train.py has started.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last, or a step.")
_SPLIT = flags.DEFINE_enum("split", "validation", ("validation", "test"), "Which clips.")


def main() -> None:
    from cvae_jax.evaluate import evaluate, folder_of

    workdir = Path(_WORKDIR.value)
    evaluate(_CONFIG.value, workdir, _CHECKPOINT.value, split=_SPLIT.value)
    folder = folder_of(workdir, _SPLIT.value)
    print((folder / "table.md").read_text())
    print(f"Pictures and numbers are in {folder}.")


if __name__ == "__main__":
    # The run's own config, read first, gives the --config.* flags their fields and types.
    stored = cli.stored_config(sys.argv, default.get_config())
    _CONFIG = cli.told(lambda: config_flags.DEFINE_config_dict("config", stored))
    cli.run(main)
