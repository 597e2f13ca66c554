"""SVG-LP, SVG-FP and the CVAE on Stochastic Moving MNIST at one small budget, for two CPU cores.

    make env METRICS=1
    python study.py --config=configs/study_mmnist.py --workdir=S

5 frames are given, 10 learned and 20 evaluated, at 64 x 64. Every map has an eighth of the published channels
(except the CVAE's z, which has no fewer than 4); vectors keep their size. The budget of a run is time: about
a quarter of an hour on one core. The CVAE's maps keep the frame's resolution, so a clip takes it about 25
times as long as it takes SVG. The CVAE is therefore trained on fewer and shorter clips, two at a time.
"""

from ml_collections import ConfigDict

from configs import study, svg


def get_config() -> ConfigDict:
    config = study.get_config()
    config.name = "study_mmnist"
    base = config.base = svg.moving_mnist("study_mmnist", prior="learned")
    base.num_epochs = 16
    base.batch_size = 8
    base.data.clips_per_epoch = 1600
    base.data.stochastic_moving_mnist.test_sequences = 64
    base.learning_rate.update(end=2e-5, per="step")
    base.model.svg.width = 8
    base.model.cvae.update(
        frame_features=16, label_features=4, latent_channels=4, decoder_features=24, history=4
    )
    base.eval.update(every=2, samples=3, best_of=10, batch_size=20, lpips=True, fvd_clips=64)
    base.checkpoint.update(keep=1, every=2, save_every=0)
    base.log.images = False

    cvae = {
        "model": {"kind": "cvae"},
        "num_epochs": 6,
        "batch_size": 2,
        "clip_length": 8,
        "data": {"clips_per_epoch": 200},
        "learning_rate": {"peak": 1e-3, "end": 1e-5},
    }
    config.changes = ConfigDict(
        {
            "svg_lp": {},
            "svg_fp": {"model": {"svg": {"prior": "fixed"}}},
            "cvae_learned": cvae | {"model": {"kind": "cvae", "cvae": {"prior": "learned"}}},
            "cvae_standard": cvae,
        }
    )
    config.variants = ("svg_lp", "svg_fp", "cvae_learned", "cvae_standard")
    config.compare = "svg_fp"
    config.figures.update(study.NO_REPORT_FIGURES)
    config.figures.course = config.variants
    return config
