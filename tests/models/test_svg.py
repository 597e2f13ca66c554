"""SVG: its skips, labels and initial values, forced and free steps, training, devices and chunks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pad_to_devices, read_rows, same_bits
from whole_clips import reconstruct

from configs import svg_lp_mmnist
from cvae_jax import train as training
from cvae_jax.config import Components
from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.evaluation.scores import Scorer
from cvae_jax.losses import Objective
from cvae_jax.models.interface import StepInputs, init_variables, standard_normal
from cvae_jax.models.svg import SVG
from cvae_jax.rollout.noise import clip_noise, derive_keys
from cvae_jax.rollout.scan import Clips, RolloutOptions
from cvae_jax.runtime.cache import Cache
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.train import open_run, train
from cvae_jax.training.gradients import clip_gradients
from cvae_jax.training.state import TrainState
from cvae_jax.training.step import make_train_step

SIZE = (32, 16)
SMALL = dict(width=2, code_size=4, latents=3, rnn_size=4, label_features=2)
MODEL = SVG(**SMALL)
B, STEPS, N_PAST = 4, 4, 2
BETA = jnp.float32(0.1)
OBJECTIVE = Objective(clamp=False, divide_recon_by_batch=False, logvar_clip=0.0)


def variables_of(model, label_size=0, size=SIZE):
    """Initial variables, but for weights large enough for every input to matter."""
    variables = init_variables(model, 0, size, label_size)
    large = lambda p: 10 * p if p.ndim > 1 else p  # noqa: E731
    return jax.tree.map(jnp.asarray, variables | {"params": jax.tree.map(large, variables["params"])})


def video(frames=STEPS + 1, size=SIZE, channels=3, batch=B, seed=0):
    draw = np.random.default_rng(seed).uniform(size=(batch, frames, *size, channels))
    return jnp.asarray(draw, jnp.float32)


def clips_of(frames, labels=None):
    labels = jnp.zeros((*frames.shape[:2], 0)) if labels is None else labels
    return Clips(frames, labels, jnp.ones(len(frames)))


def noise_of(model, clips=B):
    return clip_noise(derive_keys(jnp.uint32(3), jnp.arange(clips)), model.latent_shape(SIZE))


@functools.partial(jax.jit, static_argnames=("model", "n_past", "options"))
def gradients_of(model, variables, clips, forced, n_past=N_PAST, options=RolloutOptions()):  # noqa: B008
    return clip_gradients(
        model, OBJECTIVE, options, variables, clips, noise_of(model), forced, BETA, clips.mask.sum(), n_past
    )


def step_inputs(frames, t, n_past=N_PAST, **changes):
    """The inputs of step t from the true frame before it, without labels and noise."""
    batch = len(frames)
    x = StepInputs(
        t=jnp.int32(t),
        previous=frames[:, t - 1],
        previous_is_true=jnp.bool_(True),
        previous_is_given=jnp.bool_(t <= n_past),
        label=jnp.zeros((batch, 0)),
        conditioning=jnp.zeros((batch, 0)),
        noise=jnp.zeros((batch, MODEL.latents)),
        mask=jnp.ones(batch),
        target=frames[:, t],
    )
    return dataclasses.replace(x, **changes)


# --- forced and free steps ---------------------------------------------------------------------------------

MIXED = np.array([True, True, False, False])
BY_CLIP = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1]], bool)


@pytest.mark.parametrize("cut", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["cut", "uncut"])
@pytest.mark.parametrize("forced", [MIXED, BY_CLIP], ids=["by-step", "by-clip"])
def test_gradients_with_scheduled_sampling_are_those_of_a_plain_loop(forced, cut):
    """Whichever schedule decides: no scan, no rematerialisation, every previous frame encoded anew."""
    variables, clips, noise = variables_of(MODEL), clips_of(video()), noise_of(MODEL)
    encode = jax.jit(lambda v, x: MODEL._encode(v, x[None], clips.mask[None], train=True)[0][0][0])
    observe = jax.jit(lambda v, s, c, k, x: MODEL.observe({**v, "batch_stats": s}, c, k, x, train=True))

    def loss(params):
        here = {**variables, "params": params}
        constants, carry = MODEL.begin(here, clips.frames[:, :N_PAST], clips.labels[:, :N_PAST], True)
        stats, generated, total = variables["batch_stats"], clips.frames[:, 0], 0.0
        for t in range(1, STEPS + 1):
            true = jnp.broadcast_to(jnp.asarray(forced[t - 1]), (B,))
            shown = jnp.where(true[:, None, None, None], clips.frames[:, t - 1], generated)
            if t > 1:  # as if it had not been encoded as a target
                codes = encode(here, shown), encode(here, clips.frames[:, t - 1])
                carry = carry | {"code": jnp.where(true[:, None], codes[1], codes[0])}
            x = step_inputs(clips.frames, t, previous=shown, noise=noise(jnp.int32(t)))
            outputs, carry, stats = observe(here, stats, constants, carry, x)
            generated = jax.lax.stop_gradient(outputs.frame) if cut else outputs.frame
            recon, kl = OBJECTIVE.score(outputs, x.target, train=True)
            total += jnp.mean(recon + BETA * kl)
        return total

    value, expected = jax.value_and_grad(loss)(variables["params"])
    options = RolloutOptions(cut_feedback=cut)
    gradients, metrics, _ = gradients_of(MODEL, variables, clips, jnp.asarray(forced), options=options)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    everything = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(expected)))
    for path, one in jax.tree_util.tree_leaves_with_path(expected):
        found = gradients
        for key in path:
            found = found[key.key]
        difference = np.linalg.norm(found - one)
        assert difference <= 1e-3 * np.linalg.norm(one) + 1e-5 * everything, jax.tree_util.keystr(path)


def test_decisions_per_clip_that_agree_are_one_decision():
    """Gradients, losses and running statistics."""
    variables, clips = variables_of(MODEL), clips_of(video())
    for forced in (MIXED, np.ones(STEPS, bool)):
        by_clip = np.repeat(forced[:, None], B, axis=1)
        one, other = (gradients_of(MODEL, variables, clips, jnp.asarray(f)) for f in (forced, by_clip))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)


def test_each_frame_enters_the_running_statistics_once():
    frames, variables = video(), variables_of(MODEL)
    _, _, stats = gradients_of(MODEL, variables, clips_of(frames), jnp.ones(STEPS, bool))
    encoder, params = stats["encoder"]["groups_0_0"]["norm"], variables["params"]["encoder"]["groups_0_0"]
    mean, var = np.zeros(2), np.ones(2)
    for t in range(STEPS + 1):
        y = jax.lax.conv_general_dilated(
            frames[:, t], params["kernel"], (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y = np.float64(y).reshape(-1, 2)
        mean, var = 0.9 * mean + 0.1 * y.mean(0), 0.9 * var + 0.1 * y.var(0, ddof=1)
    np.testing.assert_allclose(encoder["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(encoder["var"], var, rtol=1e-4)


@pytest.mark.parametrize(
    ("skip", "n_past", "sizes"), [("last_given", 4, (3, 5)), ("running_mean", 2, (2,))], ids=str
)
def test_folded_time_gives_the_numbers_of_single_steps(skip, n_past, sizes):
    """Five steps as one chunk and as chunks of 2 or 3, the last of which holds a step of padding.

    One clip is padding too. The clips have label images, and with 4 given frames the second chunk refreshes
    the skips.
    """
    model, frames = dataclasses.replace(MODEL, skip=skip), video(6)
    variables, labels = variables_of(model, label_size=None), video(6, seed=1)
    clips = dataclasses.replace(clips_of(frames, labels), mask=jnp.asarray([1.0, 1.0, 1.0, 0.0]))
    forced = jnp.ones(5, bool)
    expected = gradients_of(model, variables, clips, forced, n_past)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[0]))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * scale)
    for size in sizes:
        options = RolloutOptions(fold_time=True, time_chunk=size)
        found = gradients_of(model, variables, clips, forced, n_past, options)
        jax.tree.map(close, found, expected)


def test_a_whole_clip_is_one_batch():
    """Also by default: convolutions of all frames at once, and nothing is computed again."""
    parts = Components.build(tiny(**{"rollout.fold_time": None}))
    assert parts.rollout.fold_time and parts.rollout.time_chunk >= STEPS
    model = dataclasses.replace(MODEL, formulation="plain")
    variables, clips = variables_of(model), clips_of(video())

    def programs(**options):
        run = functools.partial(gradients_of, model, options=RolloutOptions(**options))
        return str(jax.make_jaxpr(run)(variables, clips, jnp.ones(STEPS, bool)))

    batch = f"f32[{STEPS * B},{SIZE[0]},{SIZE[1]},"
    single, whole = programs(), programs(fold_time=True, time_chunk=STEPS)
    chunks = programs(fold_time=True, time_chunk=2)
    assert batch not in single and batch in whole and batch not in chunks
    # lax.cond holds the program of single steps too, where each is computed again.
    remat = [program.count("remat") + program.count("checkpoint") for program in (single, whole, chunks)]
    assert remat[0] > 0 and remat[1] == remat[0] < remat[2]


# --- skips, labels, channels -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skip", "sources"),
    [
        ("last_given", [[0], [1], [2], [2], [2]]),
        ("original", [[0], [1], [1], [1], [1]]),
        ("running_mean", [[0], [0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2]]),
    ],
)
def test_which_frames_are_skips(skip, sources):
    """Three given frames; the skips that are kept for step t + 1, and those of step 1 through its frame."""
    n_past, model = 3, dataclasses.replace(MODEL, skip=skip)
    variables, frames = variables_of(model), video(frames=6)

    @jax.jit
    def maps_of(frame):
        (codes, maps), _ = model._encode(variables, frame[None], jnp.ones((1, B)), train=False)
        return codes[0], jax.tree.map(lambda leaf: leaf[0], model._project(variables, maps, SIZE))

    maps = [maps_of(frames[:, t])[1] for t in range(n_past)]
    constants, carry = model.begin(variables, frames[:, :n_past], jnp.zeros((B, n_past, 0)), train=False)
    observe = jax.jit(lambda carry, x: model.observe(variables, constants, carry, x, train=False))
    for t in range(1, 6):
        x = step_inputs(frames, t, n_past)
        if t == 1:  # what was begun with must not matter
            begun = jax.tree.map(lambda leaf: leaf + 1, carry["skips"]), carry["code"] + 1
            other, _, _ = observe(carry | dict(zip(("skips", "code"), begun, strict=True)), x)
        else:
            mean = jax.tree.map(lambda *m: sum(m) / len(m), *(maps[k] for k in sources[t - 1]))
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), carry["skips"], mean
            )
        outputs, carry, _ = observe(carry, x)
        if t == 1:
            assert same_bits(other, outputs)
            given = carry | {"skips": maps[0], "code": maps_of(frames[:, 0])[0]}
            start = model.begin(variables, frames[:, :n_past], jnp.zeros((B, n_past, 0)), train=False)[1]
            known = start | {name: given[name] for name in ("skips", "code")}
            again, _, _ = observe(known, dataclasses.replace(x, t=jnp.int32(n_past + 9)))
            np.testing.assert_allclose(again.raw, outputs.raw, atol=1e-5)


def frames_of(model, variables, frames, labels=None, train=False):
    clips = clips_of(frames, labels)
    forced = jnp.ones(clips.labels.shape[1] - 1, bool)
    run = jax.jit(
        lambda v, c: reconstruct(model, v, c, noise_of(model), forced, train=train, n_past=N_PAST)[0]
    )
    return run(variables, clips)


@pytest.mark.parametrize("images", [True, False], ids=["images", "vectors"])
def test_labels_are_used_and_their_absence_is_the_model_without_them(images):
    frames = video()
    labels = video(seed=1) if images else jnp.asarray(np.random.default_rng(1).normal(size=(B, 5, 3)))
    variables = variables_of(MODEL, label_size=None if images else 3)
    assert ("label_encoder" in variables["params"]) == images
    shown = frames_of(MODEL, variables, frames, labels)
    changed = frames_of(MODEL, variables, frames, labels.at[0, 2].set(0.5))
    differs = np.abs(np.asarray(shown - changed)).max(axis=(2, 3, 4)) > 0
    assert not differs[:, 1:].any() and differs[:, 0].tolist() == [False, True, True, True]  # from step 2 on

    ignoring = dataclasses.replace(MODEL, label_features=0)
    without = variables_of(ignoring, label_size=None if images else 3)
    assert jax.tree.structure(without) == jax.tree.structure(variables_of(MODEL, label_size=0))
    plain = frames_of(MODEL, without, frames)
    np.testing.assert_array_equal(frames_of(ignoring, without, frames, labels), plain)


def test_one_channel_reads_the_mean_and_draws_grey():
    model = dataclasses.replace(MODEL, channels=1)
    variables, frames = variables_of(model), video()
    grey = frames.mean(axis=-1, keepdims=True)
    drawn = frames_of(model, variables, frames)
    np.testing.assert_allclose(drawn, np.repeat(frames_of(model, variables, grey), 3, axis=-1), atol=1e-5)
    with pytest.raises(UserError, match="channels is 2 but frames have 3: give 3, or 1"):
        dataclasses.replace(MODEL, channels=2).begin(variables, frames, frames, False)


def test_a_fixed_prior_is_standard_normal_and_has_no_network():
    model = dataclasses.replace(MODEL, prior="fixed")
    variables, frames = variables_of(model), video(frames=2)
    assert "prior_network" not in variables["params"]
    _, carry = model.begin(variables, frames[:, :1], jnp.zeros((B, 1, 0)), False)
    x = step_inputs(frames, 1, noise=jnp.ones((B, 3)), target=None)
    outputs, _ = model.imagine(variables, {}, carry, x)
    assert same_bits(outputs.prior, standard_normal(x.noise))


@pytest.mark.parametrize("backbone", ["dcgan", "vgg"])
def test_initial_values_are_the_published_ones(backbone):
    model = SVG(width=16, backbone=backbone, code_size=32, rnn_size=64)
    variables = init_variables(model, 0, (64, 64), 0)
    assert same_bits(variables, init_variables(model, 0, (64, 64), 0))
    assert not same_bits(variables, init_variables(model, 1, (64, 64), 0))
    layer = variables["params"]["encoder"]["groups_3_0"]
    assert np.std(layer["kernel"]) == pytest.approx(0.02, rel=0.03) and not np.any(layer["bias"])
    scale = layer["norm"]["scale"]
    assert (
        0.01 < np.std(scale) < 0.03 and abs(np.mean(scale) - 1) < 0.01 and not np.any(layer["norm"]["bias"])
    )
    cell = variables["params"]["prior_network"]["cell"]
    for value in cell.values():
        assert 0.95 / 8 < np.abs(value).max() <= 1 / 8
        assert np.std(value) == pytest.approx(1 / 8 / np.sqrt(3), rel=0.1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prior": "none"}, "config.model.svg.prior is 'none'; choose one of learned, fixed"),
        ({"skip": "all"}, "choose one of last_given, original, running_mean"),
        ({"latents": 0}, "config.model.svg.latents is 0; give at least 1"),
    ],
)
def test_values_it_cannot_have_are_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(MODEL, **change)


def test_frames_and_given_frames_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"Frames are 40 x 64; .* multiples of 16"):
        MODEL.init(0, (40, 64), 0)
    with pytest.raises(UserError, match="config.n_past is 1: give at least 2"):
        dataclasses.replace(MODEL, skip="original").check(1, True)


# --- training and evaluation -------------------------------------------------------------------------------


def tiny(**changes):
    """configs/svg_lp_mmnist.py, smaller in every respect."""
    config = svg_lp_mmnist.get_config()
    config.model.svg.update(SMALL)
    config.batch_size, config.num_epochs, config.data.clips_per_epoch = 4, 2, 8
    config.n_past, config.clip_length = N_PAST, STEPS + 1
    config.eval.every, config.log.images = 1, False
    # Draws would have both forms compiled.
    config.rollout.fold_time = not any(name.startswith("teacher_forcing.") for name in changes)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def grey_data(monkeypatch):
    def recording(name, length, seed):
        frames = np.random.default_rng(seed).integers(0, 255, (length, *SIZE, 1), np.uint8)
        return Recording("s", name, 0, np.repeat(frames, 3, axis=-1), no_labels(length))

    recordings = {"train": [recording("a", 12, 0)], "validation": [recording("b", 6, 1)]}
    monkeypatch.setattr("cvae_jax.data.datasets.load", lambda *_, **__: recordings)
    return recordings


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"teacher_forcing.initial": 0.5, "teacher_forcing.draw": "step"},
            marks=pytest.mark.slow,
            id="forcing-below-1",
        ),
        pytest.param({"beta.kind": "cyclical", "beta.cycle_length": 2.0, "beta.scale": 1.0}, id="cyclical"),
        pytest.param(
            {
                "teacher_forcing.kind": "inverse_sigmoid",
                "teacher_forcing.k": 1.0,
                "teacher_forcing.start": 0.0,
                "teacher_forcing.draw": "example_step",
            },
            id="scheduled-sampling",
        ),
    ],
)
def test_training(grey_data, tmp_path, changes):
    train(tiny(**changes), tmp_path, jax.local_devices()[:1])
    rows = read_rows(tmp_path)
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(np.isfinite([row["train_loss"], row["val_loss"], row["val_psnr_prior"]]).all() for row in rows)
    ratios, betas = ([row[name] for row in rows] for name in ("teacher_forcing_ratio", "beta"))
    expected = {
        "beta.kind": ([1.0, 1.0], [0.0, 1.0]),
        "teacher_forcing.kind": ([1 / (1 + np.exp(row["step"] - 1)) for row in rows], [1e-4, 1e-4]),
        "teacher_forcing.initial": ([0.5, 0.5], [1e-4, 1e-4]),
    }[next(iter(changes))]
    np.testing.assert_allclose([ratios, betas], expected)
    if expected[0][1] < 1:
        assert rows[1]["teacher_forced"] < 1


@pytest.mark.parametrize(
    ("draw", "throughout"),
    [
        ("example_step", None),
        ("forced", None),
        pytest.param("forced", True, marks=pytest.mark.slow),
        pytest.param("forced_example_step", True, marks=pytest.mark.slow),
        pytest.param("step", None, marks=pytest.mark.slow),
    ],
)
def test_one_device_equals_two_with_padding(draw, throughout):
    """Three clips on one device, and filled up to four on two: the same losses and running statistics."""
    parts = Components.build(tiny(**{"rollout.fold_time": draw.startswith("forced")}))
    rng = np.random.default_rng(0)
    variables = init_variables(parts.model, 0, SIZE, 0)
    batch = {
        "frames": rng.integers(0, 255, (3, STEPS + 1, *SIZE, 3), np.uint8),
        "labels": np.zeros((3, STEPS + 1, 0), np.float32),
        "mask": np.ones(3, np.float32),
        "index": np.arange(3, dtype=np.int32),
    }
    controls = {"seed": np.uint32(0), "beta": np.float32(0.1), "learning_rate": np.float32(1e-3)}
    if draw == "step":
        controls["forced"] = MIXED
    elif draw == "forced":
        controls["forced"] = np.ones(STEPS, bool)  # folded
    elif draw == "forced_example_step":
        batch["forced"] = np.ones((3, STEPS), bool)
    else:
        batch["forced"] = np.array(
            [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]], bool
        )  # all of the first device
    results = []
    for count in (1, 2):
        devices = Devices(jax.local_devices()[:count])
        step = devices.map_update(make_train_step(*parts.compiled, throughout=throughout))
        state = devices.place(TrainState.create(variables, parts.optimizer))
        state, metrics = step(state, devices.split(pad_to_devices(batch, count)), controls)
        results.append(jax.device_get((metrics, state.batch_stats)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), *results)


@pytest.mark.parametrize(
    ("fold_time", "known"), [(True, [False, True, None]), (False, [None])], ids=["folding", "not-folding"]
)
def test_runs_share_a_program_if_they_force_alike(grey_data, tmp_path, monkeypatch, fold_time, known):
    cache, made = Cache(), []

    def make(*parts, throughout, **more):
        made.append(throughout)
        return make_train_step(*parts, throughout=throughout, **more)

    monkeypatch.setattr(training, "make_train_step", make)
    for number, ratio in enumerate((0.0, 1.0, 0.5, 1.0)):
        config = tiny(**{"teacher_forcing.initial": ratio, "rollout.fold_time": fold_time})
        run = open_run(config, tmp_path / str(number), jax.local_devices()[:1], cache)
        run.checkpoints.close()
        run.writers.close()
    assert made == known


@pytest.mark.parametrize("mode", ["prior", pytest.param("posterior", marks=pytest.mark.slow)])
def test_chunks_and_batches_change_nothing(grey_data, mode):
    parts, one = Components.build(tiny()), Devices(jax.local_devices()[:1])
    variables = variables_of(parts.model)
    recordings = [*grey_data["train"], *grey_data["validation"]]
    frames = []
    for chunk, batch in ((64, 2), (3, 1)):
        options = dict(n_past=N_PAST, batch_size=batch, chunk=chunk)
        scorer = Scorer(parts.model, parts.objective, one, **options)
        frames.append([s.frames for s in scorer.run(variables, recordings, mode, 7)])
    for whole, chunked in zip(*frames, strict=True):
        assert np.abs(whole.astype(int) - chunked).max() <= 1


@pytest.mark.parametrize(
    ("backbone", "formulation"),
    [
        ("dcgan", "plain"),
        pytest.param("dcgan", "cpu", marks=pytest.mark.slow),
        pytest.param("vgg", "cpu", marks=pytest.mark.slow),
    ],
)
def test_mixed_precision_gives_nearly_the_same(backbone, formulation):
    """bfloat16 maps; parameters, statistics, states, frames and losses stay in float32."""
    results = []
    for precision in ("float32", "bfloat16"):
        model = dataclasses.replace(
            MODEL, width=4, backbone=backbone, formulation=formulation, precision=precision
        )
        variables = init_variables(model, 0, SIZE, 0)
        clips = clips_of(video())
        results.append(gradients_of(model, variables, clips, jnp.asarray(MIXED)))
        fold = RolloutOptions(fold_time=True, time_chunk=3)
        results.append(gradients_of(model, variables, clips, jnp.ones(STEPS, bool), options=fold))
        assert {leaf.dtype for leaf in jax.tree.leaves(results[-1])} == {jnp.dtype("float32")}
    for (_, exact, _), (gradients, rough, _) in zip(results[:2], results[2:], strict=True):
        assert float(rough["recon"]) == pytest.approx(float(exact["recon"]), rel=0.05)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
