"""Every space: what the operations on architectures and the strategies rely on."""

import pytest

from jaxnas.testing import check_space

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_space_conforms(space):
    check_space(space)
