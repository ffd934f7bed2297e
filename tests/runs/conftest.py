"""Whole runs that several files look at, and the images they train on."""

import pytest

from tests.contract.rig import with_toys
from tests.runs import rig


# Not for the whole session: files of other folders follow in the same process.
@pytest.fixture(autouse=True, scope="module")
def toys():
    """The test-only family and methods are registered."""
    with with_toys():
        yield


@pytest.fixture(scope="session")
def letters(tmp_path_factory):
    """60 grey images of 16 px in ten classes."""
    return rig.write_zip(tmp_path_factory.mktemp("data") / "letters.zip", 16, 10, 6)


@pytest.fixture(scope="session")
def dots(tmp_path_factory):
    """24 grey images of 8 px in three classes."""
    return rig.write_zip(tmp_path_factory.mktemp("data") / "dots.zip", 8, 3, 8)


@pytest.fixture(scope="session")
def whole(letters, tmp_path_factory):
    """A run of the real family that nothing interrupted, with evaluations."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert rig.finetune(workdir, letters, rig.LETTERS) == 0
    return workdir


@pytest.fixture(scope="session")
def whole_dots(dots, tmp_path_factory):
    """A run of the toy family, with methods that carry state."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with with_toys():
        assert rig.finetune(workdir, dots, rig.DOTS) == 0
    return workdir
