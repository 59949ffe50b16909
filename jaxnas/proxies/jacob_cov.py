"""Jacobian covariance: how differently the untrained network reacts to different rows.

Mellor, Turner, Storkey & Crowley, "Neural Architecture Search without Training", first version,
2020, https://arxiv.org/abs/2006.04647v1, equations 2 to 4: J holds each row's gradient of the sum
of the logits by the input, and v are the eigenvalues of the correlation matrix of J's rows; the
score is -sum(log(v + k) + 1 / (v + k)) with k = 1e-5. Deviation: eigenvalues in float32, those
below 0 by rounding taken as 0, so that a score of fewer independent gradients than rows is a large
negative number of few digits. NaN where the output does not depend on the input.
"""

import jax.numpy as jnp

from jaxnas.proxies.candidate import Proxy

FLOOR = 1e-5  # k


def jacob_cov() -> Proxy:
    """Minus the divergence of the rows' correlations from independence.

    Example:
      >>> proxy = jacob_cov()
      >>> float(proxy.finish(jnp.eye(3))) > float(proxy.finish(jnp.ones((3, 3))))
      True
    """

    def finish(correlations):
        values = jnp.maximum(jnp.linalg.eigvalsh(correlations), 0.0) + FLOOR
        score = -jnp.sum(jnp.log(values) + 1.0 / values)
        # LAPACK may find eigenvalues of a matrix of NaN.
        return jnp.where(jnp.all(jnp.isfinite(correlations)), score, jnp.nan)

    return Proxy(lambda candidate: candidate.correlations, finish)
