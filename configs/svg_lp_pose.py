"""SVG-LP conditioned on pose labels, here those of the embedded clips: the first frame is given.

python train.py --config=configs/svg_lp_pose.py
python train.py --config=configs/svg_lp_pose.py --config.data.name=frame_folder --config.data.dir=D
"""

from configs import svg


def get_config():
    config = svg.published(
        "svg_lp_pose",
        prior="learned",
        n_past=1,
        n_future=9,
        backbone="dcgan",
        latents=10,
        beta=1e-4,
        rate=2e-3,
    )
    config.num_epochs = 100
    config.batch_size = 20
    config.data.frame_step = 4  # a clip spans 37 frames
    config.data.clips_per_epoch = 4000
    config.eval.best_of = 10
    config.eval.batch_size = 8
    return config
