"""The Moving MNIST test set: 10 frames given, 10 to predict.

python train.py --config=configs/moving_mnist.py --config.data.dir=FOLDER
"""

from configs import cvae_recipe


def get_config():
    return cvae_recipe.field("moving_mnist", n_past=10, n_future=10)
