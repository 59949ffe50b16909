"""Upper losses: what architecture parameters are to minimise, out of the losses of both batches."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

LossThunk = Callable[[], tuple[Array, Array]]  # () -> (loss f32[], score f32[])

# (train, valid) -> (upper loss, (loss, score) to report)
Objective = Callable[[LossThunk, LossThunk], tuple[Array, tuple[Array, Array]]]


def validation(train: LossThunk, valid: LossThunk) -> tuple[Array, tuple[Array, Array]]:
    """The loss on the validation batch."""
    del train
    loss, score = valid()
    return loss, (loss, score)


def training(train: LossThunk, valid: LossThunk) -> tuple[Array, tuple[Array, Array]]:
    """The loss on the training batch, on one level with the weights; reported as validation's."""
    del valid
    loss, score = train()
    return loss, (loss, score)


def likelihood_bonus(factor: float | Array) -> Objective:
    """The training loss minus `factor` times the validation batch's likelihood, exp(-loss).

    Args:
      factor: lambda.
    """

    def objective(train: LossThunk, valid: LossThunk):
        loss, score = valid()
        return train()[0] - factor * jnp.exp(-loss), (loss, score)

    return objective
