"""Conditional-VAE video prediction in JAX: a first frame and a sequence of labels become a video."""

__version__ = "0.1.0"
