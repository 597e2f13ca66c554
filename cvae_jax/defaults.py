"""Every field of a run, report-exact: each other config imports this one and overrides a few lines."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The report's setting: full dimensions, 100 epochs, batch 10, clips of 16 frames, beta 1."""
    from cvae_jax import models
    from cvae_jax.data import datasets
    from cvae_jax.models.adversarial import AdversarialOptions
    from cvae_jax.sections import section_of

    config = ConfigDict()
    config.name = "default"  # names the folder under runs/ when no --workdir is given
    config.seed = 0  # every random number of the run is a function of this
    config.num_epochs = 100
    config.batch_size = 10  # clips in the global batch, over all devices
    # A device takes its clips in so many parts, one after the other, to save memory; the gradient is that of
    # the whole batch. Not for models with batch statistics (cvae, svg).
    config.accumulate_steps = 1
    config.clip_length = 16  # frames per training clip, the given frames included
    config.n_past = 1  # true frames given at the start of a clip; those after them are predicted and scored

    # A step whose loss, gradient or new parameters are not finite: stop, or skip it and go on, until
    # `nonfinite_limit` of them in a row.
    config.nonfinite = "stop"
    config.nonfinite_limit = 10

    # (first, end) traces these steps, counted from 0 and without the last, into the workdir; () traces none.
    config.profile_steps = ()

    config.precision = "float32"  # of the features; bfloat16: mixed precision, for accelerators

    config.data = ConfigDict()
    config.data.name = "real_clips"  # docs/data.md names them all
    config.data.dir = placeholder(str)  # the folder you bring, for data sets that read one
    config.data.cache = placeholder(str)  # prepared data; None = ~/.cache/cvae_jax/data
    config.data.frame_size = placeholder(tuple)  # (H, W); None = the data set's own
    config.data.stride = placeholder(int)  # frames between clip starts; None = no overlap
    config.data.frame_step = 1  # a training clip takes every n-th frame (evaluation takes every frame)
    config.data.shuffle = True  # order of the clips as a pure function of (seed, epoch)
    config.data.repeats = 1  # an epoch goes through all clips so many times
    config.data.clips_per_epoch = placeholder(int)  # at most so many of them, each epoch others; None = all

    # Where the context frames of a training clip come from: first, the clip itself; random, anywhere in the
    # recordings of its scene.
    config.data.reference = "first"

    for name, section in datasets.sections().items():  # of data sets with options of their own: their
        config.data[name] = section  # modules in cvae_jax/data/datasets/ describe each

    # One section for each kind of model; the class it configures explains the fields (cvae_jax/models/).
    config.model = ConfigDict(models.sections())
    config.model.kind = "cvae"  # which of them is trained

    config.augment = ConfigDict()  # random changes of training clips, on the devices
    config.augment.shift = 0  # pixels, at most, along each axis
    config.augment.zoom = 0.0  # magnified by a factor within 1 +- this
    config.augment.mirror = False  # half of the clips; in labels, left and right limbs exchange their colours
    config.augment.brightness = 0.0  # frames are multiplied by a factor within 1 +- this

    config.loss = ConfigDict()
    # mse; l1_mse: mean squared + l1_weight * mean absolute error; calibrated: 0.5 log mse + beta KL / values
    # in a frame
    config.loss.reconstruction = "mse"
    config.loss.l1_weight = 1.0
    config.loss.lpips = 0.0  # weight of LPIPS, added to the error (the extra `metrics`); 0 = off
    config.loss.clamp = True  # score the frame after the clamp to [0, 1]
    config.loss.divide_recon_by_batch = True  # once more than the mean over clips (report)
    config.loss.kl = "sum"  # over latent elements (report), or per_element: their mean
    config.loss.logvar_clip = 10.0  # bound of the KL's log-variance in training; 0 = none
    config.loss.free_bits = 0.0  # nats per frame below which the KL is not trained; 0 = off
    config.loss.kl_balance = 0.0  # share of the KL's gradient that moves a learned prior (DreamerV2); 0 = off

    # A critic that tells predicted from true frames; cvae_jax/models/adversarial.py explains the fields.
    config.adversarial = section_of(AdversarialOptions)

    config.rollout = ConfigDict()
    config.rollout.cut_feedback = True  # no gradient through the fed-back frame
    # Fold the time of teacher-forced clips into the batch; None = on accelerators, and everywhere for models
    # whose gradient crosses time (SVG) or that do not look back (multiscale without feedback).
    config.rollout.fold_time = placeholder(bool)
    # Steps folded at once, at most. Whole clips are the fastest where the gradient crosses time: nothing is
    # computed twice, in memory that grows with the clip.
    config.rollout.time_chunk = 5
    # What the backward pass computes again where the gradient crosses time: all; elementwise (products and
    # convolutions are kept, in more memory); or none.
    config.rollout.remat = "all"

    config.beta = ConfigDict()
    config.beta.kind = "none"  # none, monotonic, cyclical (report), fu_cyclical (Fu et al., 2019)
    config.beta.cycle_length = 10.0  # epochs per cycle (monotonic, cyclical)
    config.beta.ratio = 0.5  # part of a cycle that ramps, in (0, 1]
    config.beta.num_cycles = 4  # cycles over the whole run (fu_cyclical)
    config.beta.unit = "iteration"  # what fu_cyclical counts: iteration or epoch
    config.beta.ramp = "linear"  # of fu_cyclical: linear, sigmoid or cosine
    config.beta.scale = 1.0  # beta at the top of the ramp
    config.beta.floor = 0.0  # beta is never below this

    config.teacher_forcing = ConfigDict()
    config.teacher_forcing.kind = "exponential"  # constant, exponential, linear or inverse_sigmoid
    config.teacher_forcing.initial = 0.95  # probability of feeding true frames at first
    config.teacher_forcing.decay = 0.95  # exponential: factor per epoch
    config.teacher_forcing.step = 0.05  # linear: loss per epoch
    config.teacher_forcing.start = 10.0  # epoch at which the decay begins
    config.teacher_forcing.k = 900.0  # inverse_sigmoid: k / (k + exp(u / k)) after u updates since `start`
    config.teacher_forcing.draw = "epoch"  # one draw per epoch, batch, step or example_step

    config.learning_rate = ConfigDict()
    config.learning_rate.peak = 1e-4
    config.learning_rate.end = 1e-6  # value the cosine runs towards
    config.learning_rate.per = "epoch"  # the cosine moves every epoch (report) or every step
    config.learning_rate.warmup_epochs = 0  # linear warm-up

    config.optimizer = ConfigDict()
    config.optimizer.kind = "adam"  # or muon
    config.optimizer.b1 = 0.9  # Adam
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.0  # decoupled (AdamW); 0 = none
    config.optimizer.clip_norm = 1.0  # global norm of the gradient; 0 = no clipping
    config.optimizer.ema_decay = 0.0  # of the averaged parameters that evaluation uses; 0 = none

    config.eval = ConfigDict()
    config.eval.every = 1  # epochs between validations; the last epoch always validates
    config.eval.samples = 3  # draws of the row prior, one sample each (validation in training has one)
    config.eval.best_of = 10  # N of the row prior_best_of_N; 0 = no such row
    config.eval.temperature = placeholder(float)  # of the noise of the row prior_scaled; None = no such row
    # Correlation of the prior's noise in successive frames, for models without feedback; 0 = independent. It
    # changes how samples move, but not the distribution of a single frame. Validations in training use 0.
    config.eval.noise_correlation = 0.0
    config.eval.batch_size = 8  # clips, or samples of them, rolled out at once
    config.eval.chunk = 32  # frames rolled out in one call to the devices, at most (evaluate.py, generate.py)
    config.eval.seed = 0  # of the prior samples and of the bootstrap
    # LPIPS of every sample (extra `metrics`): None = if it is installed, True = required, and also logged by
    # the validations of a run, False = off.
    config.eval.lpips = placeholder(bool)
    # Clips of FVD (the extra `metrics`; two seconds per clip of 25 frames on two cores); 0 = no FVD.
    config.eval.fvd_clips = 0

    config.checkpoint = ConfigDict()
    config.checkpoint.keep = 2  # newest checkpoints kept
    config.checkpoint.every = 1  # epochs between checkpoints; the last epoch always has one
    config.checkpoint.save_every = 10  # epochs between checkpoints that are kept for ever; 0 = none
    config.checkpoint.minutes = 10.0  # a step saves another one when the last is this old; 0 = never

    config.log = ConfigDict()
    config.log.images = True  # write film strips of the validation to TensorBoard
    config.wandb = False  # also log to Weights & Biases (pip install wandb)
    return config.lock()  # an assignment to a field that does not exist is refused
