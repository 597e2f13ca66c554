"""What the compiled programs are: memory without the clip's length, nothing computed twice, what loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import all_equations, equations_in_loops
from small_model import SmallCVAE
from whole_clips import predict

from cvae_jax.losses import Objective
from cvae_jax.models import flops, ops
from cvae_jax.models.cvae import CVAE
from cvae_jax.models.interface import StepInputs, init_variables, variable_shapes
from cvae_jax.rollout.noise import clip_noise, derive_keys
from cvae_jax.rollout.scan import Clips, RolloutOptions, observe_step
from cvae_jax.runtime.operations import count_operations
from cvae_jax.training.gradients import clip_gradients

H, W = 16, 12
DIMENSIONS = dict(frame_features=16, label_features=4, latent_channels=4, decoder_features=16)
FULL_SIZE = dict(frame_features=128, label_features=32, latent_channels=12, decoder_features=192)
LOOPS = ("scan", "while")


def gradients_of(model, feedback):
    """A function (variables, frames, labels, forced) -> (gradients, metrics, batch statistics)."""

    def run(variables, frames, labels, forced):
        clips = Clips(frames, labels, jnp.ones(frames.shape[0]))
        keys = derive_keys(jnp.uint32(0), jnp.arange(clips.frames.shape[0]))
        noise = clip_noise(keys, model.latent_shape((H, W)))
        return clip_gradients(
            model,
            Objective(),
            feedback,
            variables,
            clips,
            noise,
            forced,
            jnp.float32(1.0),
            jnp.sum(clips.mask),
        )

    return run


def video(batch, frames):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (batch, frames, H, W, 3), np.uint8) for _ in range(2)]


@pytest.mark.parametrize("fold_time", [False, True])
def test_memory_does_not_depend_on_the_length_of_the_clip(fold_time):
    model = SmallCVAE(8, 2, 4, 8)
    run = jax.jit(gradients_of(model, RolloutOptions(fold_time=fold_time, time_chunk=3)))
    variables = init_variables(model, 0, (H, W))

    def temporary(frames):
        compiled = run.lower(variables, *video(2, frames), np.ones(frames - 1, bool)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary(16), temporary(64)
    assert short > 20 * H * W * 3
    # 48 steps more are 48 times a number and three metrics of 4 bytes.
    assert 0 <= long - short <= 48 * 4 * 4


def test_arithmetic_of_a_cell_is_the_models_own_count():
    """From the compiler's cost analysis: before optimisation as it is, after it for the CPU's formulation.

    (The CPU backend itself turns the plain formulation's depthwise convolutions into larger ones, and the
    analysis counts the one loop of the CPU's formulation once; both are small parts.)
    """
    height, width = 32, 64
    shape = lambda c: jax.ShapeDtypeStruct((1, height, width, c), jnp.float32)  # noqa: E731
    inputs = (shape(FULL_SIZE["frame_features"]), shape(3), shape(3), shape(FULL_SIZE["latent_channels"]))

    def lowered(formulation):
        model = CVAE(**FULL_SIZE, formulation=formulation)
        variables = jax.device_put(init_variables(model, 0, (height, width)))

        def loss(params, previous_features, current, label, noise):
            reference = {"reference": jnp.concatenate([current, label], axis=-1)}
            x = StepInputs(
                t=jnp.int32(1),
                previous=current,
                previous_is_true=jnp.bool_(True),
                previous_is_given=jnp.bool_(True),
                label=label,
                conditioning=None,
                noise=noise,
                mask=jnp.ones(1),
                target=current,
            )
            here, carry = variables | {"params": params}, {"features": previous_features}
            outputs, *_ = observe_step(model, here, reference, carry, x, train=True)
            return sum(map(jnp.sum, Objective().score(outputs, current, train=True)))

        params = variables["params"]
        own = flops.training_flops(params, height * width)
        generated = 2 * height * width * flops.multiply_adds(params)["frame_encoder"]
        return jax.jit(jax.grad(loss)).lower(params, *inputs), own, generated

    program, own, generated = lowered("plain")  # with the branch that encodes a generated frame
    assert program.cost_analysis()["flops"] == pytest.approx(own + generated, rel=0.05)
    program, own, _ = lowered("cpu")
    kernels = jax.tree.leaves(variable_shapes(CVAE(**FULL_SIZE), (height, width))["params"])
    large = [k.size for k in kernels if k.shape[:2] == (3, 3) and min(k.shape[2:]) >= ops.WINOGRAD_CHANNELS]
    own -= 3 * 2 * height * width * sum(large) * 5 / 9  # what Winograd's algorithm saves, in gradients too
    assert program.compile().cost_analysis()["flops"] == pytest.approx(own, rel=0.05)


def test_a_step_does_nothing_twice():
    """A clip of one step: the gradient, the first frame's features, and the branch for a generated one."""
    model = CVAE(**FULL_SIZE, formulation="plain")
    variables = init_variables(model, 0, (H, W))
    program = jax.jit(gradients_of(model, RolloutOptions())).lower(variables, *video(1, 2), np.ones(1, bool))
    own = flops.training_flops(variables["params"], H * W)
    own += 2 * 2 * H * W * flops.multiply_adds(variables["params"])["frame_encoder"]
    assert program.cost_analysis()["flops"] == pytest.approx(own, rel=0.05)


def test_own_count_of_multiply_adds():
    """3.62 G multiply-adds per frame forward at 32 x 64, the previous frame's encoder included."""
    params = init_variables(CVAE(**FULL_SIZE), 0, (32, 64))["params"]
    counts = flops.multiply_adds(params)
    forward = sum(counts.values()) + counts["frame_encoder"]
    assert forward * 32 * 64 == pytest.approx(3.62e9, rel=0.002)
    generated = flops.training_flops(params, 1, teacher_forced=False)
    assert generated - flops.training_flops(params, 1) == 2 * counts["frame_encoder"]
    kept = sum(counts.values()) - counts["gaussian_predictor"]
    assert flops.prediction_flops(params, 10) == 20 * kept


def test_an_accelerators_program_has_native_convolutions_and_no_loop_over_frames():
    """Teacher-forced clips of 16 frames: three chunks of five steps, nothing looped inside a chunk."""
    model = CVAE(**DIMENSIONS, formulation="plain")
    run = jax.jit(gradients_of(model, RolloutOptions(fold_time=True, time_chunk=5)))
    variables = init_variables(model, 0, (H, W))
    traced = run.trace(variables, *video(2, 16), np.ones(15, bool))

    conds = [
        e for depth, e in equations_in_loops(traced.jaxpr.jaxpr) if e.primitive.name == "cond" and depth == 0
    ]
    one_step_at_a_time, folded = conds[0].params["branches"]  # lax.cond: false, true
    inner = equations_in_loops(folded)
    loops = [(depth, e.params["length"]) for depth, e in inner if e.primitive.name in LOOPS]
    assert loops == [(0, 3)]
    scans = [e for e in all_equations(one_step_at_a_time) if e.primitive.name == "scan"]
    assert [e.params["length"] for e in scans] == [3, 5]  # chunks, and the steps of one
    inside, around = (count_operations(e.params["jaxpr"]).total_flops for e in reversed(scans))
    # Only what depends on generated frames is in the inner loop: no labels, and of the frames' encoder but
    # one forward pass, of the previous frame.
    counts = flops.multiply_adds(variables["params"])
    prepared = counts["frame_encoder"] + counts["label_encoder"]
    by_hand = 3 * (sum(counts.values()) - prepared) + counts["frame_encoder"]
    step = flops.training_flops(variables["params"], 1, teacher_forced=False) / 2
    # (Padding is left out of the counts of programs, here 5 % of the operations.)
    assert 5 * inside / around == pytest.approx(by_hand / step, rel=0.01)
    assert around == pytest.approx(5 * 2 * 2 * H * W * step, rel=0.06)
    shapes = [
        e.invars[0].aval.shape
        for _, e in equations_in_loops(folded.jaxpr)
        if e.primitive.name == "conv_general_dilated"
    ]
    kernels = len([p for p, _ in jax.tree_util.tree_leaves_with_path(variables) if p[-1].key == "kernel"])
    assert len(shapes) >= 2 * kernels  # forward and the weights' gradients
    assert max(shape[0] for shape in shapes) >= 2 * 5  # clips x steps of a chunk

    for accelerator in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(accelerator,)).as_text()
        assert text.count("stablehlo.convolution") >= 2 * kernels
        assert "stablehlo.dot_general" not in text
        assert not any(word in text for word in ("callback", "infeed", "outfeed"))  # nothing asks the host


