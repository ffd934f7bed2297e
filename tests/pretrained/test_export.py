"""Export: other people's forms hold the source exactly, and what they cannot hold is refused."""

import dataclasses
import json
import pickletools
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.export import FORMATS, export
from gantransfer.pretrained.fresh import fresh
from gantransfer.pretrained.load import load
from gantransfer.pretrained.source import latents, with_info
from gantransfer.pretrained.torch_writer import write_torch


@pytest.fixture(scope="module")
def published(tiny):
    return tiny.make_source(spectral=True, class_head=False, width_d=4)


def same_leaves(tiny, one, other):
    a, b = tiny.leaves(one), tiny.leaves(other)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


@pytest.mark.parametrize("form", ["biggan-pytorch", "safetensors"])
def test_an_exported_source_comes_back_bit_for_bit(published, tiny, tmp_path, form):
    written = export(published, form, tmp_path / "out")
    assert {path.name for path in written} >= {"README.md"}
    back = load(tmp_path / "out")
    for mine, theirs in (
        (published.ema, back.ema),
        (published.generator, back.generator),
        (published.discriminator, back.discriminator),
    ):
        same_leaves(tiny, mine, theirs)
    assert dict(back.info.options) == dict(published.info.options)


def test_state_dicts_hold_one_generator_where_one_is_known(published, tiny, tmp_path):
    alone = tiny.without_discriminator(with_info(published, has_generator=False))
    export(alone, "biggan-pytorch", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*.pth")} == {"G_ema.pth", "state_dict.pth"}
    same_leaves(tiny, load(tmp_path / "out").ema, published.ema)


def test_a_published_folder_survives_both_ways(shared, tmp_path):
    original = shared / "parity" / "biggan" / "cifar32" / "weights" / "cifar32_small"
    source = load(original)
    export(source, "biggan-pytorch", tmp_path / "out")
    back = load(tmp_path / "out")
    assert back.fingerprint() == source.fingerprint() and back.info.options == source.info.options


@pytest.mark.parametrize(
    ("original", "form"),
    [
        ("biggan_deep_hf", "huggingface-biggan-deep"),
        ("biggan_deep/weights", "biggan-pytorch"),
        ("stylegan2ada/network-snapshot-c32-torch2-proto4.pkl", "stylegan2-ada-pytorch"),
        ("stylegan2ada/network-snapshot-u32-torch1.7-proto3.pkl", "stylegan2-ada-pytorch"),
    ],
)
def test_published_files_of_other_families_survive_both_ways(shared, tmp_path, original, form):
    place = shared / "parity" / original
    source = load(next(place.iterdir()) if original.endswith("weights") else place)
    export(source, form, tmp_path / "out")
    back = load(tmp_path / "out")
    assert back.fingerprint() == source.fingerprint()
    assert (back.networks.generator, back.networks.discriminator) == (
        source.networks.generator, source.networks.discriminator
    )  # fmt: skip


def test_a_file_of_tensors_calls_nothing_but_tensors_and_dictionaries(tmp_path):
    content = {
        "kernel": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "count": np.array(7),
        "nested": {"list": [1, 2.5, None, True, "x", 2**40], "pair": (1, -5), "empty": []},
    }
    write_torch(tmp_path / "a.pth", content)
    write_torch(tmp_path / "b.pth", content)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        pickled = archive.read("archive/data.pkl")
        np.testing.assert_array_equal(
            np.frombuffer(archive.read("archive/data/0"), "<f4").reshape(4, 3), content["kernel"]
        )
        for info in archive.infolist():
            assert (info.header_offset + 30 + len(info.filename) + len(info.extra)) % 64 == 0
    names = {arg for opcode, arg, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL"}
    assert names == {
        "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch LongStorage"
    }  # fmt: skip
    with pytest.raises(TypeError, match="set has no place"):
        write_torch(tmp_path / "c.pth", {"x": {1, 2}})


def test_a_leaf_without_a_place_is_refused_before_anything_is_written(plain_source, published, tiny, tmp_path):
    with pytest.raises(UserError, match="class_head.*export as safetensors"):
        export(plain_source, "biggan-pytorch", tmp_path / "out")
    scaled = tiny.replace_leaves(published.discriminator, constants__projection_scale=1.5)
    with pytest.raises(UserError, match="projection_scale"):
        export(dataclasses.replace(published, discriminator=scaled), "biggan-pytorch", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_option_that_no_file_tells_is_refused_where_it_changes_images(tiny, tmp_path, capsys):
    other = tiny.make_source(spectral=True, class_head=False, width_d=4, out_norm_eps=0.5)
    with pytest.raises(UserError, match="out_norm_eps=0.5"):
        export(other, "biggan-pytorch", tmp_path / "out")
    harmless = tiny.make_source(spectral=True, class_head=False, width_d=4, init="N02", embedding_std=3.0)
    export(harmless, "biggan-pytorch", tmp_path / "out")
    assert "without effect on images: embedding_std=3.0" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["huggingface-biggan-deep", "stylegan2-ada-pytorch"])
def test_a_form_of_another_family_is_refused(published, tmp_path, form):
    with pytest.raises(UserError, match=f"one for the family biggan; {form} is for"):
        export(published, form, tmp_path / "out")


def test_unknown_forms_and_taken_places_are_refused(published, tmp_path):
    with pytest.raises(UserError, match="did you mean biggan-pytorch"):
        export(published, "biggan-pytorhc", tmp_path / "out")
    (tmp_path / "out").mkdir()
    for form in FORMATS:
        with pytest.raises(UserError, match="nothing is overwritten"):
            export(published, form, tmp_path / "out")
    with pytest.raises(UserError, match="--truncation"):
        export(published, "safetensors", tmp_path / "new", truncation=0.5)


WITHOUT_THE_PACKAGE = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("gantransfer", "flax", "optax", "orbax"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
import jax, numpy as np
folder = sys.argv[1]
exported = jax.export.deserialize(bytearray(open(folder + "/sampler.stablehlo", "rb").read()))
for n in (1, 3):
    given = np.load(folder + "/../given.npz")
    images = exported.call(given["z"][:n], given["labels"][:n])
    assert images.shape == (n, 16, 16, 1), images.shape
    np.testing.assert_allclose(images, given["images"][:n], atol=1e-5)
print("same images")
"""


def test_the_sampler_runs_where_this_package_is_not(published, tmp_path):
    pytest.importorskip("flatbuffers")
    export(published, "stablehlo", tmp_path / "out", truncation=0.5)
    z, labels = latents(3, published.networks.z_dim, 0), np.array([0, 1, 2], np.int32)
    np.savez(tmp_path / "given.npz", z=z, labels=labels, images=published.generate(z, labels, 0.5))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(tmp_path / "out")],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert "same images" in done.stdout, done.stderr
    content = json.loads((tmp_path / "out" / "sampler.json").read_text())
    assert content["inputs"]["z"]["shape"] == ["n", published.networks.z_dim] and content["truncation"] == 0.5


@pytest.mark.parametrize("name", ["svhn_dcgan32", "celeba_dcgan32", "anime_dcgan64", "mnist_cwgan28"])
def test_small_releases_go_back_to_the_arrays_they_came_from(shared, tmp_path, name):
    files = sorted((shared / "weights" / name).glob("*.npz"))
    export(load(shared / "weights" / name), "dcgan-npz", tmp_path / "out")
    assert [file.name for file in sorted((tmp_path / "out").glob("*.npz"))] == [file.name for file in files]
    for file in files:
        theirs, ours = np.load(file), np.load(tmp_path / "out" / file.name)
        assert set(theirs) == set(ours)
        for key in theirs:
            if not key.endswith("num_batches_tracked"):
                np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_statistics_that_no_file_holds_and_nothing_reads_do_not_stand_in_the_way(shared, tiny, tmp_path):
    source = load(shared / "weights" / "svhn_dcgan32")
    trained = tiny.replace_leaves(source.discriminator, batch_stats__block_1__bn__mean=np.full(128, 0.5, np.float32))
    export(dataclasses.replace(source, discriminator=trained), "dcgan-npz", tmp_path / "out")
    back, images = load(tmp_path / "out"), source.sample(4).astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(back.judge(images), source.judge(images))


def test_a_release_without_a_discriminator_leaves_a_trained_one_out_and_says_so(shared, tiny, tmp_path, capsys):
    source = load(shared / "weights" / "mnist_cwgan28")
    names = source.info.class_names
    trained = dataclasses.replace(
        source, discriminator=fresh("dcgan", source.info.options, names, seed=0).discriminator
    )
    export(trained, "dcgan-npz", tmp_path / "out")
    assert "dcgan-mnist-conditional has no discriminator" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("*.npz")] == ["generator.npz"]
    same_leaves(tiny, load(tmp_path / "out").ema, source.ema)


def test_a_dcgan_trained_from_its_defaults_takes_the_names_of_the_example(tiny, tmp_path):
    source = fresh("dcgan", {"resolution": 32, "width": 2}, ("all",), seed=0)
    export(source, "dcgan-npz", tmp_path / "out")
    assert "main.0.weight" in np.load(tmp_path / "out" / "generator.npz")
    back = load(tmp_path / "out")
    same_leaves(tiny, back.ema, source.ema)
    same_leaves(tiny, back.discriminator, source.discriminator)
    unlike = tiny.make_of("dcgan", resolution=32, width=2, norm_eps=0.5)
    with pytest.raises(UserError, match=r"dcgan-pytorch: .*norm_eps=0\.5.*export as safetensors"):
        export(unlike, "dcgan-npz", tmp_path / "unlike")
