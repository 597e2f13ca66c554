"""Stochastic Moving MNIST with the field's protocol (SVG): 5 frames given, 10 to learn, 20 to evaluate.

python train.py --config=configs/stochastic_moving_mnist.py
"""

from configs import cvae_recipe


def get_config():
    config = cvae_recipe.field("stochastic_moving_mnist", n_past=5, n_future=10)
    config.data.stochastic_moving_mnist.train_frames = config.clip_length
    return config
