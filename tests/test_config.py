"""Configs against the defaults, and what a resumed run may change."""

import copy
import json
import re

import pytest
from ml_collections import ConfigDict

from cvae_jax import defaults
from cvae_jax.config import Components, check_fields, load, refuse_other_training, save
from cvae_jax.runtime.errors import UserError


def changed(**fields):
    """The defaults as an open config with these fields, a__b for a.b."""
    values = defaults.get_config().to_dict()
    for name, value in fields.items():
        *path, last = name.split("__")
        section = values
        for part in path:
            section = section[part]
        section[last] = value
    return ConfigDict(values)


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate__peak": 1},  # an int for a float
        {"data__stride": 3, "data__frame_size": (32, 32), "eval__temperature": 1},
        {"data__stride": None},
    ],
)
def test_values_that_fit(fields):
    check_fields(changed(**fields), defaults.get_config())


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"num_epochs": "3"}, "config.num_epochs is '3'; give a value of type int"),
        ({"num_epochs": 3.0}, "config.num_epochs is 3.0; give a value of type int"),
        ({"num_epochs": True}, "config.num_epochs is True; give a value of type int"),
        ({"learning_rate__peak": "1e-3"}, "config.learning_rate.peak is '1e-3'; give a value of type float"),
        ({"data__shuffle": 1}, "config.data.shuffle is 1; give a value of type bool"),
        ({"data__stride": "3"}, "config.data.stride is '3'; give a value of type int"),
        ({"seed": None}, "config.seed is None; give a value of type int"),
        ({"model": 3}, "config.model is 3; give a section of fields"),
        ({"beta__knd": "none"}, "config.beta.knd is not a field; did you mean config.beta.kind?"),
        ({"xyz": 1}, "config.xyz is not a field ("),
    ],
)
def test_values_and_fields_that_do_not_fit(fields, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_fields(changed(**fields), defaults.get_config())


def test_everything_wrong_is_one_sentence():
    config = changed(beta__knd=1, seed="0")
    del config.optimizer
    with pytest.raises(UserError) as error:
        check_fields(config, defaults.get_config())
    assert all(part in str(error.value) for part in ("beta.knd", "missing: config.optimizer", "config.seed"))
    assert "\n" not in str(error.value)


def test_a_stored_config_is_as_strict_as_a_file(tmp_path):
    save(changed(learning_rate__peak=1), tmp_path)
    config = load(tmp_path, defaults.get_config())
    assert config.learning_rate.peak == 1.0 and config.is_locked
    with pytest.raises(AttributeError):
        config.learning_rate.paek = 1


@pytest.mark.parametrize("kind, beta", [("cyclical", False), ("fu_cyclical", True)])
def test_a_longer_run_is_another_unless_it_is_asked_for(tmp_path, capsys, kind, beta):
    stored = defaults.get_config()
    stored.beta.kind = kind
    longer = copy.deepcopy(stored)
    longer.num_epochs = 150
    with pytest.raises(UserError, match="config.num_epochs is 150 but was 100.*add --extend") as error:
        refuse_other_training(longer, stored, tmp_path)
    assert ("beta's cycles" in str(error.value)) == beta
    refuse_other_training(longer, stored, tmp_path, extend=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "from 100 to 150 epochs" in line and ("beta's cycles" in line) == beta
    with pytest.raises(UserError, match="config.num_epochs is 100 but was 150") as error:
        refuse_other_training(stored, longer, tmp_path, extend=True)
    assert "--extend" not in str(error.value)
    longer.seed = 1  # asking for more epochs asks for nothing else
    with pytest.raises(UserError, match="config.seed is 1 but was 0"):
        refuse_other_training(longer, stored, tmp_path, extend=True)


def test_a_workdir_of_the_first_format_is_read(tmp_path):
    """Then there was one model, without a kind, and one of its fields stood in the section rollout."""
    config = defaults.get_config()
    config.model.cvae.frame_features = 24
    config.model.cvae.cut_previous_features = False
    stored = config.to_dict()
    stored["model"] = stored["model"]["cvae"]
    stored["rollout"]["cut_previous_features"] = stored["model"].pop("cut_previous_features")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert load(tmp_path, defaults.get_config()).to_dict() == config.to_dict()


def test_balancing_the_kl_needs_a_learned_prior():
    config = defaults.get_config()
    config.loss.kl_balance = 0.8
    with pytest.raises(
        UserError, match="the prior of config.model.cvae is fixed: set config.loss.kl_balance=0"
    ):
        Components.build(config)
    config.model.cvae.prior = "learned"
    assert Components.build(config).objective.kl_balance == 0.8
