"""A short video of your own, prepared with prepare.py.

python train.py --config=configs/own_video.py --config.data.dir=data/me

Training takes about 4 minutes on two idle CPU cores for frames of 64 x 32, whatever the length of the video.
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.name = "own_video"
    config.data.name = "prepared"
    config.data.repeats = 100  # the same number of steps for a short video as for a long one
    config.data.clips_per_epoch = 1600
    return config