@pytest.mark.parametrize(
    ("formulation", "feedback", "forced"),
    [
        ("plain", RolloutOptions(), [True, False]),
        ("cpu", RolloutOptions(), [True, False]),
        ("plain", RolloutOptions(fold_time=True, time_chunk=2), [True, True]),
    ],
)
def test_mixed_precision_gives_nearly_the_same_gradients(formulation, feedback, forced):
    """bfloat16 features; parameters, losses and statistics stay in float32."""
    variables = init_variables(CVAE(**DIMENSIONS), 0, (H, W))
    arguments = (variables, *video(2, 3), np.array(forced))
    results = {}
    for precision in ("float32", "bfloat16"):
        model = CVAE(**DIMENSIONS, formulation=formulation, precision=precision)
        results[precision] = jax.jit(gradients_of(model, feedback))(*arguments)
        features = jax.eval_shape(
            lambda f, m=model: m.network.apply(variables, f, method="encode_frame"),
            arguments[1][:, 0] / 255.0,
        )
        assert features.dtype == precision
        frames = jax.eval_shape(
            lambda v, f, m=model: predict(m, v, f[:, 0], f, lambda t: jnp.zeros((2, H, W, 4))), *arguments[:2]
        )
        assert frames.dtype == "float32"
    assert {x.dtype for x in jax.tree.leaves(results["bfloat16"])} == {jnp.dtype("float32")}
    (exact, full, _), (rough, mixed, _) = results.values()
    for name in full:
        assert float(mixed[name]) == pytest.approx(float(full[name]), rel=0.02), name
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (exact, rough))
    assert 0 < np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a)
