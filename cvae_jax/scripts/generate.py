"""Make videos: python generate.py --workdir=W --first=PNG --labels=FOLDER, or --clip, --drive or --csv."""

from pathlib import Path
from typing import Any, cast

from absl import flags
from ml_collections import ConfigDict

from cvae_jax import config_flag, defaults
from cvae_jax.runtime import cli, platform, processes


def main() -> None:
    """Generate videos with the run in --workdir; print the path of each file that was written."""
    platform.prepare(restart=True)
    workdir = flags.DEFINE_string("workdir", None, f"Folder of a run that {cli.script('train')} has started.")
    request = {
        "checkpoint": flags.DEFINE_string("checkpoint", "best", "best, last, or a step."),
        "first": flags.DEFINE_string("first", None, "The first frame, a PNG."),
        "labels": flags.DEFINE_string("labels", None, "Folder of numbered PNGs, one per frame."),
        "clip": flags.DEFINE_string("clip", None, "Name or scene of a clip of the run's data set."),
        "person": flags.DEFINE_string("person", None, "Name or scene of the clip whose person is to move."),
        "drive": flags.DEFINE_string("drive", None, "Name or scene of the clip whose motion is taken."),
        "csv": flags.DEFINE_string(
            "csv", None, "File for the lab's submission: its test sequences, predicted."
        ),
        "out": flags.DEFINE_string(
            "out", None, "Folder of the pictures; default: generated/ of the workdir."
        ),
        "samples": flags.DEFINE_integer("samples", None, "Samples side by side; default 3, with --drive 1."),
        "seed": flags.DEFINE_integer("seed", 0, "Seed of the noise."),
        "temperature": flags.DEFINE_float("temperature", 1.0, "Multiplies the noise that z is drawn with."),
        "masks": flags.DEFINE_boolean("masks", False, "Also show which pixels are copied (sample 0)."),
        "fps": flags.DEFINE_float("fps", 10.0, "Frames per second of GIF and MP4."),
    }
    config = config_flag.define_stored(defaults.get_config())  # ends the program without --workdir
    cli.run(
        lambda: _generate(
            config.value, Path(cast(str, workdir.value)), {name: flag.value for name, flag in request.items()}
        ),
        __doc__,
    )


def _generate(config: ConfigDict, workdir: Path, request: dict[str, Any]) -> None:
    from cvae_jax.generation.generate import Request, generate

    asked = Request(**request)
    processes.require_one(cli.script("generate"))
    for path in generate(config, workdir, asked):
        print(path)
