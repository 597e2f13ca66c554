"""The prior's width against the next turn of a digit, from what evaluate.py writes."""

import json

import numpy as np
import pytest

from cvae_jax import config as config_files
from cvae_jax import defaults
from cvae_jax.data.clips import data_hash
from cvae_jax.data.datasets import stochastic_moving_mnist as digits
from cvae_jax.evaluation.evaluate import PER_CLIP
from cvae_jax.study import turns


def test_frames_to_the_next_turn():
    turned = np.zeros((7, 2), bool)
    turned[1, 0] = turned[4, 1] = True
    np.testing.assert_array_equal(turns.frames_to_turn(turned), [1, 0, 2, 1, 0, np.nan, np.nan])


def test_widths_are_averaged_over_a_clips_frames_first():
    distance = np.array([[0, 1, 0, np.nan], [0, 1, 2, np.nan]])
    width = np.array([[1.0, 5.0, 3.0, 99.0], [6.0, 7.0, 8.0, 99.0]])
    rows = turns.widths_by_distance(width, distance)
    assert [(row["frames_to_turn"], row["prior_std"], row["frames"]) for row in rows] == [
        (0, 4.0, 3),  # (2 + 6) / 2
        (1, 6.0, 2),
    ]
    assert rows[0]["standard_error"] == pytest.approx(2.0)


@pytest.fixture
def recordings(monkeypatch):
    """The first test sequences, which the runs are evaluated on."""
    options = digits.Options(test_sequences=40)
    made = list(digits.make_recordings(digits.read_digits(None), options, "test"))
    monkeypatch.setattr(turns, "load_data", lambda *_: {"test": made})
    return made


def workdir_with(tmp_path, recordings, width_of):
    """A workdir as evaluate.py leaves it, of a prior with a known width."""
    clips = len(recordings)
    config = defaults.get_config()
    config.data.name, config.n_past = digits.NAME, 5
    config_files.save(config, tmp_path)
    options = digits.Options(**config.data[digits.NAME])
    number = len(digits.read_digits(None)["test"])
    turned = [
        digits.turns(number, options.seed, "test", clip, options.eval_frames, options.digits).any(axis=1)
        for clip in range(clips)
    ]
    (tmp_path / "eval").mkdir()
    protocol = {"split": "test", "data_blake2b": data_hash(recordings)}
    (tmp_path / "eval" / "results.json").write_text(json.dumps({"protocol": protocol}))
    widths = np.stack([width_of(t)[5:] for t in turned])
    np.savez(tmp_path / "eval" / PER_CLIP, prior_std=widths)


def test_a_prior_that_is_wide_at_turns_only_is_seen_as_such(recordings, tmp_path):
    workdir_with(tmp_path, recordings, lambda turned: np.where(turned, 2.0, 0.5))
    figure = tmp_path / "turns.png"
    assert turns.main([str(tmp_path), f"--out={figure}"]) == 0
    (rows,) = json.loads(figure.with_suffix(".json").read_text()).values()
    assert [row["frames_to_turn"] for row in rows] == list(range(turns.FARTHEST + 1))
    assert rows[0]["prior_std"] == 2.0 and {row["prior_std"] for row in rows[1:]} == {0.5}
    assert figure.stat().st_size > 5000


def test_refusals(recordings, tmp_path, capsys):
    workdir_with(tmp_path, recordings[:2], lambda turned: np.ones(len(turned)))
    assert turns.main([str(tmp_path)]) == 2  # two clips, and the config describes forty
    assert "was evaluated on other clips than its config describes" in capsys.readouterr().err
    recordings[2:] = []
    (tmp_path / "eval" / PER_CLIP).unlink()
    assert turns.main([str(tmp_path)]) == 2
    assert "run python evaluate.py --workdir=" in capsys.readouterr().err
    config_files.save(defaults.get_config(), tmp_path)
    assert turns.main([str(tmp_path)]) == 2
    assert "was trained on real_clips; give runs on stochastic_moving_mnist" in capsys.readouterr().err
