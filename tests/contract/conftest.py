"""Tests of the battery know its toys."""

import pytest

from tests.contract import rig


@pytest.fixture(autouse=True)
def toys():
    """The test-only family and methods are registered."""
    with rig.with_toys():
        yield
