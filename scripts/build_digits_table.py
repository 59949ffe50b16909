#!/usr/bin/env python
"""Trains the table that `jaxnas.tables.digits` loads; takes some minutes on two cores."""

import time
from pathlib import Path

import jax

import jaxnas
from jaxnas.tables.digits import EPOCHS, FILE, NUM_SEEDS, space


def main() -> None:
    """Trains and writes `jaxnas/tables/digits.npz`."""
    jaxnas.parallel.cpu_devices()
    started = time.perf_counter()
    path = Path(jaxnas.tables.__file__).with_name(FILE)
    table = jaxnas.tables.build(
        space(),
        jaxnas.datasets.digits(jax.random.key(0)),
        jaxnas.Recipe(epochs=EPOCHS, curves=True),
        jax.random.key(1),
        num_seeds=NUM_SEEDS,
        path=path,
    )
    best = float(table.final("valid_accuracy").max())
    print(f"{path}: {table.num_rows} rows, best {best:.4f}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
