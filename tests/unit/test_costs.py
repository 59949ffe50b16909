"""Costs from structure, from the compiler, and as tables; latency."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxnas as nas
from jaxnas.objectives import costs, latency, latency_table
from jaxnas.objectives.latency_table import Block
from jaxnas.space import sample

SPACE = nas.spaces.nasbench201(10, image_size=8, num_channels=4, num_cells=1)
DATA = Path(os.environ.get("JAXNAS_DATA", "../shared/data"))


def archs(num, seed=0):
    keys = jax.random.split(jax.random.key(seed), num)
    return np.asarray(jax.vmap(lambda key: sample(key, SPACE))(keys))


def test_additive_cost_is_the_traced_one():
    cost = costs.additive(SPACE, lambda arch: SPACE.cost(arch).flops)
    every = archs(50)
    found = jax.jit(jax.vmap(lambda arch: cost.of(SPACE, arch)))(every)
    expected = [costs.structural_cost(SPACE, arch, (8, 8, 3)).flops for arch in every[:5]]
    np.testing.assert_allclose(found[:5], expected, rtol=1e-6)
    np.testing.assert_allclose(found, [SPACE.cost(arch).flops for arch in every], rtol=1e-6)


def test_expected_cost_and_its_gradient():
    cost = costs.additive(SPACE, lambda arch: SPACE.cost(arch).parameters)
    one_hot = jax.nn.one_hot(jnp.asarray(archs(1)[0]), 5)
    exact = SPACE.cost(archs(1)[0]).parameters
    np.testing.assert_allclose(cost.expected(SPACE, one_hot), exact, rtol=1e-6)
    uniform = jnp.full((6, 5), 0.2)
    every = np.asarray(np.meshgrid(*[range(5)] * 6)).reshape(6, -1).T[::7]
    mean = np.mean([SPACE.cost(arch).parameters for arch in every])
    np.testing.assert_allclose(cost.expected(SPACE, uniform), mean, rtol=0.02)
    slope = jax.grad(lambda w: cost.expected(SPACE, w))(uniform)
    np.testing.assert_allclose(slope.reshape(-1), cost.table, rtol=1e-6)


def test_what_is_not_additive_is_refused():
    with pytest.raises(ValueError, match="not a sum over decisions"):
        costs.additive(SPACE, lambda arch: float(arch[0] * arch[1]))
    deep = nas.testing.conditional_space()
    with pytest.raises(ValueError, match="conditional decisions"):
        costs.additive(deep, lambda arch: 0.0)


def test_compiler_and_structure_agree_on_flops():
    space = nas.spaces.mlp(10, depths=(2,), widths=(64,), activations=("relu",), dropouts=(0.0,))
    arch = np.asarray(space.arch({}))
    structure = costs.structural_cost(space, arch, (32,))
    compiled = costs.compiled_cost(space, arch, (32,), batch_size=16)
    # Bias and rectifier are the elementwise operations that only the compiler counts.
    elementwise = 16 * (2 * 2 * 64 + 10)
    assert 16 * structure.flops <= compiled.flops <= 16 * structure.flops + 2 * elementwise
    weights = 4 * structure.parameters
    assert compiled.bytes_moved >= weights
    assert compiled.training_bytes >= 2 * weights
    more = costs.compiled_cost(space, arch, (32,), batch_size=256)
    assert more.training_bytes > compiled.training_bytes
    assert costs.compiled_cost(space, arch, (32,), batch_size=16) is compiled


def test_latency_interval_holds_the_median():
    waits = iter(np.tile([1.0, 2.0, 3.0], 20))
    clock = [0.0]

    def call():
        clock[0] += next(waits)
        return jnp.zeros(())

    real, latency.time.perf_counter = latency.time.perf_counter, lambda: clock[0]
    try:
        found = latency.time_call(call, num_repeats=30, num_warmups=3)
    finally:
        latency.time.perf_counter = real
    assert (found.median, found.low, found.high) == (2000.0, 2000.0, 2000.0) or (
        found.low <= 2000.0 <= found.high
    )
    assert found.low >= 1000.0 and found.high <= 3000.0
    assert found.rows_per_second == pytest.approx(0.5)


def test_latency_of_a_network():
    arch = archs(1)[0]
    one = latency.measure(SPACE, arch, (8, 8, 3), num_repeats=7, num_warmups=1)
    many = latency.measure(SPACE, arch, (8, 8, 3), batch_size=64, num_repeats=7, num_warmups=1)
    assert 0 < one.low <= one.median <= one.high
    assert many.rows_per_second > one.rows_per_second and many.compile_seconds > 0
    with pytest.raises(ValueError, match="num_repeats"):
        latency.measure(SPACE, arch, (8, 8, 3), num_repeats=0)


def test_predictor_recovers_a_table_and_knows_its_error():
    rng = np.random.default_rng(0)
    table = rng.uniform(0, 2, 30)
    every = archs(200)
    features = np.asarray(latency.one_hot(SPACE, every))
    true = 5.0 + features @ table
    found = latency.fit(features[:60], true[:60] + rng.normal(0, 0.05, 60))
    error = np.asarray(found.predict(jnp.asarray(features[60:]))) - true[60:]
    assert np.sqrt(np.mean(error**2)) < 0.1
    assert 0.03 < float(found.noise) < 0.1
    for bad in ([[1.0]], [[1.0], [np.nan]]):
        with pytest.raises(ValueError, match="features"):
            latency.fit(bad, np.ones(len(bad)))


def test_leaving_one_out_is_what_its_formula_says():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=12)
    found = latency.fit(x, y)
    errors = []
    for ridge in latency.RIDGES:
        left_out = []
        for i in range(12):
            # The centre and scale stay those of all rows, as in the formula.
            z = (x - x.mean(axis=0)) / x.std(axis=0)
            a = np.column_stack([np.ones(11), np.delete(z, i, 0)])
            penalty = np.diag([0.0, *[ridge * 12] * 3])
            w = np.linalg.solve(a.T @ a + penalty, a.T @ np.delete(y, i))
            left_out.append(y[i] - w @ [1.0, *z[i]])
        errors.append(np.mean(np.square(left_out)))
    np.testing.assert_allclose(float(found.noise) ** 2, min(errors), rtol=1e-5)


def test_tables_of_both_forms(tmp_path):
    key = "expanded_conv-input:112x112x16-output:56x56x24-expand:3-kernel:5-stride:2-idskip:0"
    entries = {key: {"ms": 6.5}, "Logits-input:7x7x1280-output:1000": {"ms": 0.5}}
    (tmp_path / "phone.json").write_text(json.dumps(entries))
    table = latency_table.read_json(tmp_path / "phone.json")
    block = Block(112, 16, 56, 24, expand=3, kernel=5, stride=2)
    logits = Block(7, 1280, 0, 1000, part="Logits")
    assert table.total([block, logits]) == 7.0 and table.device == "phone"
    with pytest.raises(ValueError, match="no Block"):
        table.total([block._replace(kernel=7)])
    fields = ["in_hw", "in_c", "out_hw", "out_c", "expand", "kernel", "stride", "idskip", "se"]
    np.savez(
        tmp_path / "cpu.npz",
        fields=fields,
        keys=np.array([[112, 16, 56, 24, 3, 5, 2, 0, 0], [112, 16, 56, 24, 3, 5, 2, 0, 1]]),
        latency_ms=np.array([0.25, 0.5]),
        other=json.dumps({"classifier-input:1280-output:1000": {"mean": 0.125}}),
    )
    cpu = latency_table.read_npz(tmp_path / "cpu.npz", "cpu")
    assert cpu.blocks[block] == 0.25 and cpu.blocks[block._replace(squeeze=True)] == 0.5
    assert cpu.total([Block(0, 1280, 0, 1000, part="classifier")]) == 0.125
    (tmp_path / "bad.json").write_text(json.dumps({"nothing": {"ms": 1.0}}))
    with pytest.raises(ValueError, match="'nothing' is no block"):
        latency_table.read_json(tmp_path / "bad.json")


@pytest.mark.skipif(not (DATA / "nasbench201.npz").exists(), reason="needs the real table")
def test_twenty_measurements_are_enough_with_other_devices_known():
    with np.load(DATA / "nasbench201.npz") as arrays:
        values, devices = arrays["latency_ms"].astype(float), arrays["latency_devices"].tolist()
    target = devices.index("titanx_32") if "titanx_32" in devices else 0
    rows = np.random.default_rng(0).choice(len(values), 1020, replace=False)
    others = np.delete(values, target, axis=1)[rows]
    found = latency.fit(others[:20], values[rows[:20], target])
    predicted = found.predict(jnp.asarray(others[20:], jnp.float32))
    assert stats.spearmanr(predicted, values[rows[20:], target]).statistic > 0.9


@pytest.mark.skipif(not (DATA / "mbconv_lut_i7_8700k.npz").exists(), reason="needs the tables")
def test_real_tables_share_their_keys():
    phone = latency_table.read_json(DATA / "mbconv_lut_pixel1_proxyless.json")
    cpu = latency_table.read_npz(DATA / "mbconv_lut_i7_8700k.npz")
    assert len(phone.blocks) == 72 and len(cpu.blocks) == 3952 + 98
    shared = set(phone.blocks) & set(cpu.blocks)
    assert len(shared) >= 5
    pairs = np.array([(phone.blocks[block], cpu.blocks[block]) for block in shared])
    assert stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic > 0.5
