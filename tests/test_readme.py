"""The README's code runs, and its tables name what there is."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

import jaxnas as nas
from jaxnas import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(
    "code", blocks("python"), ids=["training", "vmap", "sweep", "sharing", "objectives", "racing"]
)
def test_python_blocks_run(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "line", [line for block in blocks("bash") for line in block.splitlines() if line]
)
def test_commands_exist(line):
    words = shlex.split(line, comments=True)
    if words[0] == "bash":
        checked = subprocess.run(["bash", "-n", ROOT / words[1]], capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr
    else:
        assert words[0] == "jaxnas"
        cli._parser().parse_args(words[1:])


@pytest.mark.parametrize(
    "package", [nas.spaces, nas.strategies, nas.oneshot, nas.evaluators, nas.proxies]
)
def test_tables_name_everything_and_nothing_else(package):
    header = {
        "spaces": "space",
        "strategies": "strategy",
        "oneshot": "one-shot method",
        "evaluators": "evaluator",
        "proxies": "proxy",
    }
    kind = header[package.__name__.split(".")[-1]]
    table = re.search(rf"\| {kind} \|.*?\n\|[-|]+\|\n((?:\|.*\n)+)", README)
    assert table is not None
    named = re.findall(r"^\| `(\w+)`", table.group(1), re.MULTILINE)
    assert sorted(named) == sorted(package.ALL)


def test_bundled_data_are_named():
    sentence = re.search(r"Bundled data.*", README)
    assert sentence is not None
    assert set(re.findall(r"`(\w+)`", sentence.group())) == set(nas.datasets.ALL)
