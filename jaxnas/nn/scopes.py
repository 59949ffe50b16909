"""The layer that each operation of a traced network belongs to.

While `layer_scopes` is open, all that a Flax module computes is traced inside a `jax.named_scope`
that tells the module's path. Scopes are written down with every equation of a jaxpr and stay there
through loops and lifted transformations; what is computed does not change.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import jax
from flax import linen as nn

_MARK = "jaxnas.layer:"  # tells these scopes from others, such as Flax's own


@contextmanager
def layer_scopes() -> Generator[dict[str, str]]:
    """Opens a scope around every method of every module that is called meanwhile.

    Yields:
      Path to class of the modules, in the order of their first calls; filled while they are called.

    Example:
      >>> from jaxnas.nn import MLP
      >>> network, x = MLP((3,), num_outputs=2), jax.numpy.ones((1, 4))
      >>> with layer_scopes() as kinds:
      ...     _ = network.init(jax.random.key(0), x, train=False)
      >>> kinds
      {'': 'MLP', 'hidden_0': 'Dense', 'output': 'Dense'}
    """
    kinds: dict[str, str] = {}

    def named(call, args, kwargs, context):
        path = "/".join(context.module.path)
        kinds.setdefault(path, type(context.module).__name__)
        with jax.named_scope(_MARK + path):
            return call(*args, **kwargs)

    with nn.intercept_methods(named):
        yield kinds


def layer_of(scopes: Sequence[str]) -> str:
    """The path of the innermost module among the names of scopes, the outermost first.

    Example:
      >>> layer_of(["jaxnas.layer:", "jaxnas.layer:cell/conv", "pad"])
      'cell/conv'
    """
    paths = [scope.removeprefix(_MARK) for scope in scopes if scope.startswith(_MARK)]
    return paths[-1] if paths else ""
