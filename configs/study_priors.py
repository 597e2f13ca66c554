"""A learned against the standard prior on `dancer`, and beta schedules where the KL's weight is small.

    make env METRICS=1
    python study.py --config=configs/study_priors.py --workdir=S

The CVAE has the recipe of configs/recommended.py and the calibrated decoder; SVG-LP has its own loss with the
published weight 1e-4. With a learned prior, each is trained with a constant weight and with the report's two
schedules, which reach the same weight. For two CPU cores, the frame (32 x 32), the models' widths, the batch
and the epoch are reduced.
"""

from ml_collections import ConfigDict

from configs import recommended, study


def get_config() -> ConfigDict:
    config = study.get_config()
    config.name = "study_priors"
    base = config.base = recommended.get_config()
    base.data.name = "dancer"
    base.num_epochs = 40
    base.batch_size = 4
    base.data.frame_size = (32, 32)
    base.data.clips_per_epoch = 160
    base.model.cvae.update(frame_features=16, label_features=8, latent_channels=4, decoder_features=32)
    base.model.svg.update(width=8, code_size=64, rnn_size=128, label_features=16)
    base.loss.update(reconstruction="calibrated", kl="sum")
    base.eval.update(every=10, lpips=True)
    base.checkpoint.update(keep=1, every=10, save_every=0)
    base.log.images = False

    learned = {"model": {"cvae": {"prior": "learned"}}}
    svg_lp = {
        "model": {"kind": "svg"},
        "loss": {"reconstruction": "mse", "logvar_clip": 0.0},
        "teacher_forcing": {"initial": 1.0},
    }
    changes = {"standard": {}}
    for model, change, scale in (("learned", learned, 1.0), ("svg_lp", svg_lp, 1e-4)):
        changes[model] = change | {"beta": {"scale": scale}}
        for kind in ("monotonic", "cyclical"):
            changes[f"{model}_{kind}"] = change | {"beta": {"kind": kind, "scale": scale}}
    config.changes = ConfigDict(changes)
    config.variants = tuple(changes)
    config.compare = "standard"
    config.figures.update(study.NO_REPORT_FIGURES)
    return config
