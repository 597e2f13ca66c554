"""KTH actions with the field's protocol (SVG, SRVP): 10 frames given, 10 to learn, 30 to evaluate.

python train.py --config=configs/kth.py --config.data.dir=FOLDER
"""

from configs import cvae_recipe


def get_config():
    config = cvae_recipe.field("kth", n_past=10, n_future=10)
    config.data.stride = config.clip_length // 2
    config.data.clips_per_epoch = 4000
    return config
