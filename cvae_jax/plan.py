"""What a run needs, before you rent a machine: python -m cvae_jax.plan --config=configs/X.py [--chip=h100].

Prints the parameters, the operations of a training step, the memory of a device, the largest batch that fits
it, and an estimate of the step's time. The step is built as train.py builds it and compiled on this machine,
from the shapes of its arguments alone; nothing is trained and the chip need not be here.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from cvae_jax import config_flag, defaults
from cvae_jax.runtime import cli, platform


def main() -> None:
    """Print the plan of the run that --config describes."""
    platform.prepare(restart=True)
    from cvae_jax.runtime.chips import CHIPS, DEFAULT_CHIP, MARGIN  # not before the settings of JAX are made

    config = config_flag.define_file(defaults.__file__, "The run's config.")
    settings = {
        "chip": flags.DEFINE_enum("chip", DEFAULT_CHIP, CHIPS, "Kind of device; cpu: this machine's CPU."),
        "devices": flags.DEFINE_integer("devices", 1, "Devices that share a batch.", lower_bound=1),
        "utilisation": flags.DEFINE_float(
            "utilisation",
            None,
            "Share of the chip's peak to assume, in (0, 1]; default: as measured (docs/plan.md).",
        ),
        "margin": flags.DEFINE_float("margin", MARGIN, "Share of the chip's memory to keep free, in [0, 1)."),
        "load": flags.DEFINE_boolean(
            "load_data", False, "Load the training data, for the time of an epoch and of the run."
        ),
    }
    file = flags.DEFINE_string("json", None, "Also write the numbers to this file.")
    cli.run(
        lambda: _plan(
            config_flag.read(config, defaults.get_config()),
            {name: flag.value for name, flag in settings.items()},
            file.value,
        ),
        __doc__,
        help=f"see {cli.PLAN} --help",
        form="write --config.field=value and --chip=NAME",
        explain=config_flag.explained,
    )


def _plan(config: ConfigDict, settings: dict[str, Any], file: str | None) -> None:
    utilisation, margin = settings["utilisation"], settings["margin"]
    if utilisation is not None and not 0 < utilisation <= 1:
        cli.fail(f"--utilisation is {utilisation}; give a number in (0, 1].")
    if not 0 <= margin < 1:
        cli.fail(f"--margin is {margin}; give a number in [0, 1).")
    from cvae_jax.planning.plan import make_plan
    from cvae_jax.planning.report import to_json, to_text
    from cvae_jax.runtime.files import replacing, require_writable

    if file is not None:
        require_writable(Path(file).absolute().parent, "give --json a file in a folder that can be written")
        if Path(file).is_dir():
            cli.fail(f"--json={file} is a folder; give a file.")
    plan = make_plan(config, **settings)
    print(to_text(plan))
    if file is not None:
        with replacing(file) as partial:
            partial.write_text(json.dumps(to_json(plan), indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
