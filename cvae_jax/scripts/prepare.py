"""Make a data set of a video of one person: python prepare.py --video=my_dance.mp4 --out=data/me."""

from typing import Any

from absl import flags

from cvae_jax.runtime import cli  # neither this nor what follows imports JAX

_TEXT = {
    "video": "A video file, a GIF or a folder of numbered frames.",
    "out": "Folder to write the data set to.",
    "keypoints": "Existing poses: a JSON file, or a folder of OpenPose's JSON files.",
}
_NUMBER = {
    "fps": "Frames per second of the data set; default: the video's own rate, at most 30.",
    "source_fps": "Frames per second of a folder of frames; default 30.",
    "start": "Start time in the video, in seconds.",
    "end": "End time in the video, in seconds.",
}
_SHARE = {
    "margin": (0.2, "Margin around the body, as a share of its size; not used with --crop."),
    "max_gap": (1 / 3, "Seconds without a person up to which the pose is interpolated."),
    "validation": (0.1, "Share of the frames to validate on."),
    "test": (0.1, "Share of the frames, at the end of the video, to test on; 0: no test split."),
}


def main() -> None:
    """Turn --video into a data set in --out; print what was found and the command that trains on it."""
    settings = {
        **{name: flags.DEFINE_string(name, None, help) for name, help in _TEXT.items()},
        **{name: flags.DEFINE_float(name, None, help) for name, help in _NUMBER.items()},
        **{name: flags.DEFINE_float(name, default, help) for name, (default, help) in _SHARE.items()},
        "overwrite": flags.DEFINE_boolean("overwrite", False, "Replace a prepared data set at --out."),
    }
    crop = flags.DEFINE_string("crop", None, "x0,y0,x1,y1 in pixels of the video; default: around the body.")
    frame_size = flags.DEFINE_string(
        "frame_size", None, "H,W; default 64,32 where what is kept is taller than wide, else 32,64."
    )
    cli.run(
        lambda: _prepare({name: flag.value for name, flag in settings.items()}, crop.value, frame_size.value),
        __doc__,
        help=f"see {cli.command('prepare')} --help",
        form="write --video=FILE and --out=FOLDER",
    )


def _prepare(settings: dict[str, Any], crop: str | None, frame_size: str | None) -> None:
    for name in ("video", "out"):
        if not settings[name]:
            cli.fail(f"--{name} is missing; give --video=my_dance.mp4 --out=data/me.")
    from cvae_jax.prepare.preparation import prepare
    from cvae_jax.prepare.settings import Settings, numbers

    boxes: dict[str, Any] = {
        "crop": numbers("crop", crop, "x0,y0,x1,y1"),
        "frame_size": numbers("frame_size", frame_size, "H,W"),
    }
    for line in prepare(Settings(**settings, **boxes)):
        print(line, flush=True)
