"""Each proxy against plain PyTorch on the stand-alone network, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import proxies
from jaxnas.proxies.candidate import Candidate
from jaxnas.proxies.zen import _normal_like
from jaxnas.spaces import nasbench201
from jaxnas.spaces.nasbench201 import published_costs
from jaxnas.training.data import Split
from jaxnas.types import split_like

SIZES = {"num_channels": 4, "num_cells": 1, "image_size": 8}
ROWS, CLASSES = 8, 4
# Everything; pooling and identities; an edge that leads nowhere; nothing but identities; no path.
ARCHS = ((3, 2, 3, 3, 2, 3), (4, 1, 2, 1, 3, 4), (3, 1, 0, 2, 0, 4), (1,) * 6, (3, 2, 0, 0, 0, 0))
DEAD = len(ARCHS) - 1


def batch():
    x = jax.random.normal(jax.random.key(5), (ROWS, 8, 8, 3))
    return Split(x, jnp.arange(ROWS) % CLASSES)


@pytest.fixture(scope="module")
def space():
    return nasbench201(CLASSES, **SIZES)


@pytest.fixture(scope="module")
def scores(space):
    """All proxies of all architectures, in one program."""
    arch = jnp.asarray(ARCHS, jnp.int32)
    run = jax.jit(lambda key, arch, batch: proxies.score(key, space, arch, batch))
    return jax.tree.map(np.asarray, run(jax.random.key(0), arch, batch()))


def candidate_of(space, arch):
    """The candidate that `score` makes of an architecture for key 0."""
    module = space.supernet(space.full_bucket)
    k_init, k_run = split_like(jax.random.key(0), 2)
    init = jax.jit(lambda key, x, arch: module.init(key, x, arch, train=False))
    arch = jnp.asarray(arch, jnp.int32)
    return Candidate(module, init(k_init, batch().x[:1], arch), arch, batch(), k_run)


# The same networks in PyTorch, in double precision.


def fill(module, params, *path):
    """Copies the layer at `path` into a convolution, a dense layer or a normalisation."""
    import torch

    for name in path:
        params = params[name]
    own = {name: torch.tensor(np.asarray(value, np.float64)) for name, value in params.items()}
    weight = own["kernel"] if "kernel" in own else own["scale"]
    with torch.no_grad():
        module.weight.copy_(weight.permute({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[weight.ndim]))
        if "bias" in own:
            module.bias.copy_(own["bias"])


def peer_network(space, variables, arch):
    from torch import nn

    from benchmarks.peers.torch_cells import CellNetwork, Network

    names = [d.choices[c] for d, c in zip(space.decisions, arch, strict=True)]
    network = CellNetwork(tuple(names), Network(CLASSES, 4, 1, 3)).double().train()
    params = space.supernet(space.full_bucket).extract(variables, np.asarray(arch))["params"]
    for name in ("stem", "stem_norm", "head_norm", "head"):
        fill(getattr(network, name), params, name)
    for stage, reduction in enumerate(network.reductions, 1):
        block = f"reduction_{stage}"
        for part in ("first", "second"):
            fill(getattr(reduction, part)[1], params, block, part, "conv")
            fill(getattr(reduction, part)[2], params, block, part, "norm")
        fill(reduction.shortcut[1], params, block, "shortcut")
    for stage, cells in enumerate(network.stages):
        for name, edge in cells[0].edges.items():
            if isinstance(edge, nn.Sequential):
                fill(edge[1], params, f"stage_{stage}_cell_0", name, "conv")
                fill(edge[2], params, f"stage_{stage}_cell_0", name, "norm")
    return network


@pytest.fixture(scope="module")
def peers(space):
    """A stand-alone network per architecture, with the weights that `score` gives it, and rows."""
    torch = pytest.importorskip("torch")
    candidate = candidate_of(space, ARCHS[0])
    variables = {"params": candidate.params, **candidate.rest}
    networks = [peer_network(space, variables, arch) for arch in ARCHS]
    x = torch.tensor(np.asarray(batch().x, np.float64)).permute(0, 3, 1, 2)
    return networks, x, torch.tensor(np.asarray(batch().y), dtype=torch.int64)


@pytest.mark.parametrize("name", sorted(set(proxies.ALL) - {"zen"}))
def test_proxy_equals_plain_pytorch(name, scores, peers):
    from benchmarks.peers import torch_proxies

    networks, x, y = peers
    for index, network in enumerate(networks[:DEAD]):
        expected = torch_proxies.SCORES[name](network, x, y)
        tolerance = 1e-2 if name == "ntk" else 2e-3
        np.testing.assert_allclose(scores[name][index], expected, tolerance, err_msg=str(index))
    assert len({round(float(value), 4) for value in scores[name][:DEAD]}) >= 3


def test_zen_equals_plain_pytorch(space, scores, peers):
    torch = pytest.importorskip("torch")
    from benchmarks.peers import torch_proxies

    candidate = candidate_of(space, ARCHS[0])
    k_weights, k_x, k_shift = jax.random.split(jax.random.split(candidate.key, 1)[0], 3)
    drawn = iter(_normal_like(k_weights, candidate.weights))
    mask = candidate.module.weights(candidate.params)
    params = jax.tree.map(lambda p, on: next(drawn) if on else p, candidate.params, mask)
    first = np.asarray(jax.random.normal(k_x, candidate.batch.x.shape))
    moved = first + 0.01 * np.asarray(jax.random.normal(k_shift, first.shape))
    draws = tuple(torch.tensor(a.astype(np.float64)).permute(0, 3, 1, 2) for a in (first, moved))
    for index, arch in enumerate(ARCHS[:DEAD]):
        network = peer_network(space, {"params": params, **candidate.rest}, arch)
        expected = torch_proxies.zen(network, *peers[1:], draws)
        np.testing.assert_allclose(scores["zen"][index], expected, 2e-3)


def test_costs_are_the_published_ones(scores):
    expected = published_costs(np.asarray(ARCHS), CLASSES, **SIZES)
    np.testing.assert_array_equal(scores["parameters"], expected.parameters)
    np.testing.assert_array_equal(scores["flops"], expected.flops)


def test_network_without_a_path_has_no_score(scores):
    finite = {name for name, column in scores.items() if np.isfinite(column[DEAD])}
    assert finite == {"fisher", "flops", "l2_norm", "naswot", "parameters"}
    assert scores["fisher"][DEAD] == scores["fisher"].min()
    for column in scores.values():
        assert np.isfinite(column[:DEAD]).all()
