"""Compare many runs: python study.py --config=configs/study.py --workdir=S [--config.base.field=value]."""

from cvae_jax import platform

platform.prepare(restart=__name__ == "__main__", run_per_core=True)

import os  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from cvae_jax import cli  # noqa: E402

_CONFIG = cli.told(lambda: config_flags.DEFINE_config_file("config", "configs/study.py", "What is compared."))
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study; default: runs/<config.name>.")


def main() -> None:
    from cvae_jax.study import conduct

    config = _CONFIG.value
    cli.told(lambda: config.to_dict())
    workdir = Path(_WORKDIR.value or Path("runs") / config.name)
    conduct(config, workdir)
    print(f"The report is in {workdir / 'report.md'} and {workdir / 'report.html'}.")


if __name__ == "__main__":
    try:
        cli.run(main)
    # Without waiting for runs that other threads are in the middle of: what they have saved is whole.
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
