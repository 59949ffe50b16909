"""What the layers of a network cost adds up to what the network costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxnas as nas
from jaxnas.nn.layers import BatchNorm, Conv, Dense
from jaxnas.objectives.breakdown import LayerCost, breakdown, grouped
from jaxnas.space import sample
from jaxnas.training.costs import network_cost

IMAGES = {"image_size": 8, "in_channels": 1}
SPACES = {
    "mlp": (nas.spaces.mlp(3, depths=(3,), widths=(8,)), (5,), jnp.float32),
    "chain_cnn": (nas.spaces.chain_cnn(3, **IMAGES), (8, 8, 1), jnp.float32),
    "nasbench201": (
        nas.spaces.nasbench201(3, num_channels=4, num_cells=2, **IMAGES),
        (8, 8, 1),
        jnp.float32,
    ),
    "darts": (
        nas.spaces.darts(3, num_channels=4, num_cells=3, **IMAGES),
        (8, 8, 1),
        jnp.float32,
    ),
    "recurrent": (nas.spaces.recurrent(7, num_units=6, num_nodes=3), (5,), jnp.int32),
}


def test_every_space_is_here():
    assert set(SPACES) == set(nas.spaces.ALL)


@pytest.mark.parametrize("name", SPACES)
def test_layers_add_up(name):
    space, shape, dtype = SPACES[name]
    for seed in range(2):
        arch = np.asarray(sample(jax.random.key(seed), space))
        module = space.network(arch)
        layers = breakdown(module, shape, dtype=dtype)
        whole = network_cost(module, shape, dtype=dtype)
        assert sum(layer.parameters for layer in layers) == whole.parameters > 0
        assert sum(layer.flops for layer in layers) == whole.flops > 0
        assert sum(layer.activations for layer in layers) == whole.activations
        assert all(layer.activation_bytes >= layer.activations for layer in layers)
        assert len({layer.path for layer in layers}) == len(layers)
        for most in (1, 3, 1000):
            merged = grouped(layers, most)
            assert sum(layer.flops for layer in merged) == whole.flops
            assert sum(layer.parameters for layer in merged) == whole.parameters


def test_costs_are_put_down_to_the_layer_that_has_them():
    space, shape, _ = SPACES["nasbench201"]
    edges = ["nor_conv_3x3", "none", "nor_conv_1x1", "skip_connect", "none", "avg_pool_3x3"]
    arch = np.asarray([space.decisions[0].choices.index(name) for name in edges])
    layers = {layer.path: layer for layer in breakdown(space.network(arch), shape)}
    # Stage 1 has 8 channels on 4x4 pixels.
    conv = layers["stage_1_cell_0/1<-0/conv"]
    assert (conv.kind, conv.parameters) == ("Conv", 9 * 8 * 8)
    assert (conv.flops, conv.activations) == (2 * 9 * 8 * 8 * 16, 8 * 16)
    assert conv.activation_bytes == 4 * 8 * 16
    norm = layers["stage_1_cell_0/1<-0/norm"]
    assert (norm.kind, norm.parameters, norm.flops) == ("BatchNorm", 16, 0)
    assert layers["stage_1_cell_0/3<-2"].kind == "Pool"
    head = layers["head"]
    assert (head.parameters, head.flops) == (16 * 3 + 3, 2 * 16 * 3)
    assert not any("2<-0" in path for path in layers)


class Repeated(nn.Module):
    """Cells in a loop, with parameters of their own or shared ones."""

    shared: bool

    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(len(x), 4, 4, 1) @ jnp.ones((1, 3))
        axes = {"variable_broadcast": ("params", "batch_stats")}
        if not self.shared:
            axes = {"variable_axes": {"params": 0, "batch_stats": 0}}
        loop = nn.scan(_Cell, split_rngs={"params": not self.shared}, length=5, **axes)
        x, _ = loop(name="cells")(x, None)
        return Dense(2, name="head")(x.mean(axis=(1, 2)))


class _Cell(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = Conv(3, 3, name="conv")(x)
        return x + BatchNorm(name="norm")(y, train=False), None


@pytest.mark.parametrize("shared", [True, False])
def test_layers_in_a_loop_count_as_often_as_they_run(shared):
    module = Repeated(shared)
    layers = {layer.path: layer for layer in breakdown(module, (16,))}
    copies = 1 if shared else 5
    conv = layers["cells/conv"]
    assert conv.flops == 5 * 2 * 9 * 3 * 3 * 16
    assert conv.activations == 5 * 3 * 16
    assert conv.parameters == copies * 9 * 3 * 3
    assert layers["cells/norm"].parameters == copies * 6
    assert layers[""].flops == 2 * 3 * 16  # the network's own product
    assert sum(layer.flops for layer in layers.values()) == network_cost(module, (16,)).flops


def test_groups_keep_order_and_what_stands_alone():
    layers = [
        LayerCost("", "Net", 0, 1.0),
        LayerCost("stem", "Conv", 2, 2.0),
        LayerCost("cell/a/conv", "Conv", 3, 3.0),
        LayerCost("cell/a/norm", "BatchNorm", 4, 4.0),
        LayerCost("cell/b", "Dense", 5, 5.0),
    ]
    assert grouped(layers, 5) == layers
    found = [(layer.path, layer.kind, layer.parameters) for layer in grouped(layers, 4)]
    assert found == [("", "Net", 0), ("stem", "Conv", 2), ("cell/a", "", 7), ("cell/b", "Dense", 5)]
    assert [layer.path for layer in grouped(layers, 1)] == ["", "stem", "cell"]
    assert grouped([], 3) == []
