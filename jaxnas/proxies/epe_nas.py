"""EPE-NAS: how rows of one class are correlated in the untrained network.

Lopes, Alirezazadeh & Alexandre, "EPE-NAS: Efficient Performance Estimation Without Training for
Neural Architecture Search", ICANN 2021, https://arxiv.org/abs/2102.08099, equations 3 to 6: with
the correlations of the rows' input gradients (see `jacob_cov`), s_c = sum of log(|correlation| + k)
over the pairs of rows of class c, k = 1e-5. The score is sum |s_c| for up to 100 classes, else the
mean over the C classes in the batch of sum_d |s_c - s_d|, with each s_c divided by its rows.
"""

import jax
import jax.numpy as jnp

from jaxnas.proxies.candidate import Candidate, Proxy

FLOOR = 1e-5  # k
MANY = 100  # classes, beyond which their differences count


def epe_nas(num_classes: int | None = None) -> Proxy:
    """The spread of correlations within classes.

    Args:
      num_classes: classes of the data; None: outputs of the network. Static.

    Example:
      >>> isinstance(epe_nas(), Proxy)
      True
    """

    def measure(candidate: Candidate):
        y = candidate.batch.y
        if not jnp.issubdtype(y.dtype, jnp.integer):
            raise ValueError(f"epe_nas needs classes, but the batch's y is {y.dtype}")
        num = candidate.num_outputs if num_classes is None else num_classes
        return spread(candidate.correlations, jax.nn.one_hot(y, num))

    return Proxy(measure)


def spread(correlations, members):
    """The score f32[] of correlations f32[N, N] between rows and their classes f32[N, C], 0 or 1.

    Example:
      >>> round(float(spread(jnp.eye(2), jnp.array([[1.0], [1.0]]))), 3)
      23.026
    """
    logs = jnp.log(jnp.abs(correlations) + FLOOR)
    sums = jnp.einsum("nc,nm,mc->c", members, logs, members)
    if members.shape[1] <= MANY:
        return jnp.sum(jnp.abs(sums))
    rows = members.sum(axis=0)
    here = (rows > 0.0).astype(jnp.float32)
    means = sums / jnp.maximum(rows, 1.0)
    apart = jnp.abs(means[:, None] - means) * here[:, None] * here
    return jnp.sum(apart) / jnp.sum(here)
