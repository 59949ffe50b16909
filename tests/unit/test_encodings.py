"""Path encoding against paths worked out by hand and a loop; one-hot; what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import encodings, enumeration
from jaxnas.space import encode


def cell():
    return nas.spaces.nasbench201()


# Edges in the order of the vector: 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2. A path o_1 o_2 ... of length
# L is number (5 + ... + 5^(L-1)) + o_1 + 5 o_2 + 25 o_3.
GOLDEN = {
    # 3<-0: 0; twice (0, 0): 5; (0, 0, 0): 30.
    (0, 0, 0, 0, 0, 0): {0, 5, 30},
    # 4; 5 + 4 + 5 * 4 = 29; 30 + 4 + 5 * 4 + 25 * 4 = 154, the last of all.
    (4, 4, 4, 4, 4, 4): {4, 29, 154},
    # 3<-0 is 3; (1<-0, 3<-1) = (0, 4): 25; (2<-0, 3<-2) = (1, 0): 6; (0, 2, 0): 30 + 10.
    (0, 1, 2, 3, 4, 0): {3, 25, 6, 40},
    # 1; (3, 0): 8; (2, 4): 5 + 2 + 20; (3, 1, 4): 30 + 3 + 5 + 100.
    (3, 2, 1, 1, 0, 4): {1, 8, 27, 138},
}


@pytest.mark.parametrize("arch", GOLDEN)
def test_paths_by_hand(arch):
    whole = encodings.path(cell(), num_paths=None)(jnp.asarray(arch))
    assert whole.shape == (155,)
    assert set(np.flatnonzero(whole).tolist()) == GOLDEN[arch]
    short = encodings.encoder(cell(), "path")(jnp.asarray(arch))
    np.testing.assert_array_equal(short, whole[:30])


def test_paths_of_every_architecture():
    every = enumeration.all_architectures(cell())
    got = np.asarray(jax.jit(jax.vmap(encodings.path(cell(), num_paths=None)))(every))
    edges = [(3,), (0, 4), (1, 5), (0, 2, 5)]
    wanted = np.zeros((len(every), 155), np.float32)
    for path in edges:
        number = sum(5**length for length in range(1, len(path)))
        for place, edge in enumerate(path):
            number = number + 5**place * every[:, edge]
        wanted[np.arange(len(every)), number] = 1.0
    np.testing.assert_array_equal(got, wanted)
    assert got.any(axis=0).all()  # 5 + 25 + 125 different paths
    assert set(got[:, :5].sum(axis=1)) == set(got[:, 30:].sum(axis=1)) == {1.0}


def test_paths_of_another_graph():
    # Three nodes, two operations: 2<-0, and 1<-0 followed by 2<-1.
    decisions = tuple(nas.Decision(name, ("a", "b")) for name in ("2<-1", "1<-0", "2<-0"))
    space = nas.SearchSpace("triangle", decisions, nas.testing.tiny_space().network)
    encode_paths = encodings.path(space)
    for last, first, direct in itertools.product(range(2), repeat=3):
        found = np.flatnonzero(encode_paths(jnp.array([last, first, direct]))).tolist()
        assert found == [direct, 2 + first + 2 * last]


def test_one_hot_and_own_functions():
    space = nas.testing.conditional_space()
    arch = jnp.array([1, 2, 1, 0, 0])
    np.testing.assert_array_equal(encodings.encoder(space, "one_hot")(arch), encode(space, arch))

    def own(arch):
        return arch.astype(jnp.float32)

    assert encodings.encoder(space, own) is own
    assert encodings.num_features(space, own) == 5


def test_what_is_refused():
    space = nas.testing.tiny_space()
    with pytest.raises(ValueError, match="'path' is not defined on space 'tiny'"):
        encodings.encoder(space, "path")
    with pytest.raises(ValueError, match=r"encoding must be one of .* got 'graph'"):
        encodings.encoder(space, "graph")
    with pytest.raises(ValueError, match="num_paths"):
        encodings.path(cell(), num_paths=0)
    with pytest.raises(ValueError, match="vector of features"):
        encodings.num_features(space, lambda arch: arch.sum())
