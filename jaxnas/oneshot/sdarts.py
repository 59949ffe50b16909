"""SmoothDARTS: weights are trained against mixtures near alpha's.

Chen & Hsieh, "Stabilizing Differentiable Architecture Search via Perturbation-based
Regularization", ICML 2020, https://arxiv.org/abs/2002.05283: against random neighbours (SDARTS-RS)
or the worst one (SDARTS-ADV, 7 ascents; section 3), in a radius that rises linearly to
0.3. Optimisers are those of DARTS.

Deviation: ascents follow the sign of the gradient, a quarter of the radius each.
"""

from typing import Any

from jax import Array

from jaxnas._checks import check_option
from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.perturbations import adversarial, uniform_noise
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.relaxations import softmax
from jaxnas.types import OneShot


def sdarts(
    problem: Problem,
    *,
    num_steps: int,
    kind: str = "random",
    radius: float | Array = 0.3,
    num_ascents: int = 7,
    **options: Any,
) -> OneShot:
    """Search with weights that are robust to changes of alpha.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      kind: "random" or "adversarial". Static.
      radius: at the end of the search, at least 0.
      num_ascents: steps to the worst neighbour; each costs about two evaluations. Static.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: for another kind, and as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = sdarts(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    check_option("kind", kind, ("random", "adversarial"))
    if kind == "random":
        perturbation = uniform_noise(radius)
    else:
        perturbation = adversarial(radius, num_ascents=num_ascents)
    parts = Parts(softmax(), perturbation=perturbation)
    return bilevel(problem, parts, num_steps=num_steps, **options)
