"""Checkpoints of a search's state. They save time on resuming; the journal alone is enough.

The leaves of the state are saved by Orbax under their paths in the tree, and put back into the
structure of a template, so no class of a strategy has to be known to Orbax. Orbax finishes a
checkpoint by renaming it; one that was interrupted is never seen.
"""

import contextlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas.store import RunError
from jaxnas.types import PyTree

KEPT = 2  # the newest, and the one before it in case the newest is damaged


def save(folder: Path, step: int, state: PyTree) -> None:
    """Saves `state` as the one before step `step`, and drops all but the newest `KEPT`.

    Raises:
      RunError: if it cannot be written.
    """
    import orbax.checkpoint as ocp

    try:
        with _manager(folder) as manager:
            manager.save(step, args=ocp.args.StandardSave(_to_leaves(state)))
    except Exception as error:  # Orbax passes on whatever its storage layers raise
        raise RunError(f"cannot write checkpoint {step} in {folder}: {error}") from error


def restore(folder: Path, template: PyTree, *, at_most: int) -> tuple[int, PyTree]:
    """The newest readable state from before a step no later than `at_most`.

    Args:
      folder: where `save` put the checkpoints; may be missing.
      template: the state before step 0: structure, shapes and dtypes.
      at_most: number of journaled steps.

    Returns:
      The step and the state before it; `(0, template)` where no checkpoint fits, for then the
      journal is replayed from its start. Checkpoints that do not fit are deleted.
    """
    if not folder.is_dir():
        return 0, template
    import orbax.checkpoint as ocp

    with _manager(folder) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            if step <= at_most:
                # Damaged in whatever way: an older one, or a replay, does as well.
                with contextlib.suppress(Exception):
                    saved = manager.restore(step, args=ocp.args.StandardRestore())
                    return step, _from_leaves(saved, template)
            manager.delete(step)
    return 0, template


@contextlib.contextmanager
def _manager(folder: Path):
    import orbax.checkpoint as ocp  # here, for its import takes longer than many a short command

    options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
    manager = ocp.CheckpointManager(folder.absolute(), options=options)
    try:
        yield manager
    finally:
        manager.close()


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_leaves(state: PyTree) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    named = {
        jax.tree_util.keystr(path): np.asarray(jax.random.key_data(x) if _is_key(x) else x)
        for path, x in leaves
    }
    return {**named, "num_leaves": np.asarray(len(leaves))}  # Orbax refuses an empty tree


def _from_leaves(saved: Any, template: PyTree) -> PyTree:
    expected = _to_leaves(template)

    def signature(leaves):
        return {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}

    if signature(saved) != signature(expected):
        raise ValueError("the checkpoint is of another state")

    def fill(path, old):
        new = jnp.asarray(saved[jax.tree_util.keystr(path)])
        return jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if _is_key(old) else new

    return jax.tree_util.tree_map_with_path(fill, template)
