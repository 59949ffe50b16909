"""Public conformance kit: what every space, strategy and evaluator must satisfy.

A plug-in that passes these checks works with every part of jaxnas. `tiny_space` and
`conditional_space` are small enough to test against and big enough to go wrong on.
"""

import jax.numpy as jnp
from flax import linen as nn

from jaxnas.space import Decision, SearchSpace


def tiny_space() -> SearchSpace:
    """Three independent decisions of 3, 4 and 2 choices: 24 architectures, all valid."""
    decisions = (
        Decision("a", ("x", "y", "z")),
        Decision("b", (0, 1, 2, 3)),
        Decision("c", (False, True)),
    )
    return SearchSpace("tiny", decisions, network=lambda arch: nn.Dense(2))


def conditional_space() -> SearchSpace:
    """A space with a reshaping decision, a chain of two conditions and a validity rule.

    `depth` 1 to 3; `width_2` counts from depth 2, `width_3` from depth 3, `twist` only where
    `width_3` is wide; a deep network with activation "b" is invalid.
    """
    decisions = (
        Decision("depth", (1, 2, 3), reshapes=True),
        Decision("activation", ("a", "b", "c")),
        Decision("width_2", (4, 8), reshapes=True, active_if=(0, (1, 2))),
        Decision("width_3", (4, 8, 16), reshapes=True, active_if=(0, (2,))),
        Decision("twist", (0.1, 0.2, 0.3), active_if=(3, (2,))),
    )

    def valid(arch):
        return ~((arch[0] == 2) & (arch[1] == 1))

    return SearchSpace("conditional", decisions, network=lambda arch: nn.Dense(2), is_valid=valid)


def trap_fitness(space: SearchSpace):
    """A fitness with local optima for `evaluators.from_function`, best at all last choices.

    Returns:
      `(key, arch) -> f32[]`: the sum of normalised choices, except that choice 0 everywhere scores
      nearly as well as the optimum.
    """
    top = jnp.asarray(space.num_choices, jnp.float32) - 1.0

    def fitness(key, arch):
        del key
        share = jnp.mean(arch / jnp.maximum(top, 1.0))
        return jnp.where(share == 0.0, 0.95, share)

    return fitness
