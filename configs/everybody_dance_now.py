"""The recommended model with an adversarial loss, after Everybody Dance Now (Chan et al., ICCV 2019).

python train.py --config=configs/everybody_dance_now.py --config.data.name=dancer

A critic scores patches of each frame, given the frame before it and the label. The model is also trained
to match the critic's features of the true frame. A clip is one context frame from anywhere in the scene and
three successive frames; the critic scores the last two of them. It is an option to study, not a better
recipe: a weight of 0.02 on dancer (one run) and weights of 1 and 10 on the embedded clips improved no metric
(docs/objective.md).
"""

from configs import recommended


def get_config():
    config = recommended.get_config()
    config.name = "everybody_dance_now"
    config.clip_length = 4
    config.adversarial.weight = 1.0
    config.eval.lpips = True
    return config
