"""Gaussian process regression on architectures, for searches inside one compiled program.

Rasmussen & Williams, "Gaussian Processes for Machine Learning", MIT Press 2006,
https://gaussianprocess.org/gpml/: Algorithm 2.1 for the posterior and equation 2.30 for the
marginal likelihood, with the amplitude at its maximum in closed form. The kernels, as functions of
the Hamming distance d between two canonical architectures:

- "hamming": exp(-d / lengthscale^2), as in naszilla, https://github.com/naszilla/naszilla; it is
  the squared exponential kernel of the one-hot encodings;
- "matern": Matern's with smoothness 5/2 (equation 4.17) of the one-hot encodings, whose Euclidean
  distance is sqrt(2 d).

An inactive decision counts like its first choice, which is what it is set to.

What is kept is the inverse W of the Cholesky factor of K + noise I. Its rows never change when
another architecture joins, so joining is one new row, O(C^2), and everything that is asked of the
model is a product with W: explained variance of candidate x is the sum of the squares of W k(x),
the weights of the posterior mean are W^T W y. Rows beyond the size are zero, so arrays keep their
shape.

In the shape descriptions, `C` denotes the capacity, `D` the decisions of the space and `P` the
candidates that are predicted.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Kernel = Callable[[Array, Array], Array]  # (distance, lengthscale) -> correlation
Cross = Callable[[Array], Array]  # weights f32[C] -> f32[P], their combination of kernel columns

# Times the square root of D: at the largest distance the Hamming kernel is exp(-16) to exp(-1/16).
RELATIVE_LENGTHSCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
NOISES = (1e-3, 1e-2, 1e-1)


class GaussianProcess(NamedTuple):
    """A model of the architectures that joined it; the targets are the user's."""

    arch: Array  # i32[C, D], in the order in which they joined
    size: Array  # i32[], how many did
    inverse: Array  # f32[C, C], inverse Cholesky factor of K + noise I, zero beyond size
    lengthscale: Array  # f32[]
    noise: Array  # f32[], variance of the noise relative to that of the process


def hamming_kernel(distance: Array, lengthscale: Array) -> Array:
    """Correlation at a Hamming distance f32[...] by the kernel "hamming"."""
    return jnp.exp(-distance / lengthscale**2)


def matern_kernel(distance: Array, lengthscale: Array) -> Array:
    """Correlation at a Hamming distance f32[...] by the kernel "matern"."""
    scaled = jnp.sqrt(10.0 * distance) / lengthscale
    return (1.0 + scaled + scaled**2 / 3.0) * jnp.exp(-scaled)


KERNELS = MappingProxyType({"hamming": hamming_kernel, "matern": matern_kernel})


def hamming_distance(a: Array, b: Array | np.ndarray) -> Array:
    """Decisions in which architectures i32[M, D] and i32[N, D] differ: f32[M, N]."""
    # Counted as integers, which XLA's CPU compiler sums several times faster than floats.
    return jnp.sum(a[:, None] != b, axis=-1, dtype=jnp.int32).astype(jnp.float32)


def empty(
    capacity: int, num_decisions: int, lengthscale: float | Array, noise: float | Array
) -> GaussianProcess:
    """A process that knows nothing.

    Args:
      capacity: C, the most architectures it can hold. Static.
      num_decisions: D. Static.
      lengthscale: of the kernel, above 0. May be traced.
      noise: variance of the noise relative to that of the process, above 0; below 1e-4 rounding
        spoils the factor. May be traced.

    Returns:
      A `GaussianProcess`.
    """
    return GaussianProcess(
        arch=jnp.zeros((capacity, num_decisions), jnp.int32),
        size=jnp.zeros((), jnp.int32),
        inverse=jnp.zeros((capacity, capacity), jnp.float32),
        lengthscale=jnp.asarray(lengthscale, jnp.float32),
        noise=jnp.asarray(noise, jnp.float32),
    )


def append(kernel: Kernel, process: GaussianProcess, arch: Array) -> GaussianProcess:
    """The process with one more architecture i32[D]; its size must be below its capacity.

    Example:
      >>> process = empty(4, 3, lengthscale=1.0, noise=0.0)
      >>> process = append(hamming_kernel, process, jnp.zeros(3, jnp.int32))
      >>> process = append(hamming_kernel, process, jnp.ones(3, jnp.int32))
      >>> [round(float(value), 2) for value in process.inverse[1, :2]]
      [-0.05, 1.0]
    """
    column = kernel(hamming_distance(process.arch, arch[None])[:, 0], process.lengthscale)
    factor = process.inverse @ column  # the new row of the Cholesky factor, without its diagonal
    # Rounding must not take the square root below what the noise alone guarantees.
    rest = jnp.maximum(1.0 + process.noise - factor @ factor, process.noise)
    diagonal = jnp.sqrt(rest)
    row = (-(factor @ process.inverse)).at[process.size].set(1.0) / diagonal
    return process._replace(
        arch=process.arch.at[process.size].set(arch),
        size=process.size + 1,
        inverse=process.inverse.at[process.size].set(row),
    )


def fit(
    kernel: Kernel, arch: Array, size: Array, lengthscale: Array, noise: Array
) -> GaussianProcess:
    """The process of the first `size` of the architectures i32[C, D], one joining after the other.

    On a CPU this is several times faster than a Cholesky decomposition of all C x C, most of which
    is padding, and a `size` that searches in a `vmap` share bounds the loop of all of them.
    """
    capacity, num_decisions = arch.shape
    start = empty(capacity, num_decisions, lengthscale, noise)
    return jax.lax.fori_loop(0, size, lambda i, p: append(kernel, p, arch[i]), start)


