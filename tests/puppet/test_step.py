"""The step that a page runs is the step of the rollout, also without control flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moving_square, tiny_config
from jax import lax

from cvae_jax import models
from cvae_jax.data.clips import to_unit
from cvae_jax.models.adversarial import AdversarialOptions
from cvae_jax.models.interface import init_variables
from cvae_jax.puppet.step import Names, make_step, names_of, straightened, without_copies
from cvae_jax.rollout.chunks import ChunkedRollout, Prompt
from cvae_jax.rollout.noise import EVALUATION_STREAM, clip_noise, derive_keys
from cvae_jax.rollout.programs import make_begin
from cvae_jax.runtime.devices import Devices

CASES = {
    "cvae, residual, history": ("cvae", {"output": "residual", "history": 1, "prior": "learned"}, 2),
    "multiscale": ("multiscale", {}, 1),
    "multiscale with feedback": ("multiscale", {"feedback": 2, "latent_channels": 0}, 2),
    "svg": ("svg", {}, 2),
    "svg without prior or labels": ("svg", {"prior": "fixed", "label_features": 0}, 1),
}


def size_for(kind):
    return (64, 64) if kind == "svg" else (16, 12)


@pytest.mark.parametrize(
    "case, straight", [("multiscale", False), *((case, True) for case in CASES)], ids=str
)
def test_steps_are_a_rollout(case, straight):
    kind, fields, n_past = CASES[case]
    config = tiny_config()
    config.model.kind = kind
    config.model[kind].update(fields)
    model = models.build(config.model, "float32", None)
    recording = moving_square("a", n_past + 4, 1, size_for(kind))
    size = recording.frames.shape[1:3]
    variables = init_variables(model, 0, size)
    rollout = ChunkedRollout(model, Devices(jax.devices()[:1]), "prior", n_past=n_past, batch_size=1, chunk=9)
    prompt = Prompt.of(recording, n_past, 3)
    rolled = next(rollout.run(variables, [prompt], [(0, 1)], seed=7, temperature=0.5))

    address = {"index": np.full(1, 3, np.uint32), "sample": np.full(1, 1, np.uint32)}
    given = {"given": recording.frames[None, :n_past], "labels": recording.labels[None, :n_past]}
    batch = given | address | {"mask": np.ones(1, np.float32)}
    started = jax.jit(make_begin(model))(variables, batch, {"seed": np.uint32(7)})
    constants, carry = started["constants"], started["state"].carry
    keys = derive_keys(jnp.uint32(7), EVALUATION_STREAM, *map(jnp.asarray, address.values()))
    noise = clip_noise(keys, model.latent_shape(size))
    step = make_step(model, variables, n_past, constants, carry)
    step = jax.jit(straightened(step) if straight else step)
    names = names_of(model, constants, carry)
    fixed, kept, frame = jax.tree.leaves(constants), jax.tree.leaves(carry), started["state"].frame
    for number, t in enumerate(range(n_past, len(recording.frames))):
        label = to_unit(recording.labels[None, t])
        outputs = step(jnp.int32(t), frame, label, 0.5 * noise(jnp.int32(t)), *fixed, *kept)
        assert len(outputs) == len(names.outputs)
        frame, kept = outputs[0], outputs[1 + len(names.masks) :]
        seen = np.rint(255 * np.asarray(frame[0])).astype(int)
        assert np.abs(seen - rolled.frames[number]).max() <= 1


def test_the_step_of_a_model_with_a_critic_leaves_the_critic_out():
    config = tiny_config()
    config.model.kind = "multiscale"
    model = models.build(config.model, "float32", None, AdversarialOptions(weight=1.0, widths=(4, 4)))
    alone = models.build(config.model, "float32", None)
    variables = init_variables(model, 0, (16, 12))
    recording = moving_square("a", 3, 1)
    frame, label = (jnp.asarray(to_unit(x[None, :1])) for x in (recording.frames, recording.labels))
    found = []
    inner = {**variables, "params": variables["params"]["model"]}
    for one, own in ((model, variables), (alone, inner)):
        constants, carry = one.begin(own, frame, label, False)
        step = jax.jit(make_step(one, own, 1, constants, carry))
        noise = jnp.zeros((1, *one.latent_shape((16, 12))))
        found.append(step(jnp.int32(1), frame[:, 0], label[:, 0], noise, *jax.tree.leaves(constants))[0])
    np.testing.assert_array_equal(*found)


def test_what_a_step_returns_as_it_is_is_left_out():
    names = Names((), ("carry_0", "carry_1", "carry_2"), (), ("carry_0", "carry_1", "carry_2"))

    def step(t, frame, label, noise, first, second, third):
        return frame + label, first, frame, third + 1

    inputs = [jnp.float32(value) for value in range(7)]
    reduced, left = without_copies(step, names, inputs)
    assert left.changing == ("carry_1", "carry_2")
    assert left.outputs == ["next_frame", "next_carry_1", "next_carry_2"]
    np.testing.assert_array_equal(reduced(*inputs), [1 + 2, 1, 6 + 1])
    program = jax.make_jaxpr(reduced)(*inputs).jaxpr
    assert not set(program.invars) & set(program.outvars)


def branching(x, flag, empty):
    chosen = lax.cond(flag, lambda y: 2 * y, lambda y: y - 1, x)
    switched = lax.switch(jnp.int32(2) * flag, [jnp.sin, jnp.cos, jnp.tanh], chosen)
    return jax.jit(lambda y: jnp.concatenate([y, empty, 1 / y]))(switched), {"one": chosen}


@pytest.mark.parametrize("flag", [True, False])
def test_a_straight_program_has_no_branches_and_computes_the_same(flag):
    arguments = jnp.arange(1.0, 4.0), jnp.bool_(flag), jnp.zeros(0)
    straight = straightened(branching)
    for found, expected in zip(
        jax.tree.leaves(straight(*arguments)), jax.tree.leaves(branching(*arguments)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    program = str(jax.make_jaxpr(straight)(*arguments))
    assert "cond" not in program and "f32[0]" not in program.split("let")[1].split("in (")[0]


@pytest.mark.parametrize("reverse", [False, True])
def test_scans_are_unrolled(reverse):
    def total(x, by):
        return lax.scan(lambda c, y: (c + by * y, (c, y**2)), jnp.float32(1), x, reverse=reverse)

    arguments = jnp.arange(3.0), jnp.float32(2)
    for found, expected in zip(
        jax.tree.leaves(straightened(total)(*arguments)), jax.tree.leaves(total(*arguments)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert "scan" not in str(jax.make_jaxpr(straightened(total))(*arguments))


def test_an_unbounded_loop_is_refused():
    with pytest.raises(ValueError, match="while_loop"):
        straightened(lambda x: lax.while_loop(lambda y: y < 9, lambda y: 2 * y, x))(jnp.float32(1))
