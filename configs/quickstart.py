"""The config of `make demo`: a few minutes on two CPU cores, on the embedded real clips.

python train.py --config=configs/quickstart.py --workdir=runs/demo

Training takes about 4 minutes on two idle cores and reaches 28.7 dB over the five scenes
(docs/results/demo.md).
"""

from configs import recommended


def get_config():
    config = recommended.get_config()
    config.name = "quickstart"
    config.num_epochs = 24
    config.data.repeats = 4
    config.model.multiscale.update(patch=2, widths=(32, 48, 64), latent_channels=4, prior_share=0.5)
    config.optimizer.weight_decay = 1e-4
    config.loss.free_bits = 0.0  # with so few frames the latent stays in use without them
    # A short video shows the person in few positions and from one side: shifts and mirroring add others.
    config.augment.shift = 4
    config.augment.mirror = True
    return config
