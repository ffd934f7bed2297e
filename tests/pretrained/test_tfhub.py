"""TF-Hub's BigGANs: SavedModels built byte by byte of our own networks, under the names that the modules have.

The tables are written here a second time, from what is known of the modules and not from the layout.
"""

import dataclasses

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.convert import Request, convert, open_checkpoint
from gantransfer.pretrained.layouts import all_layouts, get_layout
from gantransfer.pretrained.load import load
from gantransfer.pretrained.source import latents
from tests.pretrained.readers.tensorflow_files import checkpoint, constant, saved_model

EPS = {"spectral_eps": 1e-4, "norm_eps": 1e-4, "out_norm_eps": 1e-4}
PLAIN = EPS | {
    "init": "orthogonal",
    "resolution": 16,
    "width": 4,
    "z_dim": 12,
    "shared_dim": 8,
    "spectral_g": True,
    "attention_g": "8",
}
DEEP = EPS | {"resolution": 16, "width": 8, "z_dim": 12, "shared_dim": 6, "spectral_g": True, "attention_g": "8"}
DEEP |= {"latent_first": True, "output_width": 8, "statistics": 4}
CHUNK = 4
AVERAGE = {"biggan": "ema_b999900", "biggan_deep": "ema_0.9999"}


@pytest.fixture(scope="module")
def plain(tiny):
    return tiny.make_of("biggan", tiny.names, **PLAIN)


@pytest.fixture(scope="module")
def deep(tiny):
    return tiny.make_of("biggan_deep", tiny.names, **DEEP)


def suffix(name, number):
    return f"{name}_{number}" if number else name


def module(leaves, ours, theirs, bias=True):
    """Variables of a layer; the vector has a leading one there, and a second one beside it that nothing needs."""
    u = leaves[f"spectral/{ours}/u"]
    made = {f"{theirs}/w": leaves[f"params/{ours}/kernel"], f"{theirs}/u0": u.reshape(1, -1), f"{theirs}/u1": 7 * u}
    return made | ({f"{theirs}/b": leaves[f"params/{ours}/bias"]} if bias else {})


def attention(leaves, ours):
    made = {"Generator/attention/gamma": leaves[f"params/{ours}/gamma"].reshape(1)}
    for part, name in (("theta", "theta"), ("phi", "phi"), ("g", "g"), ("o", "o_conv")):
        made |= module(leaves, f"{ours}/{part}", f"Generator/attention/{name}", bias=False)
    return made


def accumulated(leaves, ours, theirs):
    made = {f"{theirs}/accumulated_{part}": leaves[f"batch_stats/{ours}/{part}"] for part in ("mean", "var")}
    return made | {f"{theirs}/accumulation_counter": np.zeros((), np.float32)}


def plain_variables(leaves):
    made = {"linear/w": leaves["params/shared/embedding"]} | module(leaves, "linear", "Generator/G_Z/G_linear")
    for i in range(2):
        block = "Generator/" + suffix("GBlock", i)
        for name, conv in (("conv0", "conv1"), ("conv1", "conv2"), ("conv_sc", "conv_sc")):
            made |= module(leaves, f"block_{i}/{conv}", f"{block}/{name}")
        for k in range(2):
            made |= accumulated(leaves, f"block_{i}/bn{k + 1}", f"{block}/{suffix('CrossReplicaBN', k)}")
            for name, part in (("gamma", "gain"), ("beta", "bias")):
                theirs = f"{block}/{suffix('HyperBN', k)}/{name}"
                made |= module(leaves, f"block_{i}/bn{k + 1}/{part}", theirs, bias=False)
                kernel = made[f"{theirs}/w"]
                # There the part of the latent comes before the class.
                made[f"{theirs}/w"] = np.concatenate([kernel[-CHUNK:], kernel[:-CHUNK]])
    last = "Generator/ScaledCrossReplicaBN"
    made |= {
        f"{last}/gamma": leaves["params/out_bn/gain"][None, None, None],
        f"{last}/beta": leaves["params/out_bn/bias"],
    }
    made |= accumulated(leaves, "out_bn", f"{last}bn") | attention(leaves, "attn_0")
    return made | module(leaves, "out_conv", "Generator/conv_2d")


def deep_variables(leaves):
    made = {"linear/w": leaves["params/shared/embedding"]} | module(leaves, "linear", "Generator/GenZ/G_linear")
    for i in range(4):
        block = "Generator/" + suffix("GBlock", i)
        for k in range(4):
            made |= module(leaves, f"block_{i}/conv{k + 1}", f"{block}/conv{k}")
            norm = f"{block}/{suffix('BatchNorm', k)}"
            for name, part in (("scale", "gain"), ("offset", "bias")):
                made |= module(leaves, f"block_{i}/bn{k + 1}/{part}", f"{norm}/{name}", bias=False)
    last = "Generator/BatchNorm"
    made |= {f"{last}/scale": leaves["params/out_bn/gain"], f"{last}/offset": leaves["params/out_bn/bias"]}
    return made | attention(leaves, "attn_1") | module(leaves, "out_conv", "Generator/conv_to_rgb")


