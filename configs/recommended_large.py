"""The recommended recipe with four times the width and three times the depth, for an accelerator.

python train.py --config=configs/recommended_large.py --config.data.name=dancer

It has not been trained at this size yet.
"""

from configs import recommended


def get_config():
    config = recommended.get_config()
    config.name = "recommended_large"
    config.precision = "bfloat16"
    config.num_epochs = 100
    config.batch_size = 64
    config.data.clips_per_epoch = 12_800
    config.model.multiscale.widths = (64, 192, 256, 384)
    config.model.multiscale.blocks = 3
    config.learning_rate.peak = 1e-3
    return config
