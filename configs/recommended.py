"""The recommended model and recipe: a multiscale CVAE from a first frame and labels, on any pose data.

python train.py --config=configs/recommended.py --config.data.name=dancer

Twenty minutes on two CPU cores, 36 on one; 31.4 dB on the test clips of `dancer` (docs/results/dancer.md).
"""

from cvae_jax import defaults


def get_config():
    config = defaults.get_config()
    config.name = "recommended"
    config.num_epochs = 50
    config.batch_size = 8
    # A clip is two frames of one scene: any that is shown to the model, and the one to predict.
    config.clip_length = 2
    config.data.reference = "random"
    config.data.stride = 1
    config.data.repeats = 3  # a short video has a shorter epoch,
    config.data.clips_per_epoch = 1600  # a long one takes part of its frames

    config.model.kind = "multiscale"
    config.model.multiscale.update(widths=(48, 72, 96), latent_channels=8, prior_share=0.25)
    config.augment.shift = 2  # without, later epochs no longer help on clips that were not trained on
    # The likelihood with the best variance weighs the KL: there is no beta to tune. Free bits keep the latent
    # in use while the error is still large.
    config.loss.reconstruction = "calibrated"
    config.loss.free_bits = 24.0
    config.loss.clamp = False
    config.loss.divide_recon_by_batch = False
    # Frames do not depend on each other: what is fed back does not matter.
    config.teacher_forcing.kind = "constant"
    config.teacher_forcing.initial = 1.0

    config.learning_rate.peak = 3e-3
    config.learning_rate.end = 0.0
    config.learning_rate.per = "step"
    config.learning_rate.warmup_epochs = config.get_oneway_ref("num_epochs") // 20  # follows an override
    config.optimizer.kind = "muon"
    config.optimizer.weight_decay = 1e-4
    config.eval.every = 5
    config.checkpoint.save_every = 0
    return config
