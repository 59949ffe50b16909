"""Mixed operations and cells against the same networks written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxnas.nn.mixed import MixedOp
from jaxnas.spaces.nasbench201 import nasbench201

IMAGES = jax.random.normal(jax.random.key(0), (6, 8, 8, 2))
ARCH = jnp.asarray([3, 1, 2, 4, 3, 0])  # one of every operation
SPACE = nasbench201(3, num_channels=4, num_cells=2, image_size=8, in_channels=2)


class Scale(nn.Module):
    """Multiplies by a learned number, and counts its calls in a collection."""

    start: float

    @nn.compact
    def __call__(self, x, *, train):
        factor = self.param("factor", lambda key: jnp.float32(self.start))
        calls = self.variable("batch_stats", "calls", lambda: jnp.float32(0.0))
        if train and not self.is_initializing():
            calls.value += 1.0
        return factor * x


OPS = (
    ("double", lambda **flax: Scale(2.0, **flax)),
    ("triple", lambda **flax: Scale(3.0, **flax)),
)


def run(variables, choice, train=True, **options):
    module = MixedOp(OPS, **options)
    mutable = ["batch_stats"] if train else []
    y, updated = module.apply(variables, jnp.ones(2), choice, train=train, mutable=mutable)
    return y.tolist(), updated.get("batch_stats")


@pytest.fixture(scope="module")
def variables():
    return MixedOp(OPS).init(jax.random.key(0), jnp.ones(2), jnp.int32(0), train=False)


def test_a_route_runs_one_operation_and_counts_it_alone(variables):
    y, stats = run(variables, jnp.int32(1))
    assert y == [3.0, 3.0]
    assert float(stats["triple"]["calls"]) == 1.0
    assert float(stats["double"]["calls"]) == 0.0
    assert run(variables, jnp.int32(0), train=False)[0] == [2.0, 2.0]


def test_a_mixture_weights_all_of_them(variables):
    y, stats = run(variables, jnp.asarray([0.5, 2.0]))
    assert y == [7.0, 7.0]
    assert float(stats["triple"]["calls"]) == float(stats["double"]["calls"]) == 1.0


def test_choices_count_operations_that_are_left_out(variables):
    one = {c: {"triple": tree["triple"]} for c, tree in variables.items()}
    assert run(one, jnp.int32(1), keep=(1,))[0] == [3.0, 3.0]


def test_gradients_reach_the_chosen_operation_and_the_weights(variables):
    def loss(params, choice):
        own = {**variables, "params": params}
        return MixedOp(OPS).apply(own, jnp.ones(2), choice, train=False).sum()

    routed = jax.grad(loss)(variables["params"], jnp.int32(1))
    assert float(routed["triple"]["factor"]) == 2.0
    assert float(routed["double"]["factor"]) == 0.0
    weights = jax.grad(loss, argnums=1)(variables["params"], jnp.asarray([0.5, 0.5]))
    assert weights.tolist() == [4.0, 6.0]


def test_scanned_cells_equal_the_network_written_out():
    supernet = SPACE.supernet(SPACE.full_bucket)
    network = SPACE.network(np.asarray(ARCH))
    variables = jax.jit(lambda key: supernet.init(key, IMAGES, ARCH, train=False))(
        jax.random.key(1)
    )
    alone = supernet.extract(variables, np.asarray(ARCH))

    def outcome(module, variables, *choice):
        def loss(params):
            own = {**variables, "params": params}
            y, updated = module.apply(own, IMAGES, *choice, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, updated["batch_stats"])

        gradient, (y, stats) = jax.grad(loss, has_aux=True)(variables["params"])
        return y, {"params": gradient, "batch_stats": stats}

    wanted = jax.jit(lambda v: outcome(network, v))(alone)
    routed = jax.jit(lambda v: outcome(supernet, v, ARCH))(variables)
    y, changed = routed[0], supernet.extract(routed[1], np.asarray(ARCH))
    np.testing.assert_allclose(y, wanted[0], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), changed, wanted[1])
