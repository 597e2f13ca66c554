"""A learned against the standard prior on `dancer`, and beta schedules where the KL's weight is small.

    make env METRICS=1
    python study.py --config=configs/study_priors.py --workdir=S

The CVAE has the recipe of configs/cvae_recipe.py and the calibrated decoder. SVG-LP has its own loss with the
weight published for KTH, 1e-6; with 1e-4, that for Moving MNIST, its posterior collapses here. With a learned
prior, each is trained with a constant weight and with the report's two schedules, up to the same weight. For
two CPU cores, the frame (32 x 32), the models' widths, the batch and the epoch are reduced; a step of SVG
takes a twentieth of the CVAE's time, so SVG has 7.5 times as many.
"""

from ml_collections import ConfigDict

from configs import cvae_recipe, study


def get_config() -> ConfigDict:
    config = study.get_config()
    config.name = "study_priors"
    base = config.base = cvae_recipe.get_config()
    base.data.name = "dancer"
    base.num_epochs = 16
    base.batch_size = 4
    base.data.frame_size = (32, 32)
    base.data.clips_per_epoch = 160
    base.model.cvae.update(frame_features=16, label_features=8, latent_channels=4, decoder_features=32)
    base.model.svg.update(width=8, code_size=64, rnn_size=128, label_features=16)
    base.loss.update(reconstruction="calibrated", kl="sum")
    base.eval.update(every=4, lpips=True)
    base.checkpoint.update(keep=1, every=4, save_every=0)
    # Four cycles in a run, as in Fu et al. (2019); the monotonic ramp is the first one's.
    base.beta.cycle_length = 4.0
    base.log.images = False

    learned = {"model": {"cvae": {"prior": "learned"}}}
    svg_lp = {
        "model": {"kind": "svg"},
        "loss": {"reconstruction": "mse", "logvar_clip": 0.0},
        "teacher_forcing": {"initial": 1.0},
        "num_epochs": 120,
        "eval": {"every": 30},
        "checkpoint": {"every": 30},
    }
    changes = {"standard": {}}
    for model, change, beta in (
        ("learned", learned, {"scale": 1.0}),
        ("svg_lp", svg_lp, {"scale": 1e-6, "cycle_length": 30.0}),
    ):
        changes[model] = change | {"beta": beta}
        for kind in ("monotonic", "cyclical"):
            changes[f"{model}_{kind}"] = change | {"beta": beta | {"kind": kind}}
    config.changes = ConfigDict(changes)
    config.variants = tuple(changes)
    config.compare = "standard"
    config.figures.update(study.NO_REPORT_FIGURES)
    return config
