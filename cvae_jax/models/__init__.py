"""The models by kind. A new model is a module here and a line in KINDS (see docs/models.md)."""

from __future__ import annotations

from ml_collections import ConfigDict

from cvae_jax.models.adversarial import Adversarial, AdversarialOptions
from cvae_jax.models.cvae import CVAE
from cvae_jax.models.interface import VideoModel
from cvae_jax.models.multiscale import Multiscale
from cvae_jax.models.svg import SVG
from cvae_jax.runtime.errors import UserError
from cvae_jax.sections import section_of

KINDS: dict[str, type[VideoModel]] = {"cvae": CVAE, "multiscale": Multiscale, "svg": SVG}
PRECISIONS = ("float32", "bfloat16")


def sections() -> dict[str, ConfigDict]:
    """Return the default section `config.model.<kind>` of each kind: the fields of its class."""
    return {kind: section_of(model, exclude=("precision", "axis_name")) for kind, model in KINDS.items()}


def build(
    section: ConfigDict, precision: str, axis_name: str | None, critic: AdversarialOptions | None = None
) -> VideoModel:
    """Return the model that `config.model` describes; UserError for a kind or value that it cannot be.

    critic: the model comes with a critic of these options (see `adversarial`).

    The sections of all kinds are checked, so that a mistake in one that is not used is found as well.
    """
    if section.kind not in KINDS:
        raise UserError(f"config.model.kind is {section.kind!r}; choose one of {', '.join(KINDS)}.")
    if precision not in PRECISIONS:
        raise UserError(f"config.precision is {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    built = {
        # A subclass is a dataclass of the fields of its section; the base class has none.
        kind: model(**section[kind], precision=precision, axis_name=axis_name)  # type: ignore[call-arg]
        for kind, model in KINDS.items()
    }
    model = built[section.kind]
    return model if critic is None else Adversarial(model, critic)


def in_plain_formulation(section: dict) -> dict:
    """Return `config.model` as a dict in which every kind of model has its plain formulation (see `ops`)."""
    return {
        kind: own | {"formulation": "plain"} if isinstance(own, dict) and "formulation" in own else own
        for kind, own in section.items()
    }


def from_first_format(stored: dict) -> dict:
    """Return a stored config with this version's sections: the first one had one model, without a kind."""
    model, rollout = stored.get("model"), stored.get("rollout")
    if not isinstance(model, dict) or not isinstance(rollout, dict) or "kind" in model:
        return stored
    rollout = dict(rollout)
    moved = {name: rollout.pop(name) for name in ("cut_previous_features",) if name in rollout}
    return stored | {"model": {"kind": "cvae", "cvae": model | moved}, "rollout": rollout}
