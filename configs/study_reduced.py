"""The study at a size that two CPU cores finish in under 90 minutes.

    python study.py --config=configs/study_reduced.py --workdir=S

The schedules are the report's, epoch by epoch. The frame (32 x 32), the model's width, the batch (2), the
clip (6 frames) and the epoch (32 clips) are reduced in the same way for every run. The learning rate is ten
times the report's, for 1,600 steps instead of 14,700.
"""

from configs import study


def get_config():
    config = study.get_config()
    config.name = "study_reduced"
    base = config.base
    base.batch_size = 2
    base.clip_length = 6
    base.data.frame_size = (32, 32)
    base.data.stride = 1
    base.data.clips_per_epoch = 32
    base.model.cvae.frame_features = 16
    base.model.cvae.label_features = 8
    base.model.cvae.latent_channels = 4
    base.model.cvae.decoder_features = 32
    base.learning_rate.peak = 1e-3
    base.learning_rate.end = 1e-5
    base.eval.every = 10
    base.eval.samples = 1
    base.checkpoint.every = 10
    base.checkpoint.keep = 1
    return config
