"""Trains one language model: a pure, traceable function.

The text is read in streams side by side, window by window (truncated backpropagation through time,
Mikolov et al. 2010, https://doi.org/10.21437/Interspeech.2010-343): a window starts from the state
that the one before ended in, through which no gradient flows. Every epoch starts from zeros.

Networks are those of `jaxnas.nn.language_model`: `__call__(x i32[B, T], *, train)` or, of a
supernet, `__call__(x, choice, *, train)`, to logits f32[B, T, V], and `start(batch_size)` for the
collection "hidden".
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxnas import counter
from jaxnas.nn.language_model import HIDDEN
from jaxnas.training.data import Split
from jaxnas.training.optimizers import OPTIMIZERS, Step, init_any, step_any
from jaxnas.training.recipe import Recipe
from jaxnas.training.text import Text, windows
from jaxnas.types import PyTree

# Fields of a recipe that mean something else than what a text has, or nothing.
_UNUSED = ("crop", "flip", "cutout", "mixup", "label_smoothing", "drop_path", "auxiliary_weight")


class Outcome(NamedTuple):
    """What training gave, in nats per symbol; `text.bits` and `text.perplexity` convert.

    Attributes:
      variables: the trained collections, without the state.
      train_curve: mean training loss of each epoch, with dropout.
      valid_curve: loss on the validation part after each epoch with `recipe.curves`, else NaN but
        for the last.
      valid_loss: of the last epoch.
      test_loss: of the same network.
    """

    variables: PyTree
    train_curve: Array  # f32[epochs]
    valid_curve: Array  # f32[epochs]
    valid_loss: Array  # f32[]
    test_loss: Array  # f32[]


class _Carry(NamedTuple):
    step: Array  # i32[]
    params: PyTree
    moments: tuple[PyTree, ...]
    rest: PyTree  # the other collections, state included
    average: PyTree  # moving average of the parameters, () without one


def symbol_losses(logits: Array, y: Array) -> Array:
    """Cross-entropy in nats of every symbol.

    Args:
      logits: f32[..., V].
      y: i32[...], the symbols that came.

    Returns:
      f32[...].

    Example:
      >>> round(symbol_losses(jnp.zeros((1, 8)), jnp.array([3])).item(), 4)
      2.0794
    """
    # A gather's gradient is a scatter, row by row on CPU; a comparison fuses with its neighbours.
    right = jnp.where(jnp.arange(logits.shape[-1]) == y[..., None], logits, 0.0)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(right, axis=-1)


def loss(
    module: Any,
    variables: PyTree,
    choice: Array | None,
    batch: Split,
    *,
    train: bool,
    key: Array | None = None,
) -> tuple[Array, PyTree]:
    """The mean loss of a batch, and all collections but the parameters afterwards.

    Args:
      module: the network or the supernet.
      variables: its collections; with "hidden", the state is carried on.
      choice: what the supernet takes; None: the module takes none.
      batch: x i32[B, T] and y i32[B, T].
      train: whether there is dropout and batch statistics move. Static.
      key: for dropout; needed where there is some.

    Returns:
      Nats per symbol f32[], and the collections that were there.
    """
    given = () if choice is None else (choice,)
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    mutable = [name for name in rest if train or name == HIDDEN]
    rngs = None if key is None else {"dropout": key}
    logits, updated = module.apply(
        variables, batch.x, *given, train=train, mutable=mutable, rngs=rngs
    )
    return jnp.mean(symbol_losses(logits, batch.y)), {**rest, **updated}


def evaluate(
    module: Any,
    variables: PyTree,
    choice: Array | None,
    tokens: Array,
    *,
    batch_size: int,
    num_steps: int,
) -> Array:
    """The mean loss on a part of a text, read from its start with the state carried on.

    Args:
      module: the network or the supernet.
      variables: its collections, without the state.
      choice: what the supernet takes; None: the module takes none.
      tokens: i32[N].
      batch_size: streams to read side by side. Static.
      num_steps: symbols of a window; it does not change the result, but for what is left out at
        the end. Static.

    Returns:
      Nats per symbol f32[].
    """

    def body(hidden, batch):
        value, rest = loss(module, {**variables, HIDDEN: hidden}, choice, batch, train=False)
        return rest[HIDDEN], value

    batches = _batches(tokens, batch_size, num_steps)
    return jnp.mean(lax.scan(body, module.start(batch_size), batches)[1])


def train(
    key: Array,
    module: Any,
    text: Text,
    choice: Array | None = None,
    *,
    recipe: Recipe,
    num_steps: int = 35,
) -> Outcome:
    """Trains a language model from scratch and scores it on the validation and the test part.

    Args:
      key: PRNG key: initial weights and dropout.
      module: a network, or a supernet with `choice`.
      text: the text.
      choice: i32[D], the architecture, or whatever else the supernet takes; None: the module takes
        none.
      recipe: `batch_size` is the number of streams; steps are windows. DARTS: "sgd" at rate 20 with
        `clip_norm=0.25`. What only rows of images or classifications have must be left at its
        default. Static.
      num_steps: symbols of a window. Static.

    Returns:
      The outcome.

    Raises:
      ValueError: for a recipe with what language models do not have; if a part of the text has not
        one window in every stream.

    Example:
      >>> from jaxnas.nn.language_model import LSTM
      >>> from jaxnas.training.text import from_string
      >>> text, recipe = from_string("ab" * 200), Recipe(epochs=4, batch_size=4, learning_rate=0.1)
      >>> outcome = train(jax.random.key(0), LSTM(2, 4), text, recipe=recipe, num_steps=4)
      >>> bool(outcome.test_loss < 0.1)
      True
    """
    batch_size = _checked(recipe)
    batches = _batches(text.train, batch_size, num_steps)
    scored = {"batch_size": batch_size, "num_steps": num_steps}
    total = jnp.int32(recipe.epochs * len(batches.y))
    k_init, k_steps = jax.random.split(key)
    given = () if choice is None else (choice,)
    rest = dict(module.init(k_init, batches.x[0, :1], *given, train=False))
    params = rest.pop("params")
    moments = init_any([OPTIMIZERS[recipe.optimizer]], params)
    average = () if recipe.average is None else params

    def epoch(carry: _Carry, index: Array):
        carry = carry._replace(rest={**carry.rest, HIDDEN: module.start(batch_size)})
        step = _step_fn(module, choice, recipe, k_steps, total)
        carry, losses = lax.scan(step, carry, batches)
        rest = {name: tree for name, tree in carry.rest.items() if name != HIDDEN}
        carry = carry._replace(rest=rest)
        value = jnp.nan
        if recipe.curves:
            value = evaluate(module, _variables(carry), choice, text.valid, **scored)
        return carry, (jnp.mean(losses), jnp.asarray(value, jnp.float32))

    carry = _Carry(jnp.int32(0), params, moments, rest, average)
    carry, (train_curve, valid_curve) = lax.scan(epoch, carry, jnp.arange(recipe.epochs))
    variables = _variables(carry)
    valid_loss, test_loss = (
        evaluate(module, variables, choice, part, **scored) for part in (text.valid, text.test)
    )
    return Outcome(
        variables, train_curve, valid_curve.at[-1].set(valid_loss), valid_loss, test_loss
    )


def _checked(recipe: Recipe) -> int:
    """The streams of a recipe that only has what is used."""
    used = [name for name in _UNUSED if getattr(recipe, name)]
    if used:
        raise ValueError(
            f"recipe must leave {used[0]} at its default for language models, "
            f"got {getattr(recipe, used[0])!r}"
        )
    if recipe.batch_size is None:
        raise ValueError("recipe must have a batch_size, the number of streams, got None")
    return recipe.batch_size


def _batches(tokens: Array, batch_size: int, num_steps: int) -> Split:
    """All windows: x and y i32[W, B, T]."""
    shape = (-1, batch_size, num_steps)
    return Split(*(rows.reshape(shape) for rows in windows(tokens, batch_size, num_steps)))


def _variables(carry: _Carry) -> PyTree:
    """The network that is scored and returned."""
    return {"params": carry.average or carry.params, **carry.rest}


def _step_fn(module: Any, choice: Array | None, recipe: Recipe, key: Array, total: Array):
    """`(carry, batch) -> (carry, loss)`: one gradient and one update."""
    optimizers = [OPTIMIZERS[recipe.optimizer]]
    clip = None if recipe.clip_norm is None else optax.clip_by_global_norm(recipe.clip_norm)

    def step(carry: _Carry, batch: Split) -> tuple[_Carry, Array]:
        seed = counter.fold(counter.seed_from_key(key), carry.step)
        own = jax.random.wrap_key_data(seed, impl="threefry2x32")

        def loss_fn(params):
            variables = {"params": params, **carry.rest}
            return loss(module, variables, choice, batch, train=True, key=own)

        (value, rest), gradients = jax.value_and_grad(loss_fn, has_aux=True)(carry.params)
        if clip is not None:
            gradients, _ = clip.update(gradients, clip.init(carry.params))
        settings = Step(
            index=jnp.int32(0),
            count=(carry.step + 1).astype(jnp.float32),
            rate=recipe.learning_rate * recipe.rate_factor(carry.step, total),
            decay=recipe.weight_decay or None,
            decoupled=recipe.decoupled,
        )
        params, moments = step_any(
            optimizers,
            settings,
            None,
            gradients,
            carry.moments,
            carry.params,
            module.weights(carry.params),
        )
        average = _average(recipe, carry, params)
        return _Carry(carry.step + 1, params, moments, rest, average), value

    return step


def _average(recipe: Recipe, carry: _Carry, params: PyTree) -> PyTree:
    if recipe.average is None:
        return ()
    decay = jnp.minimum(recipe.average, (1.0 + carry.step) / (10.0 + carry.step))
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, carry.average, params)
