"""The recommended model with an adversarial loss, after Everybody Dance Now (Chan et al., ICCV 2019).

python train.py --config=configs/everybody_dance_now.py --config.data.name=dancer

A critic judges each frame with the frame before it and the label, as patches, and its features of a predicted
frame are to match those of the true one. A clip is a context frame from anywhere in the scene and three
successive frames, of which the last two are judged. In a run of 3,000 steps this weight changed no metric
(docs/objective.md): the logarithm of the error outweighs it.
"""

from configs import recommended


def get_config():
    config = recommended.get_config()
    config.name = "everybody_dance_now"
    config.clip_length = 4
    config.adversarial.weight = 0.02
    config.eval.lpips = True
    return config
