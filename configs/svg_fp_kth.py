"""SVG-FP (Denton and Fergus, 2018) on KTH actions, with the published hyper-parameters.

python train.py --config=configs/svg_fp_kth.py --config.data.dir=FOLDER
"""

from configs import svg


def get_config():
    return svg.kth("svg_fp_kth", prior="fixed")
