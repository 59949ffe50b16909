"""Trains a small population as one of several processes; run by `unit/test_parallel.py`.

Usage: python -m tests.process_worker COORDINATOR NUM_PROCESSES PROCESS_ID OUT
"""

import sys

import jax
import numpy as np

from jaxnas import parallel


def main(coordinator: str, num_processes: int, process_id: int, out: str) -> None:
    parallel.cpu_devices(1)
    if num_processes > 1:
        parallel.join(coordinator, num_processes, process_id)
    import jaxnas as nas
    from jaxnas.space import sample
    from jaxnas.training import plan, population

    data = nas.datasets.wine(jax.random.key(0))
    space = nas.spaces.mlp(3, depths=(1, 2), widths=(4, 8), optimizers=("adam",))
    keys = jax.random.split(jax.random.key(1), 5)
    arch = np.asarray(jax.vmap(lambda k: sample(k, space))(keys))
    recipe = nas.Recipe(epochs=3, batch_size=16)
    trained = population.train(space, arch, data, recipe, jax.random.key(2))
    assert jax.process_count() == num_processes
    # Every mini-batch is shared by the processes.
    split = plan.choose(space, recipe, data, 5, arch=arch, batch_devices=num_processes)
    shared = population.train(space, arch, data, recipe, jax.random.key(2), split)
    names = ("loss", "train_loss", "accuracy")
    found = {name: trained.metrics[name] for name in names}
    np.savez(out, curve=trained.train_curve, split_curve=shared.train_curve, **found)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
