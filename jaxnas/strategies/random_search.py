"""Random search, the baseline every other strategy has to beat.

Li & Talwalkar, "Random Search and Reproducibility for Neural Architecture Search", UAI 2019,
https://arxiv.org/abs/1902.07638, as the baseline of section 4: independent draws, with
replacement. Deviation: `batch_size` draws per step.
"""

import jax
import jax.numpy as jnp

from jaxnas._checks import check_count
from jaxnas.space import SearchSpace, sample
from jaxnas.types import Proposal, Strategy, split_like


def random_search(space: SearchSpace, *, batch_size: int = 16) -> Strategy:
    """Independent uniform draws.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`, at least 1. Static.

    Returns:
      A stateless `Strategy`.

    Raises:
      ValueError: if `batch_size` is below 1.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = random_search(tiny_space(), batch_size=4)
      >>> strategy.ask(jax.random.key(1), strategy.init(jax.random.key(0))).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)

    def init(key):
        del key
        return ()

    def ask(key, state):
        del state
        arch = jax.vmap(lambda k: sample(k, space))(split_like(key, batch_size))
        return Proposal(arch, jnp.ones(batch_size))

    def tell(key, state, proposal, evaluation):
        del key, proposal, evaluation
        return state

    return Strategy(init, ask, tell)