NORMS = [f"block_{i}/bn{k}" for i in range(4) for k in (1, 2, 3, 4)] + ["out_bn"]


def deep_graph(leaves):
    """Five tables for each batch norm, of which the second and fourth are its statistics."""
    nodes = [constant("stack", np.float32([[1, 2]]))]
    for number, norm in enumerate(NORMS):
        for place, part in enumerate((None, "mean", None, "var", None)):
            table = np.float32([[number]]) if part is None else leaves[f"batch_stats/{norm}/{part}"]
            nodes.append(constant(f"stack_{5 * number + place}" if number + place else "stack_900", table))
    return saved_model(*nodes)


def both(trained, averaged, label):
    """The variables of a module: those that were trained, and the averages of what an optimizer moves."""
    moved = ("/w", "/b", "/gamma", "/beta", "/scale", "/offset")
    return trained | {f"{name}/{label}": array for name, array in averaged.items() if name.endswith(moved)}


def write(folder, variables, graph=None):
    (folder / "variables").mkdir(parents=True)
    checkpoint(folder / "variables", variables, "variables")
    if graph is not None:
        (folder / "saved_model.pb").write_bytes(graph)
    return folder


def with_shared_state(source, tiny):
    """The source with the raw network's vectors and statistics in both networks, as a module has only one of each."""
    raw, ema = tiny.leaves(source.generator), tiny.leaves(source.ema)
    own = {path: leaf for path, leaf in raw.items() if not path.startswith("params/")}
    changed = {path.replace("/", "__"): leaf for path, leaf in own.items()}
    assert ema.keys() == raw.keys()
    return dataclasses.replace(source, ema=tiny.replace_leaves(source.ema, **changed))


def assert_same_networks(found, wanted, tiny):
    for slot in ("generator", "ema"):
        ours, theirs = tiny.leaves(getattr(wanted, slot)), tiny.leaves(getattr(found, slot))
        assert ours.keys() == theirs.keys()
        assert [path for path in ours if ours[path].tobytes() != theirs[path].tobytes()] == []


def test_a_biggan_is_the_same_network(plain, tiny, tmp_path):
    source = with_shared_state(plain, tiny)
    raw, ema = (plain_variables(tiny.leaves(tree)) for tree in (source.generator, source.ema))
    folder = write(tmp_path / "biggan-16_2", both(raw, ema, AVERAGE["biggan"]))
    report = convert(folder, tmp_path / "converted", class_names=tiny.names)
    assert report.layout == "biggan-tfhub" and report.info.has_generator and report.info.has_ema
    assert not report.info.has_discriminator
    dropped = {entry.name.rpartition("/")[2] for entry in report.of("dropped")}
    assert dropped == {"u1", "accumulation_counter"}
    found = load(tmp_path / "converted")
    assert {key: found.info.options[key] for key in PLAIN} == PLAIN
    assert_same_networks(found, source, tiny)
    z = latents(3, 12, seed=1)
    np.testing.assert_array_equal(found.generate(z, [0, 1, 2]), source.generate(z, [0, 1, 2]))
    assert np.abs(found.generate(z, [0, 0, 0]) - found.generate(z, [1, 1, 1])).max() > 1e-3


def test_the_condition_is_read_in_the_order_of_the_module(plain, tiny, tmp_path):
    """[latent part, class] times the module's kernel is [class, latent part] times ours."""
    folder = write(tmp_path / "hub", plain_variables(tiny.leaves(plain.ema)))
    source, _ = open_checkpoint(folder)
    theirs = plain_variables(tiny.leaves(plain.ema))["Generator/GBlock_1/HyperBN_1/gamma/w"]
    ours = tiny.leaves(source.ema)["params/block_1/bn2/gain/kernel"]
    part, row = np.float32([1, 2, 3, 4]), np.arange(8, dtype=np.float32)
    np.testing.assert_allclose(np.concatenate([row, part]) @ ours, np.concatenate([part, row]) @ theirs, rtol=1e-5)


