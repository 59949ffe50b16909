"""What differentiable methods are composed of, and the state that they share.

See `jaxnas.oneshot.bilevel` for what the parts mean and where they come from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from jaxnas.oneshot.hypergradients import Hypergradient, first_order
from jaxnas.oneshot.objectives import Objective, validation
from jaxnas.oneshot.relaxations import Relaxation
from jaxnas.types import PyTree


class State(NamedTuple):
    """What a search by gradients carries."""

    step: Array  # i32[], updates done
    weights: PyTree
    rest: PyTree  # the supernet's other collections
    alpha: PyTree  # of the relaxation, usually f32[R, K]
    mask: Array  # bool[R, K], operations that remain
    strengths: Array  # f32[R, K], what the architecture is derived from
    optimizers: tuple[PyTree, PyTree, PyTree]  # clipping and decay, momentum, alpha's
    pruning: PyTree
    early_stop: PyTree


class Pruning(NamedTuple):
    """Drops operations.

    Attributes:
      init: `(key, mask bool[R, K]) -> State`.
      update: `(key, step, state, mask, strengths f32[R, K], score_fn) -> (state, mask)`, where
        `score_fn(choice) -> (score f32[], loss f32[])` is of the supernet on the validation batch.
    """

    init: Callable[[Array, Array], PyTree]
    update: Callable[..., tuple[PyTree, Array]]


class EarlyStop(NamedTuple):
    """Decides when alpha is final.

    Attributes:
      init: `(strengths f32[R, K]) -> State`.
      stopped: `(state) -> bool[]`.
      update: `(key, step, state, alpha, strengths, upper_fn) -> (state, strengths, info)` with the
        strengths that stand from here on, and the upper loss as `upper_fn(alpha) -> f32[]`.
    """

    init: Callable[[Array], PyTree]
    stopped: Callable[[PyTree], Array]
    update: Callable[..., tuple[PyTree, Array, dict[str, Array]]]


class Parts(NamedTuple):
    """What a method is composed of; None leaves a part out.

    Attributes:
      relaxation: see `relaxations`.
      lower_choose: `(key, alpha, context) -> choice` while weights are trained, where that is not
        the relaxation's own.
      hypergradient: see `hypergradients`.
      objective: see `objectives`.
      regulariser: `(loss, alpha, choice, mask) -> loss`, see `regularisers`.
      perturbation: `(key, choice, mask, progress, loss_fn) -> choice`, see `perturbations`.
      is_turn: `(step i32[]) -> bool[]`, whether alpha is updated; on top of `begin` and the like.
      settle: `(alpha, next alpha) -> next alpha`, after each step of its optimiser.
      pruning: see `pruning`.
      early_stop: see `early_stops`.
    """

    relaxation: Relaxation
    lower_choose: Callable[..., Any] | None = None
    hypergradient: Hypergradient = first_order()
    objective: Objective = validation
    regulariser: Callable[..., Array] | None = None
    perturbation: Callable[..., Array] | None = None
    is_turn: Callable[[Array], Array] | None = None
    settle: Callable[[PyTree, PyTree], PyTree] | None = None
    pruning: Pruning | None = None
    early_stop: EarlyStop | None = None
