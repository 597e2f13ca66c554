"""What a training run carries from step to step, and the update it makes."""

from __future__ import annotations

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jaxtyping import Array, Float, PyTree

from cvae_jax.models.adversarial import CRITIC, MODEL, AdversarialOptions
from cvae_jax.models.interface import Variables
from cvae_jax.runtime.errors import UserError

KINDS = ("adam", "muon")
MUON_FROM = 16  # fewest input and output channels of a kernel that Muon updates
MUON_MOMENTUM, MUON_ITERATIONS = 0.95, 5  # the authors' values; Newton-Schulz iterations
MUON_RMS = 0.2  # RMS of an update before the learning rate is applied; about that of Adam


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam or Muon after clipping to a global norm; the learning rate is passed to every step.

    Muon (Jordan et al., 2024) reshapes the momentum of a convolution kernel to a matrix, (rows x columns x
    inputs) by outputs, and replaces it by approximately the nearest matrix with orthonormal rows or columns,
    scaled to the size of Adam's steps (Liu et al., 2025), so that Adam's learning rates carry over. Kernels
    with fewer than `MUON_FROM` input or output channels, and all other parameters, use Adam. A critic's
    parameters (see `cvae_jax.models.adversarial`) have their own Adam and their own clipping norm.

    Attributes: kind, 'adam' or 'muon'; b1, b2, eps of Adam (Kingma & Ba, 2015), not of Muon; weight_decay,
    decoupled as in AdamW (Loshchilov & Hutter, 2019), 0 for none; clip_norm, 0 for none; ema_decay of the
    averaged parameters, 0 for none; critic, the options of a critic or None.
    """

    kind: str = "adam"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    critic: AdversarialOptions | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"config.optimizer.kind is {self.kind!r}; choose one of {', '.join(KINDS)}.")
        for field in ("b1", "b2", "ema_decay"):
            value = getattr(self, field)
            if not 0 <= np.float32(value) < 1:
                raise UserError(
                    f"config.optimizer.{field} is {value!r}; give a number in [0, 1), in float32."
                )
        if not np.float32(self.eps) > 0:
            raise UserError(f"config.optimizer.eps is {self.eps!r}; give a number above 0, in float32.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(
                f"config.optimizer.weight_decay is {self.weight_decay!r}; give a finite number, 0 for none."
            )
        if not (math.isfinite(self.clip_norm) and self.clip_norm >= 0):
            raise UserError(
                f"config.optimizer.clip_norm is {self.clip_norm!r}; give a finite number, 0 for no clipping."
            )

    @property
    def averages(self) -> bool:
        """Whether averaged parameters are kept, which evaluation then uses."""
        return self.ema_decay > 0

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The optax transformation, before the learning rate is applied.

        Adam works on one vector of all its parameters and Muon on stacks of kernels of equal shape: leaf by
        leaf they would compile to a thousand small operations, which would take most of the compile time.
        """
        of_model = self._muon() if self.kind == "muon" else self._chain(self.b1)
        if self.critic is None:
            return of_model
        of_critic = optax.chain(self._chain(self.critic.b1), optax.scale(self.critic.learning_rate))
        return optax.partition({MODEL: of_model, CRITIC: of_critic}, {MODEL: MODEL, CRITIC: CRITIC})

    def _muon(self) -> optax.GradientTransformation:
        """Return Muon for kernels with many channels and Adam for the rest."""
        muon = optax.contrib.muon(
            learning_rate=1.0,
            beta=MUON_MOMENTUM,
            ns_steps=MUON_ITERATIONS,
            weight_decay=self.weight_decay,
            muon_weight_dimension_numbers=lambda stacks: jax.tree.map(
                lambda _: optax.contrib.MuonDimensionNumbers((1, 2, 3), 4), stacks
            ),
            consistent_rms=MUON_RMS,
        )
        adam = dataclasses.replace(self, kind="adam", clip_norm=0.0, critic=None)
        # optax's Muon already negates its updates; undo that, because `TrainState.update` negates them.
        each = {"muon": _stacked(optax.chain(muon, optax.scale(-1.0))), "adam": adam.transformation}
        return optax.chain(self._clip, optax.partition(each, kind_of_each))

    @property
    def _clip(self) -> optax.GradientTransformation:
        return optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()

    def _chain(self, b1: float) -> optax.GradientTransformation:
        parts = [self._clip, optax.scale_by_adam(b1, self.b2, self.eps)]
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay))
        return optax.flatten(optax.chain(*parts))


def _stacked(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return `inner` applied to stacks of equally shaped leaves: fewer, larger operations."""

    def stack(tree: PyTree) -> dict[str, Array]:
        leaves: dict[str, list[Array]] = {}
        for leaf in jax.tree.leaves(tree):
            leaves.setdefault(str(leaf.shape), []).append(leaf)
        return {shape: jnp.stack(found) for shape, found in leaves.items()}

    def unstack(stacks: dict[str, Array], like: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(like)
        found = {shape: iter(stacked) for shape, stacked in stacks.items()}
        return jax.tree.unflatten(structure, [next(found[str(leaf.shape)]) for leaf in leaves])

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        with jax.default_matmul_precision("highest"):  # for Muon's matrix products
            stacked, state = inner.update(stack(updates), state, None if params is None else stack(params))
        return unstack(stacked, updates), state

    return optax.GradientTransformation(lambda params: inner.init(stack(params)), update)


def kind_of_each(params: PyTree) -> PyTree:
    """Return 'muon' or 'adam' for each parameter of a model that `Optimizer(kind='muon')` trains."""
    many = lambda x: x.ndim == 4 and min(x.shape[-2:]) >= MUON_FROM  # noqa: E731
    return jax.tree.map(lambda x: "muon" if many(x) else "adam", params)


@flax.struct.dataclass
class TrainState:
    """step counts updates; ema is None where no average is kept."""

    step: PyTree  # int32 scalar; orbax also builds the state from placeholders
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree | None

    @classmethod
    def create(cls, variables: Variables, optimizer: Optimizer) -> TrainState:
        """Return the state before the first step."""
        params, batch_stats = jax.device_put((variables["params"], variables["batch_stats"]))
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            # As one program: hundreds of small ones take seconds.
            opt_state=jax.jit(optimizer.transformation.init)(params),
            ema=_copied(params) if optimizer.averages else None,
        )

    @property
    def variables(self) -> Variables:
        """What training runs on."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluation_variables(self) -> Variables:
        """What evaluation runs on: the averaged parameters where they are kept."""
        params = self.params if self.ema is None else self.ema
        return {"params": params, "batch_stats": self.batch_stats}

    def update(
        self,
        optimizer: Optimizer,
        gradients: PyTree,
        batch_stats: PyTree,
        learning_rate: Float[Array, ""],
    ) -> TrainState:
        """Return the state after one optimizer step with the given (global) gradients."""
        updates, opt_state = optimizer.transformation.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, jax.tree.map(lambda u: -learning_rate * u, updates))
        ema = self.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, step_size=1 - optimizer.ema_decay)
        return TrainState(self.step + 1, params, batch_stats, opt_state, ema)


@jax.jit
def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
