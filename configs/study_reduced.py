"""The study at a size that two CPU cores finish in under 90 minutes.

    python study.py --config=configs/study_reduced.py --workdir=S

The schedules are the report's, epoch by epoch; what is reduced, the same for every run, is the frame, the
model, the batch and the epoch (16 clips), and the learning rate is raised for the fewer steps.
"""

from configs import study


def get_config():
    config = study.get_config()
    config.name = "study_reduced"
    base = config.base
    base.batch_size = 2
    base.data.frame_size = (32, 32)
    base.data.stride = 1
    base.data.clips_per_epoch = 16
    base.model.frame_features = 8
    base.model.label_features = 4
    base.model.latent_channels = 4
    base.model.decoder_features = 16
    base.learning_rate.peak = 2e-3
    base.learning_rate.end = 2e-5
    base.eval.every = 5
    base.eval.samples = 1
    base.checkpoint.every = 10
    base.checkpoint.keep = 1
    return config
