"""What the SVG configs share: the published hyper-parameters (Denton and Fergus, ICML 2018)."""

from ml_collections import ConfigDict

from cvae_jax import defaults

UPDATES = 600  # an epoch
BATCH = 100


def published(
    name: str, prior: str, n_past: int, n_future: int, backbone: str, latents: int, beta: float, rate: float
) -> ConfigDict:
    """Return a config of 300 epochs of 600 updates; the caller sets the data.

    prior: learned (SVG-LP) or fixed (SVG-FP). rate: the learning rate. Other names are those of the config.
    """
    config = defaults.get_config()
    config.name = name
    config.num_epochs = 300
    config.batch_size = BATCH
    config.n_past, config.clip_length = n_past, n_past + n_future
    config.data.stride = 1
    config.data.clips_per_epoch = UPDATES * BATCH
    config.model.kind = "svg"
    config.model.svg.update(prior=prior, backbone=backbone, latents=latents)
    config.loss.update(clamp=False, divide_recon_by_batch=False, kl="sum", logvar_clip=0.0)
    config.beta.update(kind="none", scale=beta)
    config.teacher_forcing.update(kind="constant", initial=1.0)
    # With dcgan the whole clip is one chunk, so nothing is computed twice. The maps of vgg are many times as
    # large, so a chunk is one step, which the backward pass computes again.
    config.rollout.time_chunk = n_past + n_future - 1 if backbone == "dcgan" else 1
    config.learning_rate.update(peak=rate, end=rate)
    config.optimizer.clip_norm = 0.0
    config.eval.every = 5
    config.eval.best_of = 100
    config.eval.batch_size = 100  # samples of a clip; from 25 on, a CPU takes as long for each
    return config


def moving_mnist(name: str, prior: str) -> ConfigDict:
    """Return SVG on Stochastic Moving MNIST: 5 frames given, 10 to learn, 20 to evaluate."""
    config = published(name, prior, 5, 10, backbone="dcgan", latents=10, beta=1e-4, rate=2e-3)
    config.data.name = "stochastic_moving_mnist"
    # The published program draws new sequences throughout. Here 80,000 different clips are cut from 5,000
    # sequences (1.8 GB in memory), and an epoch takes 60,000 of them.
    config.data.stochastic_moving_mnist.train_sequences = 5000
    config.data.stochastic_moving_mnist.train_frames = 30
    config.model.svg.channels = 1
    return config


def kth(name: str, prior: str) -> ConfigDict:
    """Return SVG on KTH: 10 frames given, 10 to learn, 30 to evaluate."""
    config = published(name, prior, 10, 10, backbone="vgg", latents=24, beta=1e-6, rate=8e-4)
    config.data.name = "kth"
    config.model.svg.channels = 1
    return config