def whitened(process: GaussianProcess, targets: Array) -> Array:
    """The targets f32[C] (zero beyond the size) made independent and of unit variance: f32[C]."""
    return process.inverse @ targets


def weights(process: GaussianProcess, targets: Array) -> Array:
    """What the posterior mean combines the kernel's columns with: f32[C]."""
    return whitened(process, targets) @ process.inverse


def amplitude(process: GaussianProcess, targets: Array) -> Array:
    """The standard deviation of the process that makes the targets f32[C] likeliest: f32[]."""
    z = whitened(process, targets)
    return jnp.sqrt(jnp.maximum(z @ z / jnp.maximum(process.size, 1), 1e-12))


def log_likelihood(process: GaussianProcess, targets: Array) -> Array:
    """Logarithm of the marginal likelihood of the targets f32[C] at their best amplitude: f32[]."""
    used = jnp.arange(targets.size) < process.size
    diagonal = jnp.where(used, jnp.diagonal(process.inverse), 1.0)
    scale = jnp.log(amplitude(process, targets)) + 0.5 * (1.0 + np.log(2.0 * np.pi))
    return jnp.sum(jnp.log(diagonal)) - process.size * scale


def select(
    kernel: Kernel, arch: Array, size: Array, targets: Array, lengthscales: Array, noises: Array
) -> tuple[Array, Array]:
    """The pair of hyperparameters that makes the targets likeliest.

    Args:
      kernel: one of `KERNELS`.
      arch: i32[C, D], of which the first `size` count.
      size: i32[].
      targets: f32[C], zero beyond the size.
      lengthscales: f32[H], of the pairs.
      noises: f32[H].

    Returns:
      A length scale f32[] and a noise f32[].
    """

    def likelihood(pair):
        return log_likelihood(fit(kernel, arch, size, *pair), targets)

    # One after the other, for many searches at once fill a CPU's caches with a single pair.
    best = jnp.argmax(jax.lax.map(likelihood, (lengthscales, noises)))
    return lengthscales[best], noises[best]


def cross(kernel: Kernel, process: GaussianProcess, candidates: Array) -> Cross:
    """What combines the kernel's columns at candidates i32[P, D].

    With it `cross(weights)` is the posterior mean, and `cross(process.inverse[i]) ** 2` the
    variance that row i explains, of all candidates.
    """
    columns = kernel(hamming_distance(candidates, process.arch), process.lengthscale)
    return lambda combination: columns @ combination


def grid_cross(
    kernel: Kernel, process: GaussianProcess, halves: tuple[np.ndarray, np.ndarray]
) -> Cross:
    """`cross` at all combinations of two halves of an architecture, without the P x C kernel.

    Distances of the halves add up, so the columns are small sums of outer products:
    k(i + j) = k(i) k(j) for the Hamming kernel, and for any other the sum over the distances s of
    the second half of k(i + s) [j = s]. One matrix product of the halves then does it.

    Args:
      kernel: one of `KERNELS`.
      process: the model.
      halves: the first decisions i32[A, D1] and the others i32[B, D2] of the candidates.

    Returns:
      The function f32[C] -> f32[A * B], the second half varying fastest.
    """
    split = halves[0].shape[1]
    near = hamming_distance(process.arch[:, :split], halves[0])
    far = hamming_distance(process.arch[:, split:], halves[1])
    if kernel is hamming_kernel:
        first = kernel(near, process.lengthscale)
        second = kernel(far, process.lengthscale)
        return lambda combination: ((first.T * combination) @ second).ravel()
    shifts = jnp.arange(halves[1].shape[1] + 1, dtype=jnp.float32)
    first = kernel(near[:, None] + shifts[:, None], process.lengthscale)  # f32[C, S, A]
    second = (far[:, None] == shifts[:, None]).astype(jnp.float32)  # f32[C, S, B]

    def combine(combination):
        scaled = first * combination[:, None, None]
        return jnp.einsum("csa,csb->ab", scaled, second).ravel()

    return combine


def explained(process: GaussianProcess, combine: Cross, num_candidates: int) -> Array:
    """The share of the prior variance that the whole process explains, per candidate: f32[P]."""

    def add(i, total):
        return total + combine(process.inverse[i]) ** 2

    return jax.lax.fori_loop(0, process.size, add, jnp.zeros(num_candidates))


def predict(
    kernel: Kernel, process: GaussianProcess, targets: Array, candidates: Array
) -> tuple[Array, Array]:
    """Posterior mean and standard deviation, without noise.

    Args:
      kernel: one of `KERNELS`.
      process: the model.
      targets: f32[C], centred, zero beyond the size.
      candidates: i32[P, D].

    Returns:
      The mean f32[P] and the standard deviation f32[P].

    Example:
      >>> process = append(hamming_kernel, empty(4, 3, 1.0, 0.01), jnp.zeros(3, jnp.int32))
      >>> targets = jnp.array([2.0, 0.0, 0.0, 0.0])
      >>> mean, std = predict(hamming_kernel, process, targets, jnp.array([[0, 0, 0], [1, 1, 1]]))
      >>> print(np.asarray(mean).round(2), np.asarray(std).round(2))
      [1.98 0.1 ] [0.2  1.99]
    """
    columns = kernel(hamming_distance(process.arch, candidates), process.lengthscale)
    mean = weights(process, targets) @ columns
    variance = 1.0 - jnp.sum((process.inverse @ columns) ** 2, axis=0)
    return mean, amplitude(process, targets) * jnp.sqrt(jnp.maximum(variance, 0.0))
