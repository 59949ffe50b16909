"""The two optimisers of a one-shot search.

PyTorch's conventions, which all recipes are written in: weight decay joins the gradient behind the
clipping and before the momentum.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxnas._checks import check_number, check_option
from jaxnas.types import PyTree

Number = float | Array


class Sgd(NamedTuple):
    """Momentum with a falling learning rate for the weights; the defaults are those of DARTS.

    Attributes:
      learning_rate: at first.
      final_learning_rate: at the end.
      momentum: in [0, 1).
      nesterov: whether in Nesterov's form. Static.
      weight_decay: L2 coefficient on what `Problem.decayed` names.
      clip_norm: global norm that gradients are cut to; None: no clipping. Static.
      decline: how the learning rate falls, "cosine" or "linear". Static.
    """

    learning_rate: Number = 0.025
    final_learning_rate: Number = 0.001
    momentum: Number = 0.9
    nesterov: bool = False
    weight_decay: Number = 3e-4
    clip_norm: float | None = 5.0
    decline: str = "cosine"

    def schedule(self, num_steps: int) -> Callable[[ArrayLike], Array]:
        """`step -> learning rate`, along half a cosine or a straight line."""

        def rate(step: ArrayLike) -> Array:
            done = jnp.minimum(step / num_steps, 1.0)
            cosine = 0.5 * (1.0 + jnp.cos(math.pi * done))
            left = cosine if self.decline == "cosine" else 1.0 - done
            return self.final_learning_rate + left * (self.learning_rate - self.final_learning_rate)

        return rate

    def make(
        self, num_steps: int, decayed: Callable[[PyTree], PyTree]
    ) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        """What happens to a gradient before the momentum, and the rest.

        Args:
          num_steps: length of the schedule. Static.
          decayed: `(weights) -> pytree of bool`.

        Returns:
          Clipping and weight decay; momentum and learning rate.

        Raises:
          ValueError: for a number out of range.
        """
        for name in ("learning_rate", "final_learning_rate", "weight_decay"):
            check_number(name, getattr(self, name))
        check_number("momentum", self.momentum, high=1.0)
        check_option("decline", self.decline, ("cosine", "linear"))
        clip = (
            optax.identity()
            if self.clip_norm is None
            else optax.clip_by_global_norm(self.clip_norm)
        )
        decay = optax.add_decayed_weights(self.weight_decay, mask=decayed)
        momentum = optax.trace(self.momentum, nesterov=self.nesterov)
        rate = optax.scale_by_learning_rate(self.schedule(num_steps))
        return optax.chain(clip, decay), optax.chain(momentum, rate)


class Adam(NamedTuple):
    """Adam for architecture parameters; the defaults are those of DARTS.

    Attributes:
      learning_rate: throughout.
      b1: decay of the first moment.
      b2: decay of the second moment.
      weight_decay: L2 coefficient.
    """

    learning_rate: Number = 3e-4
    b1: Number = 0.5
    b2: Number = 0.999
    weight_decay: Number = 1e-3

    def make(self) -> optax.GradientTransformation:
        """The optimiser.

        Raises:
          ValueError: for a number out of range.
        """
        check_number("learning_rate", self.learning_rate)
        check_number("weight_decay", self.weight_decay)
        check_number("b1", self.b1, high=1.0)
        check_number("b2", self.b2, high=1.0)
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_adam(self.b1, self.b2),
            optax.scale_by_learning_rate(self.learning_rate),
        )
