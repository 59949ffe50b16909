"""How a candidate is trained: everything about it but the architecture."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from jaxnas.training.optimizers import OPTIMIZERS

SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class Recipe:
    """Training settings shared by all candidates.

    Hyperparameters that the space decides (`learning_rate`, `optimizer`, `weight_decay`) replace
    the values here, candidate by candidate. All fields are static.

    Attributes:
      epochs: passes over the training split at budget 1, at least 1.
      batch_size: rows per step; the last partial batch of an epoch is dropped. None: full batch.
      optimizer: a name in `jaxnas.training.OPTIMIZERS`.
      learning_rate: peak rate, above 0.
      schedule: "constant", "cosine" or "linear" decay to 0 over the steps that a candidate's budget
        gives it.
      warmup: fraction of those steps in which the rate rises linearly from 0, in [0, 1).
      weight_decay: L2 coefficient on weights of two or more axes, not on biases; at least 0.
      decoupled: whether weight decay bypasses the optimiser (AdamW) or joins the gradient.
      clip_norm: global gradient norm is cut to this; None: no clipping.
      average: decay of an exponential moving average of all variables, in (0, 1), which is what is
        scored and returned; it starts lower, at (1 + step) / (10 + step). None: the last variables.
      crop: pixels by which training images are shifted at most; 0: not at all.
      flip: whether half of the training images are mirrored left to right.
      cutout: side in pixels of the square blanked in every training image; 0: none.
      mixup: alpha of the Beta distribution by which pairs of rows are mixed; 0: none.
      label_smoothing: probability spread evenly over all classes, in [0, 1); classification only.
      drop_path: chance with which a row misses an operation's output in the last step, in [0, 1);
        it rises linearly from 0; for networks that `jaxnas.nn.drop_path` is built into.
      auxiliary_weight: factor of the loss of auxiliary heads, at least 0; for networks that have
        one, see `jaxnas.nn.auxiliary`.
      curves: whether the validation split is scored after every epoch, not only after the last.
    """

    epochs: int = 20
    batch_size: int | None = 32
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    decoupled: bool = False
    clip_norm: float | None = None
    average: float | None = None
    crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    auxiliary_weight: float = 0.0
    curves: bool = False

    def __post_init__(self):
        _require("epochs", self.epochs, _is_count(self.epochs), "a whole number above 0")
        _require(
            "batch_size",
            self.batch_size,
            self.batch_size is None or _is_count(self.batch_size),
            "a whole number above 0, or None for the full batch",
        )
        _require("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, sorted(OPTIMIZERS))
        _require("schedule", self.schedule, self.schedule in SCHEDULES, SCHEDULES)
        _require("learning_rate", self.learning_rate, _in(self.learning_rate, 0), "above 0")
        _require("warmup", self.warmup, 0.0 <= self.warmup < 1.0, "in [0, 1)")
        _require("weight_decay", self.weight_decay, _in(self.weight_decay, -1e-30), "at least 0")
        _require(
            "clip_norm",
            self.clip_norm,
            self.clip_norm is None or _in(self.clip_norm, 0),
            "above 0, or None",
        )
        is_decay = self.average is None or 0.0 < self.average < 1.0
        _require("average", self.average, is_decay, "in (0, 1), or None")
        for name in ("crop", "cutout"):
            value = getattr(self, name)
            _require(name, value, value == 0 or _is_count(value), "a whole number of at least 0")
        for name in ("mixup", "auxiliary_weight"):
            value = getattr(self, name)
            _require(name, value, _in(value, -1e-30), "at least 0")
        for name in ("label_smoothing", "drop_path"):
            value = getattr(self, name)
            _require(name, value, 0.0 <= value < 1.0, "in [0, 1)")

    @property
    def augments_images(self) -> bool:
        """Whether rows must be images."""
        return bool(self.crop or self.flip or self.cutout)

    def steps_per_epoch(self, num_rows: int) -> int:
        """Optimiser steps in one pass over `num_rows` rows.

        Raises:
          ValueError: if a batch is larger than the data.
        """
        if self.batch_size is None:
            return 1
        if self.batch_size > num_rows:
            raise ValueError(
                f"batch_size = {self.batch_size} is larger than the {num_rows} training rows"
            )
        return num_rows // self.batch_size

    def rate_factor(self, step: Array, num_steps: Array) -> Array:
        """Learning rate at `step` of `num_steps`, as a fraction of the peak: f32[]."""
        done = step.astype(jnp.float32)
        total = num_steps.astype(jnp.float32)
        rising = self.warmup * total
        progress = jnp.clip((done - rising) / jnp.maximum(total - rising, 1.0), 0.0, 1.0)
        decay = {
            "constant": jnp.ones_like(progress),
            "cosine": 0.5 * (1.0 + jnp.cos(math.pi * progress)),
            "linear": 1.0 - progress,
        }[self.schedule]
        if self.warmup == 0.0:
            return decay
        return jnp.where(done < rising, (done + 1.0) / jnp.maximum(rising, 1.0), decay)

    def drop_path_rate(self, step: Array, num_steps: Array) -> Array:
        """Chance of a path to be dropped at `step` of `num_steps`: f32[]."""
        last = jnp.maximum(num_steps - 1, 1).astype(jnp.float32)
        return self.drop_path * (step.astype(jnp.float32) / last)


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _in(value, above) -> bool:
    return math.isfinite(value) and value > above


def _require(name, value, is_allowed, allowed):
    if not is_allowed:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
