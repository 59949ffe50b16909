"""The network of NAO: architectures to a continuous space and back, with a score between.

Luo et al., "Neural Architecture Optimization", NeurIPS 2018, https://arxiv.org/abs/1808.07233,
section 3. All functions act on one architecture i32[D]; its code f32[D, H] has one vector of length
1 per decision. An inactive decision is its choice 0, like everywhere.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas.space import SearchSpace, canonical

Params = dict[str, Array]

IMPOSSIBLE = -1e9  # logit of a padded choice; finite, for 0 * -inf is NaN

_GATES = {"lstm": 4, "rnn": 1}
CELLS = tuple(_GATES)


class CodeModel(NamedTuple):
    """Encoder, performance predictor and decoder.

    Attributes:
      init: `(key) -> params`.
      encode: `(params, arch i32[D]) -> code f32[D, H]`.
      score: `(params, code) -> f32[]`, predicted fitness, scaled to [0, 1].
      log_likelihood: `(params, code, arch) -> f32[]`, mean over decisions of the log-probability
        that the decoder gives to `arch`.
      decode: `(params, code) -> arch i32[D]`, the greedy choices, canonical.
    """

    init: Callable[[Array], Params]
    encode: Callable[[Params, Array], Array]
    score: Callable[[Params, Array], Array]
    log_likelihood: Callable[[Params, Array, Array], Array]
    decode: Callable[[Params, Array], Array]


def unit(vectors: Array) -> Array:
    """Vectors f32[..., H] scaled to length 1."""
    return vectors / jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + 1e-8)


def _shapes(space: SearchSpace, cell: str, hidden_size: int, embedding_size: int) -> dict:
    """Weights that are drawn; the first number is what their scale is one over the root of."""
    gates = _GATES[cell] * hidden_size
    inputs = embedding_size + hidden_size
    tokens = space.num_decisions, max(space.num_choices)
    return {
        "embedding": (1, (*tokens, embedding_size)),
        "encoder": (inputs, (inputs, gates)),
        "decoder": (inputs, (inputs, gates)),
        "attended": (2 * hidden_size, (2 * hidden_size, hidden_size)),
        "head": (hidden_size, (tokens[0], hidden_size, tokens[1])),
        "score": (hidden_size, (hidden_size, hidden_size)),
        "score_last": (hidden_size, (hidden_size,)),
    }


def _init(key: Array, shapes: dict) -> Params:
    sizes = [math.prod(shape) for _, shape in shapes.values()]
    parts = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    params = {
        name: part.reshape(shape) / math.sqrt(fan)
        for (name, (fan, shape)), part in zip(shapes.items(), parts, strict=True)
    }
    biases = {name: params[name].shape[-1] for name in ("encoder", "decoder", "score")}
    return params | {f"{name}_bias": jnp.zeros(size) for name, size in biases.items()}


def _recur(gates: Array, memory: Array) -> tuple[Array, Array]:
    """Output and memory f32[H] of a recurrent cell from its gates f32[4 H] or f32[H]."""
    if gates.size == memory.size:
        return jnp.tanh(gates), memory
    take, keep, give, value = jnp.split(gates, 4)
    memory = jax.nn.sigmoid(keep) * memory + jax.nn.sigmoid(take) * jnp.tanh(value)
    return jax.nn.sigmoid(give) * jnp.tanh(memory), memory


def code_model(
    space: SearchSpace, *, cell: str = "lstm", hidden_size: int = 32, embedding_size: int = 16
) -> CodeModel:
    """A `CodeModel` of one recurrent layer each way; all arguments are static."""
    shapes = _shapes(space, cell, hidden_size, embedding_size)
    places = jnp.arange(space.num_decisions)
    allowed = jnp.arange(max(space.num_choices)) < jnp.asarray(space.num_choices)[:, None]

    def encode(params, arch):
        def step(carry, token):
            output, memory = carry
            gates = jnp.concatenate([token, output]) @ params["encoder"] + params["encoder_bias"]
            carry = _recur(gates, memory)
            return carry, carry[0]

        zeros = jnp.zeros(hidden_size)
        outputs = jax.lax.scan(step, (zeros, zeros), params["embedding"][places, arch])[1]
        return unit(outputs)

    def score(params, code):
        h = jax.nn.relu(unit(code.mean(axis=0)) @ params["score"] + params["score_bias"])
        return jax.nn.sigmoid(h @ params["score_last"])

    def unroll(params, code, pick):
        """Choices i32[D] and their log-probabilities f32[D]; `pick(index, log_p)` chooses."""

        def step(carry, index):
            output, memory, token = carry
            gates = jnp.concatenate([token, output]) @ params["decoder"] + params["decoder_bias"]
            output, memory = _recur(gates, memory)
            context = jax.nn.softmax(code @ output) @ code
            attended = jnp.tanh(jnp.concatenate([output, context]) @ params["attended"])
            logits = jnp.where(allowed[index], attended @ params["head"][index], IMPOSSIBLE)
            log_p = jax.nn.log_softmax(logits)
            choice = pick(index, log_p)
            return (output, memory, params["embedding"][index, choice]), (choice, log_p[choice])

        whole = unit(code.mean(axis=0))
        start = whole, whole, jnp.zeros(embedding_size)
        return jax.lax.scan(step, start, places)[1]

    def log_likelihood(params, code, arch):
        return unroll(params, code, lambda index, _: arch[index])[1].mean()

    def decode(params, code):
        chosen = unroll(params, code, lambda _, log_p: jnp.argmax(log_p))[0]
        return canonical(space, chosen)

    return CodeModel(lambda key: _init(key, shapes), encode, score, log_likelihood, decode)
