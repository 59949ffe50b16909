"""The frame of differentiable architecture search.

Architecture parameters alpha are to minimise an upper loss, on validation rows, where the weights
minimise a lower one, on training rows (Liu et al., "DARTS", 2019, https://arxiv.org/abs/1806.09055,
equations 3 and 4). Every update is a step of both: alpha first, as in their algorithm 1. A method
is a composition of parts, each a small pure function:

| part | is | from |
|---|---|---|
| relaxation | alpha to weights of the operations | `relaxations` |
| hypergradient | how the upper loss moves with alpha | `hypergradients` |
| objective | the upper loss, out of both batches' | `objectives` |
| regulariser | what is added to it | `regularisers` |
| perturbation | what the weights are trained against | `perturbations` |
| pruning | which operations are dropped on the way, or at the end | `pruning` |
| early stop | when alpha stays as it is, or was | `early_stops` |

Partial channel connections are an attribute of the supernet (`jaxnas.nn.mixed`).

An alpha whose gradient is not finite is left alone; `alpha_gradient_norm` in `Info` tells.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.oneshot.hypergradients import Lower
from jaxnas.oneshot.optimizers import Adam, Sgd
from jaxnas.oneshot.parts import Parts, State
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.relaxations import Context
from jaxnas.training.data import Split
from jaxnas.types import OneShot, split_like


class _Method(NamedTuple):
    """What stays the same during a search."""

    problem: Problem
    parts: Parts
    num_steps: int
    is_turn: tuple[Callable[[Array], Array], ...]  # conditions for an update of alpha
    prepare: optax.GradientTransformation
    momentum: optax.GradientTransformation
    alpha: optax.GradientTransformation


def bilevel(
    problem: Problem,
    parts: Parts,
    *,
    num_steps: int,
    weight_optimizer: Sgd | None = None,
    alpha_optimizer: Adam | None = None,
    begin: float | Array = 0.0,
    end: float | Array = 1.0,
    period: int = 1,
    exclude: tuple[str, ...] = (),
) -> OneShot:
    """Weights and architecture parameters trained in turn.

    Args:
      problem: what is trained.
      parts: what the method is composed of.
      num_steps: updates of the whole search, for schedules. Static.
      weight_optimizer: None: that of DARTS.
      alpha_optimizer: None: that of DARTS.
      begin: share of the updates before which weights are trained alone, in [0, 1].
      end: share of the updates after which they are again.
      period: updates of the weights per update of alpha. Static.
      exclude: names of operations that the method does without. Static.

    Returns:
      A `OneShot` of `State`. `Info` has `train_loss`, `valid_loss` and `valid_score` before the
      update, and `alpha_gradient_norm`, the last three NaN where alpha is not updated.

    Raises:
      ValueError: for a number out of range, or if `exclude` leaves a row without operations.
    """
    check_count("num_steps", num_steps)
    check_count("period", period)
    check_number("begin", begin, high=1.0)
    check_number("end", end, high=1.0)
    mask = problem.mask & ~problem.where(*exclude)
    if not mask.any(axis=1).all():
        raise ValueError(f"exclude must leave every row an operation, got {tuple(exclude)}")
    weight_optimizer = Sgd() if weight_optimizer is None else weight_optimizer
    alpha_optimizer = Adam() if alpha_optimizer is None else alpha_optimizer
    prepare, momentum = weight_optimizer.make(num_steps, problem.decayed)
    conditions = _conditions(num_steps, begin, end, period)
    if parts.is_turn is not None:
        conditions = (*conditions, parts.is_turn)
    method = _Method(
        problem, parts, num_steps, conditions, prepare, momentum, alpha_optimizer.make()
    )

    def init(key: Array) -> State:
        return _init(method, key, jnp.asarray(mask))

    def update(key: Array, state: State, train_batch: Split, valid_batch: Split):
        return _update(method, weight_optimizer, key, state, train_batch, valid_batch)

    return OneShot(init, update, lambda state: problem.derive(state.strengths))


def _conditions(num_steps: int, begin, end, period: int) -> tuple[Callable[[Array], Array], ...]:
    """Those that do not hold anyway, for what is always done needs no conditional."""
    found: list[Callable[[Array], Array]] = []
    if period > 1:
        found.append(lambda step: step % period == 0)
    if not (isinstance(begin, int | float) and begin == 0):
        found.append(lambda step: step >= begin * num_steps)
    if not (isinstance(end, int | float) and end == 1):
        found.append(lambda step: step < end * num_steps)
    return tuple(found)


def _init(method: _Method, key: Array, mask: Array) -> State:
    k_weights, k_alpha, k_prune = split_like(key, 3)
    parts = method.parts
    weights, rest = method.problem.init(k_weights)
    alpha = parts.relaxation.init(k_alpha, mask.shape)
    strengths = parts.relaxation.strengths(alpha, mask)
    optimizers = (method.prepare.init(weights), method.momentum.init(weights))
    return State(
        step=jnp.int32(0),
        weights=weights,
        rest=rest,
        alpha=alpha,
        mask=mask,
        strengths=strengths,
        optimizers=(*optimizers, method.alpha.init(alpha)),
        pruning=() if parts.pruning is None else parts.pruning.init(k_prune, mask),
        early_stop=() if parts.early_stop is None else parts.early_stop.init(strengths),
    )


def _update(method: _Method, sgd: Sgd, key: Array, state: State, train: Split, valid: Split):
    k_alpha, k_weights, k_prune, k_stop = split_like(key, 4)
    upper, lower = _levels(method, sgd, k_alpha, state, train, valid)
    state, info = _alpha_turn(method, upper, lower, state)
    state, found = _finish_alpha(method, k_prune, k_stop, upper, state, valid)
    state, loss = _weight_step(method, k_weights, state, train)
    return state._replace(step=state.step + 1), {"train_loss": loss, **info, **found}


def _context(method: _Method, state: State) -> Context:
    return Context(state.step / method.num_steps, state.mask)


def _levels(method: _Method, sgd: Sgd, key: Array, state: State, train: Split, valid: Split):
    """The upper loss as a function of weights and alpha, and the lower level."""
    problem, parts = method.problem, method.parts
    k_upper, k_choice, k_lower, k_lower_choice = split_like(key, 4)
    context = _context(method, state)

    def upper(weights, alpha):
        choice = parts.relaxation.choose(k_choice, alpha, context)

        def on(tag, batch):
            own = jax.random.fold_in(k_upper, tag)
            loss, (_, score) = problem.loss(own, weights, state.rest, choice, batch, True)
            return loss, score

        loss, (plain, score) = parts.objective(lambda: on(0, train), lambda: on(1, valid))
        if parts.regulariser is not None:
            loss = parts.regulariser(loss, alpha, choice, state.mask)
        return loss, (plain, score)

    def lower_loss(weights, alpha):
        choice = parts.relaxation.choose(k_lower_choice, alpha, context)
        loss, _ = problem.loss(k_lower, weights, state.rest, choice, train, True)
        marks = problem.decayed(weights)
        squares = jax.tree.map(lambda w, on: jnp.sum(jnp.square(w)) * on, weights, marks)
        return loss + 0.5 * sgd.weight_decay * optax.tree.sum(squares)

    def advance(gradient, memory, weights):
        change, memory = method.momentum.update(gradient, memory, weights)
        return optax.apply_updates(weights, change), memory

    return upper, Lower(lower_loss, advance, state.optimizers[1])


def _alpha_turn(method: _Method, upper, lower: Lower, state: State):
    """A step of alpha, where it is alpha's turn."""
    active = [condition(state.step) for condition in method.is_turn]
    if method.parts.early_stop is not None:
        active.append(~method.parts.early_stop.stopped(state.early_stop))
    if not active:
        return _alpha_step(method, upper, lower, state)
    nothing = dict.fromkeys(_ALPHA_INFO, jnp.float32(jnp.nan))
    return jax.lax.cond(
        jnp.all(jnp.stack(active)),
        lambda state: _alpha_step(method, upper, lower, state),
        lambda state: (state, nothing),
        state,
    )


