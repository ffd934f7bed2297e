"""Folders with one file for each network, named after it."""

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.readers import read


def test_files_named_after_their_network_are_one_checkpoint(tmp_path):
    np.savez(tmp_path / "generator.npz", weight=np.ones(2, np.float32))
    np.savez(tmp_path / "discriminator.npz", weight=np.zeros(3, np.float32))
    (tmp_path / "README.md").write_text("about")
    contents = read(tmp_path)
    assert {name: state["weight"].size for name, state in contents.states.items()} == {"G": 2, "D": 3}
    assert {path.name for path in contents.files} == {"generator.npz", "discriminator.npz"}


def test_a_generator_alone_is_enough(tmp_path):
    np.savez(tmp_path / "generator.npz", weight=np.ones(2, np.float32))
    assert set(read(tmp_path).states) == {"G"}


def test_two_files_for_one_network_are_refused(tmp_path):
    for name in ("G.npz", "generator.npz"):
        np.savez(tmp_path / name, weight=np.ones(2, np.float32))
    with pytest.raises(UserError, match=r"G\.npz, generator\.npz.*one file for each network"):
        read(tmp_path)
