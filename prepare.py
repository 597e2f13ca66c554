"""Make a data set of a video of one person: python prepare.py --video=my_dance.mp4 --out=data/me."""

from absl import flags

from cvae_jax import cli  # neither this nor what follows imports JAX

_TEXT = {
    "video": "A video file, a GIF or a folder of numbered frames.",
    "out": "The folder that the data set becomes.",
    "keypoints": "Poses found elsewhere: a JSON file, or OpenPose's folder of them.",
}
_NUMBER = {
    "fps": "Frames per second of the data set; default: the video's own rate, at most 30.",
    "source_fps": "Frames per second of a folder of frames; default 30.",
    "start": "Second from which the video is taken.",
    "end": "Second up to which the video is taken.",
}
_SHARE = {
    "margin": (0.2, "Of the body's extent, around it, where no --crop is given."),
    "max_gap": (1 / 3, "Seconds without a person up to which the pose is interpolated."),
    "validation": (0.1, "Share of the frames."),
    "test": (0.1, "Share of the frames, the last; 0: no test split."),
}
_FLAGS = {
    **{name: flags.DEFINE_string(name, None, help) for name, help in _TEXT.items()},
    **{name: flags.DEFINE_float(name, None, help) for name, help in _NUMBER.items()},
    **{name: flags.DEFINE_float(name, default, help) for name, (default, help) in _SHARE.items()},
    "overwrite": flags.DEFINE_boolean("overwrite", False, "Replace a prepared data set at --out."),
}
_CROP = flags.DEFINE_string("crop", None, "x0,y0,x1,y1 in pixels of the video; default: around the body.")
_FRAME_SIZE = flags.DEFINE_string(
    "frame_size", None, "H,W; default 64,32 where what is kept is taller than wide, else 32,64."
)


def main() -> None:
    values = {name: flag.value for name, flag in _FLAGS.items()}
    for name in ("video", "out"):
        if not values[name]:
            cli.fail(f"--{name} is missing; give --video=my_dance.mp4 --out=data/me.")
    from cvae_jax.prepare.preparation import prepare
    from cvae_jax.prepare.settings import Settings, numbers

    crop = numbers("crop", _CROP.value, "x0,y0,x1,y1")
    frame_size = numbers("frame_size", _FRAME_SIZE.value, "H,W")
    for line in prepare(Settings(**values, crop=crop, frame_size=frame_size)):
        print(line, flush=True)


if __name__ == "__main__":
    cli.run(main, help="see python prepare.py --help", form="write --video=FILE and --out=FOLDER")
