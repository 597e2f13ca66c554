"""The best recipe found for the report's model (docs/results/ablation.md), full size, for accelerators.

python train.py --config=configs/cvae_recipe.py --config.data.name=dancer

`recommended.py` trains a better and much cheaper model.
"""

from cvae_jax import defaults

# What it changes of the report's run; configs/ablation.py makes these changes one after the other.
CHANGES = {
    "loss.kl": "per_element",
    "loss.clamp": False,
    "loss.divide_recon_by_batch": False,
    "teacher_forcing.kind": "constant",
    "teacher_forcing.initial": 0.0,
    "model.cvae.cut_previous_features": False,
    "learning_rate.peak": 1e-3,
    "learning_rate.end": 0.0,
    "learning_rate.per": "step",
    "learning_rate.warmup_epochs": 2,
    "data.frame_step": 8,  # a clip spans 41 frames; recordings of 40 need less
    "model.cvae.position_octaves": 5,
    # Much better for short recordings; on dancer rgb is slightly better (docs/results/ablation.md).
    "model.cvae.output": "residual",
}


def get_config():
    config = defaults.get_config()
    config.name = "cvae_recipe"
    config.clip_length = 6
    config.data.stride = 1  # clips begin at every frame
    config.data.clips_per_epoch = 4389  # as many predicted frames as an epoch of the lab's
    config.update_from_flattened_dict(CHANGES)
    return config


def field(name: str, n_past: int, n_future: int):
    """The recipe on a data set of the field: `n_past` frames given, `n_future` more in a training clip."""
    config = get_config()
    config.name = config.data.name = name
    config.n_past, config.clip_length = n_past, n_past + n_future
    config.data.stride = None
    config.data.frame_step = 1
    config.data.clips_per_epoch = None
    config.model.cvae.output = "rgb"  # nothing stays where it was in the first frame
    config.model.cvae.history = n_past - 1
    config.eval.every = 5
    return config
