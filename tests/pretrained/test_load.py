"""A source is found by the name of what holds it, and a name of nothing is refused."""

import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.folder import write_source
from gantransfer.pretrained.load import load
from gantransfer.pretrained.source import with_info


def test_load_names_the_nearest_catalogue_name():
    with pytest.raises(UserError, match="did you mean glyphs") as caught:
        load("glyfs")
    assert caught.value.field == "source"


def test_a_run_means_its_newest_snapshot_or_the_one_asked_for(plain_source, tmp_path):
    for seen, name in ((640, "640"), (12800, "12800"), (6400, "best")):
        write_source(tmp_path / "run" / "snapshots" / name, with_info(plain_source, images_seen=seen), card="")
    (tmp_path / "run" / "snapshots" / ".25600.partial").mkdir()
    run = tmp_path / "run"
    assert load(run).info.images_seen == 12800
    assert load(f"{run}@best").info.images_seen == 6400
    assert load(f"{run}@640").info.images_seen == 640
    assert load(f"{run}@6400").info.images_seen == 6400
    assert load(run / "snapshots" / "640").info.images_seen == 640
    with pytest.raises(UserError, match=r"best \(6400 images\)"):
        load(f"{run}@7")


@pytest.mark.parametrize("name", ["", "a" * 5000, "x\0y", "@best", "nowhere@12", "."])
def test_names_of_nothing_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="a catalogue name"):
        load(name)


def test_a_run_without_snapshots_says_so(tmp_path):
    (tmp_path / "run" / "snapshots").mkdir(parents=True)
    with pytest.raises(UserError, match="none yet"):
        load(tmp_path / "run")
