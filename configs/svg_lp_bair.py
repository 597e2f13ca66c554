"""SVG-LP (Denton and Fergus, 2018) on BAIR robot pushing, with the published hyper-parameters.

python train.py --config=configs/svg_lp_bair.py --config.data.dir=FOLDER

2 frames are given, 10 learned and 28 evaluated. The networks also see the arm's actions, which the published
model does not: --config.data.bair.labels=none leaves them out.
"""

from configs import svg


def get_config():
    config = svg.published(
        "svg_lp_bair",
        prior="learned",
        n_past=2,
        n_future=10,
        backbone="vgg",
        latents=64,
        beta=1e-4,
        rate=2e-3,
    )
    config.data.name = "bair"
    return config
