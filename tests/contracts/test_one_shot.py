"""Every one-shot method keeps the contract."""

import pytest

import jaxnas as nas
from jaxnas import oneshot

OPTIONS: dict[str, dict] = {}


def make(name, num_steps=8, **changes):
    options = OPTIONS.get(name, {}) | changes
    return oneshot.ALL[name](nas.testing.tiny_problem(), num_steps=num_steps, **options)


@pytest.mark.parametrize("name", oneshot.ALL)
def test_contract(name):
    nas.testing.check_one_shot(make(name), eager=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", oneshot.ALL)
def test_contract_without_jit(name):
    nas.testing.check_one_shot(make(name))


@pytest.mark.parametrize("name", oneshot.ALL)
def test_num_steps_is_checked(name):
    with pytest.raises(ValueError, match="num_steps must be"):
        make(name, num_steps=0)
