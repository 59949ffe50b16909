"""Every one-shot method keeps the contract."""

import numpy as np
import pytest

import jaxnas as nas
from jaxnas import oneshot

# So that all phases of a method are seen in 8 updates.
OPTIONS: dict[str, dict] = {
    "darts": {"order": 2},
    "darts_pt": {"search_rate": 0.5},
    "drnas": {"num_kept": 2, "divergence_weight": 1e-3},
    "fbnet": {"costs": np.ones((3, 4))},
    "p_darts": {"num_kept": (3, 2)},
    "proxyless": {"costs": np.ones((3, 4)), "begin": 0.0, "period": 2},
    "robust_darts": {"period": 2, "window": 1, "lookback": 1, "num_iterations": 2},
    "sdarts": {"kind": "adversarial", "num_ascents": 2},
}


def make(name, num_steps=8, **changes):
    options = OPTIONS.get(name, {}) | changes
    return oneshot.ALL[name](nas.testing.tiny_problem(), num_steps=num_steps, **options)


@pytest.mark.parametrize("name", ("darts", "drnas", "gdas", "single_path"))
def test_contract(name):
    nas.testing.check_one_shot(make(name), eager=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", oneshot.ALL)
def test_whole_contract(name):
    nas.testing.check_one_shot(make(name))


@pytest.mark.parametrize("name", oneshot.ALL)
def test_num_steps_is_checked(name):
    with pytest.raises(ValueError, match="num_steps must be"):
        make(name, num_steps=0)
