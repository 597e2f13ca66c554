"""BAIR robot pushing with actions, the field's protocol: 2 frames given, 10 to learn, 28 to evaluate.

python train.py --config=configs/bair.py --config.data.dir=FOLDER
"""

from configs import cvae_recipe


def get_config():
    config = cvae_recipe.field("bair", n_past=2, n_future=10)
    config.data.stride = 6  # sequences have 30 frames
    config.data.clips_per_epoch = 4000
    return config
