"""The table of published checkpoints is whole, says only what it can show, and is found by what users type."""

import json
import re
from importlib import import_module
from pkgutil import iter_modules
from urllib.parse import urlsplit

import pytest

from gantransfer.__main__ import main
from gantransfer.errors import UserError
from gantransfer.pretrained import layouts
from gantransfer.pretrained.catalogue import CATALOGUE, TABLE, list_sources, near, read_table
from gantransfer.pretrained.layouts.layout import Layout
from gantransfer.pretrained.load import load

PUBLISHED = sorted(set(CATALOGUE) - {"glyphs"})


def names(entries):
    return [entry.name for entry in entries]


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_says_where_it_is_from_and_nothing_that_is_malformed(name):
    entry = CATALOGUE[name]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert entry.about and entry.licence and entry.format and entry.trained_on and entry.family
    assert entry.resolution is None or entry.resolution >= 16
    assert entry.num_classes >= 1
    assert entry.commercial_use in ("yes", "no", "unknown")
    assert entry.has_generator or entry.has_ema
    assert entry.paper.startswith("arXiv:")
    assert entry.documented_at and urlsplit(entry.page).scheme == "https"
    assert all(urlsplit(page).scheme == "https" for page in entry.documented_at)
    assert len({file.name for file in entry.files}) == len(entry.files)
    for file in entry.files:
        assert urlsplit(file.url).scheme == "https"
        assert file.name and "/" not in file.name and not file.name.startswith(".")
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.bytes is None or file.bytes > 0
        assert file.sha256 is None or re.search("/[0-9a-f]{40}/", file.url), "a checksum holds for one commit only"
    assert not entry.unpack or (len(entry.files) == 1 and entry.files[0].name.endswith(".zip"))


def test_nothing_is_downloaded_from_a_repository_that_changed_hands():
    assert not [name for name in CATALOGUE for file in CATALOGUE[name].files if "odegeasslbc" in file.url]


def test_weights_of_nvidia_are_never_called_commercial():
    of_nvidia = [e for e in CATALOGUE.values() if "NVIDIA" in e.licence]
    assert len(of_nvidia) > 10
    assert not [entry.name for entry in of_nvidia if entry.commercial_use == "yes"]


def test_every_layout_of_the_table_is_one_that_is_there():
    """Read from the files themselves, so that a layout counts as soon as its file is there."""
    values = [
        value
        for module in iter_modules(layouts.__path__)
        for value in vars(import_module(f"{layouts.__name__}.{module.name}")).values()
    ]
    families = {value.name: value.family for value in values if isinstance(value, Layout)}
    read = [entry for entry in CATALOGUE.values() if entry.layout not in (None, "source folder")]
    assert len(read) > 30
    assert {entry.name: families.get(entry.layout) for entry in read} == {entry.name: entry.family for entry in read}


def test_entries_that_users_look_for_are_there():
    asked = {
        "biggan-128", "biggan-256", "biggan-deep-128", "biggan-deep-256", "biggan-deep-512", "stylegan2-ada-ffhq256",
        "stylegan2-ada-metfaces1024", "stylegan2-ada-afhqcat512", "stylegan2-ada-afhqdog512", "stylegan2-ada-cifar10",
        "stylegan2-ada-afhqwild512", "stylegan2-ada-brecahad512", "stylegan2-ada-imagenet256", "projected-gan-pokemon",
        "studiogan-biggan-papa-imagenet", "transferring-gans-imagenet", "fastgan", "dcgan-svhn32",
    }  # fmt: skip
    assert asked <= set(CATALOGUE)


def test_filters_combine():
    found = list_sources("stylegan2*", resolution=256, with_discriminator=True)
    assert "stylegan2-ada-ffhq256" in names(found) and len(found) > 3
    assert all(e.resolution == 256 and e.has_discriminator and e.name.startswith("stylegan2") for e in found)
    assert names(found) == sorted(names(found))
    assert list_sources("stylegan2*", resolution=256, commercial=True) == []
    assert "glyphs" in names(list_sources(commercial=True))
    assert {entry.family for entry in list_sources(family="dcgan")} == {"dcgan"}
    assert names(list_sources("biggan-deep-*[68]")) == ["biggan-deep-128", "biggan-deep-256"]


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"resolution": 300}, "16, 28, 32"),
        ({"family": "stylegan"}, "did you mean stylegan2"),
        ({"family": ""}, "dcgan"),
    ],
)
def test_a_filter_that_no_entry_could_meet_is_refused(filters, words):
    with pytest.raises(UserError, match=words):
        list_sources(**filters)


def test_a_misspelt_name_finds_its_neighbours():
    assert "stylegan2-ada-ffhq256" in near("stylegan2-ada-fhq256")
    with pytest.raises(UserError, match="did you mean biggan-128"):
        load("bigan-128")


def test_a_source_that_nothing_reads_is_refused_before_it_is_downloaded():
    unread = [name for name, entry in CATALOGUE.items() if entry.layout is None]
    assert unread == ["studiogan-biggan-mod-cifar10"] and CATALOGUE[unread[0]].files
    with pytest.raises(UserError, match="ModGAN"):
        load(unread[0])


@pytest.mark.parametrize("name", ["biggan-256-tfhub", "biggan-deep-256-tfhub"])
def test_a_module_of_the_hub_is_brought_by_the_user_and_then_read(name):
    assert CATALOGUE[name].layout in {"biggan-tfhub", "biggan-deep-tfhub"}
    with pytest.raises(UserError, match="files that you have: get them from https://tfhub.dev/deepmind/biggan"):
        load(name)


def test_the_command_line_lists_what_fits(capsys):
    words = ["list", "sources", "stylegan2*", "--resolution", "256", "--with_discriminator"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == names(
        list_sources("stylegan2*", resolution=256, with_discriminator=True)
    )
    assert all("no commercial use" in line or "unknown" in line for line in lines)
    assert main([*words, "--commercial"]) == 0
    assert capsys.readouterr().out.strip() == ""
    assert main(["list", "modes", "--commercial"]) == 2
    assert "sources" in capsys.readouterr().err


def test_an_unknown_field_of_the_table_is_a_fault(tmp_path):
    table = json.loads(TABLE.read_text("utf-8"))
    table["groups"][0]["shared"]["licnce"] = "MIT"
    (tmp_path / "t.json").write_text(json.dumps(table))
    with pytest.raises(TypeError, match="licnce"):
        read_table(tmp_path / "t.json")
