"""Compare many runs: python study.py --config=configs/study.py --workdir=S [--config.base.field=value]."""

import os
import sys
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from cvae_jax import config_flag
from cvae_jax.runtime import cli, platform, processes
from cvae_jax.runtime.workdir import default_workdir
from cvae_jax.study import fields

DEFAULT = "configs/study.py"


def main() -> None:
    """Train and score every run of a study that is not done yet; print where the report is."""
    platform.prepare(restart=True, run_per_core=True)
    try:
        _run()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run() -> None:
    config = config_flag.define_file(DEFAULT, "The study's config.")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the study; default: runs/<config.name>.")
    cli.run(
        lambda: _study(config_flag.read(config, fields.get_config()), workdir.value),
        __doc__,
        explain=config_flag.explained,
        resumes=True,
    )


def _study(config: ConfigDict, workdir: str | None) -> None:
    from cvae_jax.study.run import run_study

    processes.require_one(cli.script("study"))
    folder = Path(workdir) if workdir else default_workdir(config.name)
    run_study(config, folder)
    print(f"The report is in {folder / 'report.md'} and {folder / 'report.html'}.")
