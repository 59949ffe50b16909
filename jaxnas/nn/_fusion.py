"""What XLA's CPU backend shall not fuse.

It fuses a sum of many elementwise expressions into one loop, however different its terms are, and
such a loop is not made into vector code. An optimisation barrier does not help, for it is gone
before fusion; a function that is not inlined does. Where XLA does not know the attribute, nothing
changes but the speed.
"""

import functools
from collections.abc import Callable

import jax
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata


def apart(*static: str) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Makes a function of arrays one of its own in the program.

    Args:
      *static: names of its static arguments, which are given by name.
    """

    def wrap(fun: Callable[..., Array]) -> Callable[..., Array]:
        alone = jax.jit(fun, static_argnames=static)

        @functools.wraps(fun)
        def run(*arrays: Array, **named) -> Array:
            with set_xla_metadata(inlineable="false"):
                return alone(*arrays, **named)

        return run

    return wrap
