"""How the state dicts of a published PyTorch program become a run; `cvae_jax.import_torch` reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

StateDict = Mapping[str, np.ndarray]


class TorchFormat(NamedTuple):
    """The checkpoints of one program.

    Attributes:
      recognises: whether a state dict's names are this program's.
      to_variables: returns {'params', 'batch_stats'}; UserError for a name that is not the model's.
      changes: returns the fields 'a.b' of the default config that its training had other values of, the
        model's dimensions among them.
      modules: of a program that saves a state dict for each module, their names; otherwise ().
      frame_size: (height, width) of the frames it was trained on, which a checkpoint does not say.
      label_size: the length of its labels; None: they are images.
      evaluate_with: flags that evaluate.py needs besides the workdir, and a remark.
    """

    recognises: Callable[[StateDict], bool]
    to_variables: Callable[[StateDict], dict]
    changes: Callable[[StateDict], dict[str, Any]]
    modules: tuple[str, ...]
    frame_size: tuple[int, int]
    label_size: int | None
    evaluate_with: str