_ALPHA_INFO = ("valid_loss", "valid_score", "alpha_gradient_norm")


def _alpha_step(method: _Method, upper, lower: Lower, state: State):
    parts = method.parts
    found = parts.hypergradient(upper, lower, state.weights, state.alpha)
    (_, (loss, score)), gradient = found
    norm = optax.tree.norm(gradient)
    change, memory = method.alpha.update(gradient, state.optimizers[2], state.alpha)
    alpha = optax.apply_updates(state.alpha, change)
    if parts.settle is not None:
        alpha = parts.settle(state.alpha, alpha)
    # What is not finite would stay so for good.
    kept = (state.alpha, state.optimizers[2])
    alpha, memory = jax.tree.map(
        lambda new, old: jnp.where(jnp.isfinite(norm), new, old), (alpha, memory), kept
    )
    state = state._replace(alpha=alpha, optimizers=(*state.optimizers[:2], memory))
    return state, dict(zip(_ALPHA_INFO, (loss, score, norm), strict=True))


def _finish_alpha(method: _Method, k_prune, k_stop, upper, state: State, valid: Split):
    """Early stop and pruning, and the strengths that follow."""
    parts, problem = method.parts, method.problem
    strengths = parts.relaxation.strengths(state.alpha, state.mask)
    info: dict[str, Array] = {}
    if parts.early_stop is not None:
        stopper, strengths, info = parts.early_stop.update(
            k_stop,
            state.step,
            state.early_stop,
            state.alpha,
            strengths,
            lambda alpha: upper(state.weights, alpha)[0],
        )
        state = state._replace(early_stop=stopper)
    if parts.pruning is not None:

        def score_fn(choice):
            loss, (_, score) = problem.loss(
                k_prune, state.weights, state.rest, choice, valid, False
            )
            return score, loss

        pruner, mask = parts.pruning.update(
            k_prune, state.step, state.pruning, state.mask, strengths, score_fn
        )
        strengths = parts.relaxation.strengths(state.alpha, mask)
        state = state._replace(pruning=pruner, mask=mask)
    return state._replace(strengths=strengths), info


def _weight_step(method: _Method, key: Array, state: State, train: Split) -> tuple[State, Array]:
    problem, parts = method.problem, method.parts
    k_choice, k_perturb, k_loss = split_like(key, 3)
    context = _context(method, state)
    choose = parts.lower_choose or parts.relaxation.choose
    choice = choose(k_choice, state.alpha, context)

    def loss_fn(weights, choice):
        loss, (rest, _) = problem.loss(k_loss, weights, state.rest, choice, train, True)
        return loss, rest

    if parts.perturbation is not None:
        choice = parts.perturbation(
            k_perturb,
            choice,
            state.mask,
            context.progress,
            lambda choice: loss_fn(state.weights, choice)[0],
        )
    choice = jax.lax.stop_gradient(choice)
    (loss, rest), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.weights, choice)
    gradient, clipping = method.prepare.update(gradient, state.optimizers[0], state.weights)
    change, momentum = method.momentum.update(gradient, state.optimizers[1], state.weights)
    weights = optax.apply_updates(state.weights, change)
    optimizers = (clipping, momentum, state.optimizers[2])
    return state._replace(weights=weights, rest=rest, optimizers=optimizers), loss
