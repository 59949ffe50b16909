"""The DARTS space: architectures, published genotypes and sizes, costs."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import testing
from jaxnas.nn._darts_cells import EDGES, stages_of
from jaxnas.nn.operations import OPERATIONS
from jaxnas.space import sample
from jaxnas.spaces.darts import (
    DARTS_OPERATIONS,
    GENOTYPES,
    Genotype,
    arch_from_genotype,
    darts,
    genotype_from_arch,
)
from jaxnas.training.costs import network_cost

TINY: dict[str, Any] = {"num_channels": 4, "num_cells": 3, "image_size": 8, "in_channels": 1}
CHOSEN = DARTS_OPERATIONS[1:]


def tiny(**options):
    return darts(3, **(TINY | options))


def shapes_of(module):
    x = jax.ShapeDtypeStruct((1, *module.image_shape), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def sorted_genes(genes):
    """The two edges of each node, by source."""
    pairs = [sorted(genes[i : i + 2], key=lambda gene: gene[1]) for i in range(0, 8, 2)]
    return tuple(gene for pair in pairs for gene in pair)


# Decisions.


def test_contract():
    testing.check_space(tiny())


def test_decisions():
    space = tiny()
    assert space.num_decisions == 24
    one_kind = (1, 7, 7, 3, 7, 7, 6, 7, 7, 10, 7, 7)
    assert space.num_choices == one_kind * 2
    assert [d.name for d in space.decisions][11:14] == [
        "normal_5_op_2",
        "reduce_2_inputs",
        "reduce_2_op_1",
    ]
    assert np.prod([float(n) for n in one_kind]) == 180 * 7**8


def test_none_is_no_choice_and_may_be_left_out():
    few = ("skip_connect", "sep_conv_3x3")
    with_none, without = tiny(operations=("none", *few)), tiny(operations=few)
    assert with_none.decisions == without.decisions
    assert with_none.supernet(()).rows == (3,) * 28
    assert without.supernet(()).rows == (2,) * 28
    assert with_none.supernet(()).row_operations[5] == ("none", *few)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cells": 2}, "num_cells must be an integer of at least 3, got 2"),
        ({"num_channels": 0}, "num_channels must be an integer of at least 1"),
        ({"num_classes": 1.5}, "num_classes must be an integer"),
        ({"in_channels": 0}, "in_channels must be"),
        ({"image_size": 10}, "image_size must be a multiple of 4, got 10"),
        ({"residuals": "none"}, "residuals must be one of .* got .none."),
        ({"operations": ("none",)}, "at least one besides 'none'"),
        ({"operations": ("skip_connect", "skip_connect")}, "none twice"),
        ({"operations": ("skip_connect", "conv")}, "operations has 'conv'"),
    ],
)
def test_bad_spaces_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        darts(**options)


# Published forms.


@pytest.mark.parametrize("name", GENOTYPES)
def test_published_genotypes_round_trip(name):
    genotype = GENOTYPES[name]
    found = genotype_from_arch(arch_from_genotype(genotype))
    assert found == Genotype(sorted_genes(genotype.normal), sorted_genes(genotype.reduce))
    assert set(EDGES) >= {(source, 2) for _, source in found.normal[:2]}


def test_architectures_round_trip():
    space = tiny()
    for arch in np.asarray(
        jax.vmap(lambda k: sample(k, space))(jax.random.split(jax.random.key(0), 20))
    ):
        np.testing.assert_array_equal(arch_from_genotype(genotype_from_arch(arch)), arch)


def test_the_authors_own_tuples_are_understood():
    own = collections.namedtuple("Genotype", "normal normal_concat reduce reduce_concat")
    known = GENOTYPES["DARTS_V1"]
    theirs = own(list(known.normal), range(2, 6), list(known.reduce), [2, 3, 4, 5])
    np.testing.assert_array_equal(arch_from_genotype(theirs), arch_from_genotype(known))


def test_an_architecture_is_described_as_it_is_published():
    found = tiny().describe(arch_from_genotype(GENOTYPES["DARTS_V2"]))
    assert found["normal_5_inputs"] == (0, 2)
    assert (found["normal_5_op_1"], found["normal_5_op_2"]) == ("skip_connect", "dil_conv_3x3")


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        (("sep_conv_3x3", 0), r"sources of node 2 must be one of \(\(0, 1\),\), got \(0, 0\)"),
        (("sep_conv_3x3", 2), r"got \(0, 2\)"),
        (("none", 1), "operations must be among .* got 'none'"),
        (("sep_conv_7x7", 1), "got 'sep_conv_7x7'"),
    ],
)
def test_bad_genotypes_are_refused(edge, message):
    known = GENOTYPES["DARTS_V2"]
    with pytest.raises(ValueError, match=message):
        arch_from_genotype(known._replace(normal=(known.normal[0], edge, *known.normal[2:])))
    with pytest.raises(ValueError, match="reduce must be 8 edges, got 7"):
        arch_from_genotype(known._replace(reduce=known.reduce[1:]))


def test_bad_architectures_are_refused():
    for arch in ([0] * 23, [1] + [0] * 23, [0, 7] + [0] * 22, [-1] * 24):
        with pytest.raises(ValueError, match="arch must be 24 choices below"):
            genotype_from_arch(arch)


# Sizes. Published: what the authors' code prints for DARTS_V2, "param size = 3.349342MB", and for
# its search network, "param size = 1.930618MB", in millions of parameters without the auxiliary
# head; P_DARTS by https://github.com/chenxin061/pdarts/issues/7. The papers give 3.3M for both of
# DARTS, 3.4M for P_DARTS and 3.6M for PC_DARTS.

PUBLISHED = {
    "DARTS_V1": 3_169_414,
    "DARTS_V2": 3_349_342,
    "P_DARTS": 3_433_798,
    "PC_DARTS": 3_634_678,
}
AUXILIARY = 476_426


@pytest.mark.parametrize("name", GENOTYPES)
def test_parameters_of_published_networks(name):
    assert darts().cost(arch_from_genotype(GENOTYPES[name])).parameters == PUBLISHED[name]


def cells_by_hand(c, normal_edges):
    """Parameters of the normal cells and of the reduction cells, which have pooling and skips only.

    `normal_edges`: those of the edges of one normal cell with c channels, a function of c.
    """

    def bring(inputs, outputs):
        return inputs * outputs + 2 * outputs

    first = 2 * bring(3 * c, c) + bring(3 * c, c) + bring(4 * c, c) + 4 * 2 * bring(4 * c, c)
    later = [
        bring(4 * w // 2, w) + bring(4 * w, w) + 5 * 2 * bring(4 * w, w) for w in (2 * c, 4 * c)
    ]
    edges = 6 * sum(normal_edges(w) for w in (c, 2 * c, 4 * c))
    return first + sum(later) + edges, sum(2 * bring(2 * w, w) for w in (2 * c, 4 * c))


def separable(c, size):
    return size**2 * c + c * c + 2 * c


def test_parameters_by_part():
    """Stem, normal and reduction cells, head and auxiliary head of DARTS_V2."""
    module = darts(auxiliary=True).network(arch_from_genotype(GENOTYPES["DARTS_V2"]))
    found = {key: count(tree) for key, tree in shapes_of(module)["params"].items()}
    reductions = [found.pop(f"cell_{index}") for index in (6, 13)]
    cells = [found.pop(f"cell_{index}") for index in range(20) if f"cell_{index}" in found]
    assert len(cells) == 18
    assert found == {"stem": 2916, "stem_norm": 216, "head": 5770, "auxiliary": AUXILIARY}
    edges = lambda c: 5 * 2 * separable(c, 3) + separable(c, 3)  # noqa: E731
    by_hand = cells_by_hand(36, edges)
    assert (sum(cells), sum(reductions)) == by_hand == (3_235_896, 104_544)
    assert sum(by_hand) + 2916 + 216 + 5770 == PUBLISHED["DARTS_V2"]
    pooled = 36 * 4 * 4
    hidden = pooled * 128 + 2 * 128 + 4 * 128 * 768 + 2 * 768
    assert hidden + 768 * 10 + 10 == AUXILIARY


def test_parameters_of_the_other_published_network_by_part():
    cells = cells_by_hand(36, lambda c: 5 * 2 * separable(c, 3))
    assert cells == (3_055_968, 104_544)
    assert sum(cells) + 2916 + 216 + 5770 == PUBLISHED["DARTS_V1"]


def test_parameters_of_the_published_search_network():
    supernet = darts(num_channels=16, num_cells=8, search=True).supernet(())
    x, arch = jnp.zeros((1, 32, 32, 3)), jnp.zeros(24, jnp.int32)
    made = jax.eval_shape(lambda k: supernet.init(k, x, arch, train=False), jax.random.key(0))
    assert count(made["params"]) == 1_930_618


def test_multiply_adds_of_published_networks():
    """528 million for DARTS_V2, as papers that count have it (a multiply-add is two flops)."""
    arch = arch_from_genotype(GENOTYPES["DARTS_V2"])
    assert darts().cost(arch).flops == 2 * 528_359_040


@pytest.mark.parametrize("search", [False, True])
def test_costs_are_those_of_the_traced_network(search):
    space = tiny(num_cells=4, search=search)
    arch = sample(jax.random.key(int(search)), space)
    module = space.network(arch)
    assert space.cost(arch) == network_cost(module, module.image_shape)


@pytest.mark.slow
def test_costs_of_other_operations_are_those_of_the_traced_network():
    space = tiny(num_cells=7, operations=tuple(OPERATIONS))
    for seed in range(4):
        arch = sample(jax.random.key(seed), space)
        module = space.network(arch)
        assert space.cost(arch) == network_cost(module, module.image_shape)


@pytest.mark.parametrize("num_cells", [3, 4, 5, 8, 20])
def test_stages_hold_every_cell_once(num_cells):
    stages = stages_of(2, num_cells)
    cells = [c for s in stages for c in range(s.first, s.first + s.num_cells)]
    assert cells == list(range(num_cells))
    reductions = [s.first for s in stages if s.reduces]
    assert reductions == [num_cells // 3, 2 * num_cells // 3]
    halved = [s.first for s in stages if s.halved]
    assert halved == [c + 1 for c in reductions if c + 1 < num_cells]
    for stage in stages:
        assert stage.features == 2 * 2 ** sum(r <= stage.first for r in reductions)


# The strongest architecture.


def rule(strengths):
    """Section 2.4 of the paper for one kind of cell, in loops."""
    genes, start = [], 0
    for target in range(2, 6):
        edges = strengths[start : start + target]
        start += target
        best = sorted(range(target), key=lambda source: -max(edges[source][1:]))[:2]
        genes += [(CHOSEN[int(np.argmax(edges[source][1:]))], source) for source in best]
    return sorted_genes(genes)


def test_derive_follows_the_rule():
    supernet = tiny().supernet(())
    derive = jax.jit(supernet.derive)
    rng = np.random.default_rng(0)
    for trial in range(30):
        strengths = rng.normal(size=(28, 8)).astype(np.float32)
        if trial % 2:  # ties
            strengths = np.round(strengths)
        found = genotype_from_arch(derive(strengths))
        assert found == Genotype(rule(strengths[:14]), rule(strengths[14:]))


def test_derive_ignores_none():
    supernet = tiny().supernet(())
    strengths = np.random.default_rng(1).normal(size=(28, 8))
    louder = strengths + 9.0 * np.eye(8)[0]
    np.testing.assert_array_equal(supernet.derive(louder), supernet.derive(strengths))
    last = tiny(operations=(*CHOSEN, "none")).supernet(())
    rolled = np.roll(strengths, -1, axis=1)
    np.testing.assert_array_equal(last.derive(rolled), supernet.derive(strengths))


@pytest.mark.parametrize("operations", [DARTS_OPERATIONS, CHOSEN])
def test_a_mixture_of_one_architecture_derives_it(operations):
    space = tiny(operations=operations)
    supernet = space.supernet(())
    both = jax.jit(lambda arch: (supernet.mixture(arch), supernet.derive(supernet.mixture(arch))))
    for seed in range(20):
        arch = sample(jax.random.key(seed), space)
        weights, found = both(arch)
        np.testing.assert_array_equal(found, arch)
        on = np.asarray(weights)[:, [k for k, o in enumerate(operations) if o != "none"]]
        assert on.sum() == 16 and np.asarray(weights).sum() == (28 if "none" in operations else 16)
