"""A tabular benchmark as arrays: what every architecture of a space scored, per budget and seed.

In the shape descriptions, `N` denotes the rows (architectures) of a table, `F` its fidelities
(fractions of full training), `S` its seeds and `D` the decisions of its space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxnas.enumeration import all_architectures
from jaxnas.space import SearchSpace

MAX_CODES = 1 << 22  # product of choices up to which a row is looked up in one gather

_ROUNDING = 1e-5  # relative slack when a budget is compared with a fidelity


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["metrics", "columns", "seconds", "fidelities", "archs", "index"],
    meta_fields=["name", "space"],
)
@dataclass(frozen=True, eq=False)
class Table:
    """A tabular benchmark; made by the loaders of `jaxnas.tables` or by `from_arrays`.

    A table is a pytree. Pass it to jitted functions as an argument: one that is closed over would
    be baked into the program as a constant.

    Attributes:
      name: for reports.
      space: the space of the architectures. Static.
      metrics: what training gave, in natural units; NaN where there is no such run, or it failed.
      columns: what is known about an architecture as such, costs and final scores among them.
      seconds: what an evaluation costs.
      fidelities: ascending fractions of full training, in (0, 1].
      archs: the architecture of each row.
      index: how a row is found. None: the rows are all architectures in lexicographic order.
        Otherwise the row of every mixed-radix code, -1 where there is none, up to `MAX_CODES`
        codes; for larger spaces the rows in lexicographic order of their architectures.
    """

    name: str
    space: SearchSpace
    metrics: dict[str, Array]  # name -> f32[N, F, S]
    columns: dict[str, Array]  # name -> f32[N]
    seconds: Array  # f32[N, F]
    fidelities: Array  # f32[F]
    archs: Array  # i32[N, D]
    index: Array | None  # i32[product of choices] or i32[N]

    @property
    def num_rows(self) -> int:
        """N, how many architectures there are."""
        return self.archs.shape[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that can be looked up: metrics, then columns."""
        return (*self.metrics, *self.columns)

    def row(self, arch: ArrayLike) -> Array:
        """The rows of canonical architectures; traceable.

        Args:
          arch: i32[..., D].

        Returns:
          i32[...], -1 for architectures that the table does not hold.
        """
        arch = jnp.asarray(arch, jnp.int32)
        num_choices = self.space.num_choices
        if prod(num_choices) > MAX_CODES:
            return self._searched(arch)
        inside = (arch >= 0) & (arch < jnp.asarray(num_choices))
        # One sum, negative as soon as one choice is out of range.
        terms = jnp.where(inside, arch * jnp.asarray(_strides(num_choices)), -MAX_CODES)
        code = jnp.sum(terms, axis=-1)
        row = code if self.index is None else self.index[jnp.maximum(code, 0)]
        return jnp.where(code >= 0, row, -1)

    def _searched(self, arch: Array) -> Array:
        """`row` by binary search over the architectures in lexicographic order."""
        order = self.index
        assert order is not None

        def body(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            here = self.archs[order[jnp.minimum(middle, self.num_rows - 1)]]
            first = jnp.argmax(here != arch, axis=-1)[..., None]
            digits = [jnp.take_along_axis(a, first, axis=-1)[..., 0] for a in (here, arch)]
            below = (digits[0] < digits[1]) & (low < high)
            return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

        zero = jnp.zeros(arch.shape[:-1], jnp.int32)
        bounds = (zero, zero + self.num_rows)
        low, _ = jax.lax.fori_loop(0, self.num_rows.bit_length(), body, bounds)
        row = order[jnp.minimum(low, self.num_rows - 1)]
        return jnp.where(jnp.all(self.archs[row] == arch, axis=-1), row, -1)

    def level(self, budget: ArrayLike) -> Array:
        """The fidelity that a budget buys: the largest one at or below it, else the smallest.

        Args:
          budget: f32[...], fractions of full training. May be traced.

        Returns:
          i32[...], positions in `fidelities`.
        """
        if self.fidelities.shape[-1] == 1:
            return jnp.zeros(jnp.shape(budget), jnp.int32)
        budget = jnp.asarray(budget, jnp.float32)[..., None] * (1.0 + _ROUNDING)
        bought = jnp.sum(self.fidelities <= budget, axis=-1, dtype=jnp.int32)
        return jnp.maximum(bought - 1, 0)

    def final(self, name: str) -> Array:
        """A metric at the last fidelity, averaged over seeds, or a column: the truth for regret.

        Args:
          name: one of `names`.

        Returns:
          f32[N].

        Raises:
          ValueError: for an unknown name.
        """
        check_name(self, "name", name)
        if name in self.columns:
            return self.columns[name]
        return jnp.nanmean(self.metrics[name][:, -1], axis=-1)


def check_name(table: Table, argument: str, name: str) -> None:
    """Raises ValueError unless `name` is a metric or column of the table."""
    if name not in table.names:
        raise ValueError(
            f"{argument} must be one of {list(table.names)} in table {table.name!r}, got {name!r}"
        )


def from_arrays(
    space: SearchSpace,
    metrics: Mapping[str, ArrayLike],
    *,
    seconds: ArrayLike | None = None,
    columns: Mapping[str, ArrayLike] | None = None,
    fidelities: Sequence[float] | ArrayLike = (1.0,),
    archs: ArrayLike | None = None,
    name: str = "table",
) -> Table:
    """A table of one's own.

    Args:
      space: the space of the architectures.
      metrics: name to [N, F, S], or [N, F] for one seed, or [N] for one seed and fidelity. The same
        F and S for all; values that are missing or failed are NaN, infinite ones become NaN.
      seconds: [N, F], what an evaluation costs, or [N], what full training costs, of which a
        fidelity costs its share; finite, at least 0. None: 1 second for full training.
      columns: name to [N], NaN where unknown.
      fidelities: [F], ascending fractions of full training, in (0, 1].
      archs: i32[N, D], the architecture of each row: canonical, valid, no two alike; not all of the
        space need be there. None: `jaxnas.enumeration.all_architectures`, in that order.
      name: for reports.

    Returns:
      The table, on the default device.

    Raises:
      ValueError: for shapes that do not fit, a name that is used twice, fidelities or seconds out
        of range, or architectures that are repeated, invalid or not canonical.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> table = from_arrays(tiny_space(), {"valid_accuracy": np.linspace(0.5, 0.9, 24)})
      >>> int(table.row([0, 1, 0])), round(float(table.final("valid_accuracy")[-1]), 2)
      (2, 0.9)
    """
    rows = all_architectures(space) if archs is None else _checked_archs(space, archs)
    levels = _checked_fidelities(fidelities)
    if not metrics:
        raise ValueError("metrics is empty; give at least one")
    columns = dict(columns or {})
    twice = sorted(set(metrics) & set(columns))
    if twice:
        raise ValueError(f"columns has {twice}, which are names of metrics too")
    found = {key: _checked_metric(key, value, rows, levels) for key, value in metrics.items()}
    seeds = {key: value.shape[2] for key, value in found.items()}
    if len(set(seeds.values())) > 1:
        raise ValueError(f"metrics must have the same number of seeds, got {seeds}")
    return Table(
        name,
        space,
        {key: jnp.asarray(value) for key, value in found.items()},
        {key: jnp.asarray(_checked_column(key, v, rows)) for key, v in columns.items()},
        jnp.asarray(_checked_seconds(seconds, rows, levels)),
        jnp.asarray(levels),
        jnp.asarray(rows),
        _index(space, rows),
    )


def _strides(num_choices: tuple[int, ...]) -> np.ndarray:
    """Weights of the mixed-radix code, last decision fastest: i32[D]."""
    return np.cumprod((1, *num_choices[:0:-1]))[::-1].astype(np.int32)


def _index(space: SearchSpace, rows: np.ndarray) -> Array | None:
    num_codes = prod(space.num_choices)
    if num_codes > MAX_CODES:
        return jnp.asarray(np.lexsort(rows.T[::-1]).astype(np.int32))
    codes = rows @ _strides(space.num_choices)
    index = np.full(num_codes, -1, np.int32)
    index[codes] = np.arange(len(rows))
    return None if (index == np.arange(num_codes)).all() else jnp.asarray(index)


def _checked_archs(space: SearchSpace, archs: ArrayLike) -> np.ndarray:
    rows = np.asarray(archs)
    if rows.ndim != 2 or rows.shape[1] != space.num_decisions or not len(rows):
        raise ValueError(
            f"archs must have shape [N, {space.num_decisions}] with N >= 1, got {rows.shape}"
        )
    if rows.dtype.kind not in "iu":
        raise ValueError(f"archs must be integers, got {rows.dtype}")
    if (rows < 0).any() or (rows >= np.asarray(space.num_choices)).any():
        raise ValueError(f"archs has choices outside 0 to {space.num_choices} (exclusive)")
    rows = rows.astype(np.int32)
    good = (_canonical_rows(space, rows) == rows).all(axis=1)
    if space.is_valid is not None:
        good &= np.asarray(jax.jit(jax.vmap(space.is_valid))(jnp.asarray(rows)))
    if not good.all():
        raise ValueError(f"archs has {rows[~good][0].tolist()}, which is invalid or not canonical")
    different, counts = np.unique(rows, axis=0, return_counts=True)
    if len(different) < len(rows):
        raise ValueError(f"archs has {different[counts.argmax()].tolist()} more than once")
    return rows


def _canonical_rows(space: SearchSpace, rows: np.ndarray) -> np.ndarray:
    """`jaxnas.space.canonical` of many rows at once, in NumPy: nothing to compile."""
    active = np.ones(rows.shape, bool)
    for d, decision in enumerate(space.decisions):
        if decision.active_if is not None:
            parent, allowed = decision.active_if
            active[:, d] = active[:, parent] & np.isin(rows[:, parent], allowed)
    return np.where(active, rows, 0)


def _checked_fidelities(fidelities) -> np.ndarray:
    levels = np.asarray(fidelities, np.float32)
    if levels.ndim != 1 or not len(levels):
        raise ValueError(f"fidelities must have shape [F] with F >= 1, got {levels.shape}")
    if not ((levels > 0) & (levels <= 1)).all() or not (np.diff(levels) > 0).all():
        raise ValueError(f"fidelities must ascend within (0, 1], got {levels.tolist()}")
    return levels


def _checked_metric(name, values, rows, levels) -> np.ndarray:
    values = np.asarray(values, np.float32)
    whole = values.reshape(values.shape + (1,) * (3 - values.ndim))
    if whole.ndim != 3 or whole.shape[:2] != (len(rows), len(levels)) or not whole.shape[2]:
        raise ValueError(
            f"metric {name!r} must have shape [N, F, S], [N, F] or [N] with N = {len(rows)} and "
            f"F = {len(levels)}, got {values.shape}"
        )
    return np.where(np.isfinite(whole), whole, np.float32(np.nan))


def _checked_column(name, values, rows) -> np.ndarray:
    values = np.asarray(values, np.float32)
    if values.shape != (len(rows),):
        raise ValueError(f"column {name!r} must have shape [{len(rows)}], got {values.shape}")
    return values


def _checked_seconds(seconds, rows, levels) -> np.ndarray:
    values = np.ones(len(rows)) if seconds is None else np.asarray(seconds)
    if values.shape == (len(rows),):
        values = values[:, None] * levels
    if values.shape != (len(rows), len(levels)):
        raise ValueError(
            f"seconds must have shape [{len(rows)}, {len(levels)}] or [{len(rows)}], "
            f"got {values.shape}"
        )
    values = values.astype(np.float32)
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("seconds must be finite and at least 0 everywhere")
    return values
