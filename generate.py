"""Make videos: python generate.py --workdir=W --first=PNG --labels=FOLDER, or --clip, --drive or --csv."""

import sys
from pathlib import Path

from cvae_jax import platform

platform.prepare(restart=__name__ == "__main__")

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from configs import default  # noqa: E402
from cvae_jax import cli  # noqa: E402

flags.DEFINE_string("workdir", None, "Folder of a run that train.py has started.")
_REQUEST = {
    "checkpoint": flags.DEFINE_string("checkpoint", "best", "best, last, or a step."),
    "first": flags.DEFINE_string("first", None, "The first frame, a PNG."),
    "labels": flags.DEFINE_string("labels", None, "Folder of numbered PNGs, one per frame."),
    "clip": flags.DEFINE_string("clip", None, "Name or scene of a clip of the run's data set."),
    "person": flags.DEFINE_string("person", None, "Name or scene of the clip whose person is to move."),
    "drive": flags.DEFINE_string("drive", None, "Name or scene of the clip whose motion is taken."),
    "csv": flags.DEFINE_string("csv", None, "Write the lab's submission of the test sequences here."),
    "out": flags.DEFINE_string("out", None, "Folder of the pictures; default: generated/ of the workdir."),
    "samples": flags.DEFINE_integer("samples", None, "Samples side by side; default 3, with --drive 1."),
    "seed": flags.DEFINE_integer("seed", 0, "Of the noise."),
    "temperature": flags.DEFINE_float("temperature", 1.0, "Factor of the noise z."),
    "fps": flags.DEFINE_float("fps", 10.0, "Frames per second of GIF and MP4."),
}


def main() -> None:
    from cvae_jax.generate import Request, generate

    request = Request(**{name: flag.value for name, flag in _REQUEST.items()})
    for path in generate(_CONFIG.value, Path(flags.FLAGS.workdir), request):
        print(path)


if __name__ == "__main__":
    # The run's own config, read first, gives the --config.* flags their fields and types.
    stored = cli.stored_config(sys.argv, default.get_config())
    _CONFIG = cli.told(lambda: config_flags.DEFINE_config_dict("config", stored))
    cli.run(main)
