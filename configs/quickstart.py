"""Minutes on two CPU cores, on the embedded real clips: what `make demo` trains.

python train.py --config=configs/quickstart.py --workdir=runs/demo
"""

from cvae_jax import defaults


def get_config():
    config = defaults.get_config()
    config.name = "quickstart"
    config.num_epochs = 16
    config.batch_size = 2
    config.clip_length = 9
    config.data.stride = 1
    config.data.frame_step = 3  # clips span 25 frames: more movement to learn from

    config.model.cvae.frame_features = 16
    config.model.cvae.label_features = 8
    config.model.cvae.latent_channels = 4
    config.model.cvae.decoder_features = 32
    config.model.cvae.output = "residual"
    config.model.cvae.position_octaves = 5  # to remember what the moving person uncovers

    config.loss.clamp = False
    config.loss.divide_recon_by_batch = False
    config.loss.kl = "per_element"
    config.model.cvae.cut_previous_features = False
    config.beta.scale = 10.0
    config.teacher_forcing.kind = "constant"
    config.teacher_forcing.initial = 0.0
    config.learning_rate.peak = 4e-3
    config.learning_rate.end = 0.0
    config.learning_rate.per = "step"
    config.eval.every = 2
    return config
