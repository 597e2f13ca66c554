"""Minutes on two CPU cores, on the embedded real clips: what `make demo` trains.

python train.py --config=configs/quickstart.py --workdir=runs/demo

Four to five minutes; 28.7 dB over the five scenes (docs/results/demo.md).
"""

from configs import recommended


def get_config():
    config = recommended.get_config()
    config.name = "quickstart"
    config.num_epochs = 24
    config.data.repeats = 4
    config.model.multiscale.update(widths=(32, 48, 64), latent_channels=4, prior_share=0.5)
    config.loss.free_bits = 0.0  # with so few frames the latent is used without, and costs less
    # What a short video lacks: other places of the person, and the other side of it.
    config.augment.shift = 4
    config.augment.mirror = True
    return config
