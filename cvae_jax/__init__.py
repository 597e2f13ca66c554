"""Conditional-VAE video prediction in JAX: a first frame and a sequence of labels become a video.

`load` opens a trained run, whose methods make videos:

    run = cvae_jax.load("runs/demo")
    video = run.predict(first, labels)

docs/python.md is a tutorial. Importing this package is fast: JAX is imported with the first use of `load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "UserError", "__version__", "load"]

if TYPE_CHECKING:
    from cvae_jax.run import Run, load
    from cvae_jax.runtime.errors import UserError
else:
    _MODULES = {"Run": "cvae_jax.run", "UserError": "cvae_jax.runtime.errors", "load": "cvae_jax.run"}

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})
