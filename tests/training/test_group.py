"""Runs that train together on one device: each is as if it had trained alone."""

import concurrent.futures

import jax
import numpy as np
import pytest
from helpers import Killed, flat, kill_after_saving, read_rows, restored, tiny_config

from cvae_jax import train as training
from cvae_jax.runtime.cache import Cache
from cvae_jax.runtime.errors import NonFiniteError
from cvae_jax.train import open_run
from cvae_jax.training.controls import Controls
from cvae_jax.training.group import Group

pytestmark = pytest.mark.usefixtures("small_model")
SIZE = (16, 12)
CHANGES = (
    {"seed": 0},
    {"seed": 1, "beta": {"kind": "monotonic", "cycle_length": 2.0, "scale": 0.1}},
    {"seed": 2, "learning_rate": {"peak": 1e-3}, "teacher_forcing": {"draw": "step"}},
)


def configs():
    found = []
    for changes in CHANGES:
        config = tiny_config()
        config.optimizer.eps = 1e-5  # otherwise Adam makes steps of what rounding changes
        config.update(changes)
        found.append(config)
    return found


def train_together(configs, folders, cache=None, prepare=lambda number, run: None):
    """Train runs in a group on one device; return for each its final state or the error that ended it."""
    group, cache = Group(len(configs)), cache or Cache()
    devices = jax.local_devices()[:1]

    def train(number):
        with group.member(number) as member:
            try:
                run = open_run(configs[number], folders[number], devices, cache, member=member)
                prepare(number, run)
                return jax.device_get(run.finish())
            except (NonFiniteError, Killed) as error:
                return error

    with concurrent.futures.ThreadPoolExecutor(len(configs)) as pool:
        return list(pool.map(train, range(len(configs))))


@pytest.fixture
def alone(data, tmp_path):
    """(configs, folders, final states) of runs that trained one after the other."""
    folders = [tmp_path / f"alone{number}" for number in range(len(CHANGES))]
    states = [
        jax.device_get(open_run(config, folder, jax.local_devices()[:1]).finish())
        for config, folder in zip(configs(), folders, strict=True)
    ]
    return configs(), folders, states


def assert_alike(folder, other, state, another):
    """The same rows, parameters and checkpoint, but for float32's rounding."""
    rows, others = read_rows(folder), read_rows(other)
    assert len(rows) == len(others) == 3
    for row, one in zip(rows, others, strict=True):
        assert row.keys() == one.keys()
        for name in ("train_loss", "recon", "kl", "grad_norm", "val_psnr_prior", "val_loss"):
            assert one[name] == pytest.approx(row[name], rel=1e-3), name
        for name in ("beta", "learning_rate", "teacher_forced", "teacher_forcing_ratio", "step"):
            assert one[name] == row[name], name
    assert int(state.step) == int(another.step)
    np.testing.assert_allclose(flat(another.params), flat(state.params), rtol=1e-3, atol=2e-4)
    stored = restored(other, "last", SIZE)[1]
    assert np.array_equal(flat(stored.params), flat(another.params))


def test_runs_train_together_as_they_do_alone(alone, tmp_path, monkeypatch):
    """With other seeds, schedules and draws: as one program, which is compiled once."""
    own, folders, states = alone
    together = [tmp_path / f"together{number}" for number in range(len(own))]
    made, traced = training.make_group_step, []

    def counted(step):
        return made(lambda *arguments: (traced.append(1), step(*arguments))[1])

    monkeypatch.setattr(training, "make_group_step", counted)
    found = train_together(own, together, Cache())
    for folder, other, state, another in zip(folders, together, states, found, strict=True):
        assert_alike(folder, other, state, another)
    assert len(traced) == 1
    losses = {read_rows(folder)[-1]["train_loss"] for folder in together}
    assert len(losses) == len(own)


def test_a_run_that_was_interrupted_joins_later_and_leaves_later(alone, tmp_path):
    """The second of three is killed in its first epoch; later it resumes beside one that is done."""
    own, folders, states = alone
    together = [tmp_path / f"together{number}" for number in range(len(own))]

    def kill_second(number, run):
        if number == 1:
            kill_after_saving(run, 1)

    first, killed, third = train_together(own, together, prepare=kill_second)
    assert isinstance(killed, Killed)
    assert_alike(folders[0], together[0], states[0], first)
    assert_alike(folders[2], together[2], states[2], third)
    _, second = train_together([own[0], own[1]], [together[0], together[1]])
    assert_alike(folders[1], together[1], states[1], second)


def test_a_run_that_diverges_does_not_disturb_the_others(alone, tmp_path, monkeypatch):
    own, folders, states = alone
    together = [tmp_path / f"together{number}" for number in range(len(own))]
    values = Controls.values
    bad = lambda self, e, n: {"beta": float("nan")} if (self.seed, e, n) == (1, 1, 0) else {}  # noqa: E731
    monkeypatch.setattr(Controls, "values", lambda self, e, n: values(self, e, n) | bad(self, e, n))
    first, error, third = train_together(own, together)
    assert isinstance(error, NonFiniteError) and "epoch 2, batch 1" in str(error)
    assert_alike(folders[0], together[0], states[0], first)
    assert_alike(folders[2], together[2], states[2], third)


def test_a_stand_in_that_cannot_be_made_reaches_the_runs_that_wait(monkeypatch):
    group = Group(2)

    def refuse(leaf):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr("cvae_jax.training.group.jnp.copy", refuse)
    with group.member(1):
        pass  # it leaves before it has ever taken a step
    with group.member(0) as member, pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        member.step(lambda: pytest.fail)({"x": np.zeros(2)}, {}, {})


def test_an_error_of_the_step_reaches_every_run(data, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("the device is lost")

    own = configs()[:2]
    group = Group(2)
    taken = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:

        def call(number):
            with group.member(number) as member, pytest.raises(RuntimeError, match="the device is lost"):
                member.step(lambda: fail)({"x": np.zeros(2)}, {}, {})
            taken.append(number)

        list(pool.map(call, range(len(own))))
    assert sorted(taken) == [0, 1]
