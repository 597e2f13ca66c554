"""SVG-FP (Denton and Fergus, 2018) on Stochastic Moving MNIST, with the published hyper-parameters.

python train.py --config=configs/svg_fp_mmnist.py
"""

from configs import svg


def get_config():
    return svg.moving_mnist("svg_fp_mmnist", prior="fixed")