@pytest.mark.parametrize("graph", [True, False])
def test_a_biggan_deep_is_the_same_network(deep, tiny, tmp_path, graph):
    source = with_shared_state(deep, tiny)
    raw, ema = (deep_variables(tiny.leaves(tree)) for tree in (source.generator, source.ema))
    variables = both(raw, ema, AVERAGE["biggan_deep"])
    for norm in NORMS:
        theirs = "Generator/BatchNorm"
        if norm != "out_bn":
            i, k = int(norm[6]), int(norm[-1]) - 1
            theirs = f"Generator/{suffix('GBlock', i)}/{suffix('BatchNorm', k)}"
        last = {path: leaf[-1] for path, leaf in tiny.leaves(source.ema).items() if path.startswith("batch_stats/")}
        variables |= accumulated(last, norm, theirs)
    folder = write(tmp_path / "deep", variables, deep_graph(tiny.leaves(source.ema)) if graph else None)
    found, report = open_checkpoint(folder, Request(class_names=tiny.names))
    z = latents(3, 12, seed=1)
    if not graph:
        assert report.layout == "biggan-deep-tfhub-variables" and "used last" in report.summary()
        assert found.info.options["statistics"] == 0
        # Truncation 1 reads the last row, which was used last here.
        np.testing.assert_allclose(found.generate(z, [0, 1, 2]), source.generate(z, [0, 1, 2]), rtol=0, atol=1e-6)
        return
    assert report.layout == "biggan-deep-tfhub" and not report.notes[1:]
    assert {key: found.info.options[key] for key in DEEP} == DEEP
    assert_same_networks(found, source, tiny)
    np.testing.assert_array_equal(found.generate(z, [0, 1, 2], 0.5), source.generate(z, [0, 1, 2], 0.5))


def test_a_variable_that_is_missing_or_unknown_is_named(plain, tiny, tmp_path):
    variables = plain_variables(tiny.leaves(plain.ema))
    del variables["Generator/GBlock/conv1/u0"]
    folder = write(tmp_path / "hub", variables | {"Generator/truncation": np.ones((), np.float32)})
    with pytest.raises(UserError, match="Generator/GBlock/conv1/u0") as refusal:
        open_checkpoint(folder)
    assert "Generator/truncation" in str(refusal.value)


def test_a_table_that_the_graph_lacks_is_named(deep, tiny, tmp_path):
    leaves = tiny.leaves(deep.ema)
    graph = saved_model(constant("stack_1", leaves["batch_stats/block_0/bn1/mean"]))
    folder = write(tmp_path / "hub", deep_variables(leaves), graph)
    with pytest.raises(UserError, match=r"saved_model.pb/stack_\d+"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["biggan-tfhub", "biggan-deep-tfhub"])
def test_there_is_no_discriminator(name, plain, deep):
    source = plain if name == "biggan-tfhub" else deep
    with pytest.raises(UserError, match="discriminator"):
        get_layout(name).leaves("discriminator", source.info.options)


PUBLISHED = [(128, 20, "64", 5), (256, 20, "128", 6), (512, 16, "64", 7)]


@pytest.mark.parametrize(("resolution", "chunk", "attention", "blocks"), PUBLISHED)
def test_published_shapes_say_where_attention_is(resolution, chunk, attention, blocks):
    """From the widths of the module at this size: its attention has the channels of one block's outputs only."""
    multiples = {128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1), 512: (16, 16, 8, 8, 4, 2, 1, 1)}[resolution]
    widths = [96 * m for m in multiples]
    channels = {128: 192, 256: 192, 512: 384}[resolution]
    shapes = {"linear/w": (1000, 128), "Generator/G_Z/G_linear/w": (chunk, 16 * widths[0])}
    shapes |= {"Generator/conv_2d/w": (3, 3, 96, 3), "Generator/attention/theta/w": (1, 1, channels, channels // 8)}
    for i in range(blocks):
        block = "Generator/" + suffix("GBlock", i)
        shapes |= {
            f"{block}/conv0/w": (3, 3, widths[i], widths[i + 1]),
            f"{block}/conv_sc/w": (1, 1, *widths[i : i + 2]),
        }
        shapes[f"{block}/HyperBN/gamma/w"] = (chunk + 128, widths[i])
    (found,) = [layout.recognise(shapes) for layout in all_layouts().values() if layout.recognise(shapes)]
    assert (
        found.options["attention_g"] == attention
        and found.options["z_dim"] == {128: 120, 256: 140, 512: 128}[resolution]
    )
    assert (found.options["resolution"], found.options["width"]) == (resolution, 96)


@pytest.mark.parametrize("layout", ["biggan-tfhub", "biggan-deep-tfhub", "biggan-deep-tfhub-variables"])
def test_other_shapes_are_not_taken_for_it(layout, plain, tiny):
    recognise = get_layout(layout).recognise
    shapes = {name: array.shape for name, array in plain_variables(tiny.leaves(plain.ema)).items()}
    assert (recognise(shapes) is not None) == (layout == "biggan-tfhub")
    for name, other in (("linear/w", (3,)), ("Generator/GBlock_1/conv0/w", (3, 3, 8, 5)), ("Generator/conv_2d/w", ())):
        assert recognise(shapes | {name: other}) is None
    assert recognise({}) is None and recognise({"linear/w": (3, 4), "Generator/GBlock/conv3/w": (1,)}) is None
