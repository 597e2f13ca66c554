"""The recommended model with an adversarial loss, after Everybody Dance Now (Chan et al., ICCV 2019).

python train.py --config=configs/everybody_dance_now.py --config.data.name=dancer

A critic judges each frame with the frame before it and the label, as patches, and its features of a predicted
frame are to match those of the true one. A clip is a context frame from anywhere in the scene and three
successive frames, of which the last two are judged. No run of it has been completed yet.
"""

from configs import recommended


def get_config():
    config = recommended.get_config()
    config.name = "everybody_dance_now"
    config.batch_size = 8
    config.clip_length = 4
    config.data.clips_per_epoch = 1600
    config.adversarial.weight = 0.02
    config.eval.lpips = True
    return config
