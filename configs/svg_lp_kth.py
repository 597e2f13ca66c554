"""SVG-LP (Denton and Fergus, 2018) on KTH actions, with the published hyper-parameters.

python train.py --config=configs/svg_lp_kth.py --config.data.dir=FOLDER
"""

from configs import svg


def get_config():
    return svg.kth("svg_lp_kth", prior="learned")
