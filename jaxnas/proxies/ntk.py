"""NTK condition number: whether all rows would be learned at a similar speed.

Chen, Gong & Wang, "Neural Architecture Search on ImageNet in Four GPU Hours: A Theoretically
Inspired Perspective" (TE-NAS), ICLR 2021, https://arxiv.org/abs/2102.11535, equation 4: the largest
over the smallest eigenvalue of the neural tangent kernel at initialisation. The kernel is the Gram
matrix of the rows' gradients of the sum of their logits by the weights. Smaller is better, so the
score is minus the number.

Deviations: PyTorch's default initial weights instead of Kaiming's; float32, where a condition
number beyond 8e6 cannot be told from that; NaN for a kernel of zeros.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas._checks import check_count
from jaxnas.proxies.candidate import Candidate, Proxy


def ntk(num_rows: int = 16) -> Proxy:
    """Minus the condition number of the neural tangent kernel.

    Args:
      num_rows: how many rows of the batch to take, at most; each costs a backward pass. Static.

    Raises:
      ValueError: if `num_rows` is below 2.

    Example:
      >>> float(ntk().finish(jnp.diag(jnp.array([4.0, 2.0, 1.0]))))
      -4.0
    """
    check_count("num_rows", num_rows, minimum=2)

    def measure(candidate: Candidate):
        x = candidate.batch.x[:num_rows]
        outputs, pullback = jax.vjp(lambda w: candidate.run(x, w)[0], candidate.weights)

        def gradient(row):
            (found,) = pullback(jnp.zeros_like(outputs).at[row].set(1.0))
            return jnp.concatenate([leaf.ravel() for leaf in found])

        gradients = lax.map(gradient, jnp.arange(len(x)))
        return gradients @ gradients.T

    return Proxy(measure, _minus_condition)


def _minus_condition(kernel):
    values = jnp.linalg.eigvalsh(kernel)
    least = jnp.maximum(values[0], jnp.finfo(jnp.float32).eps * values[-1])
    # LAPACK may find eigenvalues of a matrix of NaN.
    return jnp.where(jnp.all(jnp.isfinite(kernel)), -values[-1] / least, jnp.nan)
