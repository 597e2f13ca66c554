"""Every field of a run with its default: see `cvae_jax/defaults.py`, where each has a comment."""

from cvae_jax.defaults import get_config

__all__ = ["get_config"]
