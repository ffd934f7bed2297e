"""TorchScript programs: the tree of modules becomes a state dict, and nothing that they bring is run."""

import zipfile

import numpy as np
import pytest

from gantransfer.features import network, state_dicts, vit
from gantransfer.pretrained.readers import read
from tests.pretrained.readers import files
from tests.pretrained.readers.test_torch_file import equal, refused

HALF = np.arange(6, dtype=np.float16)
FLOAT = np.arange(4, dtype=np.float32)


def half(key="0", shape=(2, 3)):
    return files.tensor(key, 6, shape, kind="HalfStorage", location="cuda:0")


def module(name, **attributes):
    """A module as tracing leaves it: flags beside arrays and parts, names as mangled as they come."""
    flags = {"training": files.plain(False), "_is_full_backward_hook": files.plain(None)}
    return files.script("__torch__.torch.nn.modules", f"{name}___torch_mangle_12", **flags, **attributes)


def number(**attributes):
    """Parts that are numbered, as those of sequences are."""
    return {key.removeprefix("n"): value for key, value in attributes.items()}


TOWER = module(
    "Tower",
    visual=module(
        "Sequential",
        **number(n0=module("Linear", weight=half(), bias=files.tensor("1", 4, (4,))), n1=module("ReLU")),
        proj=half(shape=(3, 2)),
    ),
    logit_scale=files.tensor("1", 4, (), offset=2),
    sizes=files.call(files.global_("torch.jit._pickle", "build_intlist"), files.plain([1, 2])),
    named=files.call(
        files.global_("torch.jit._pickle", "restore_type_tag"), files.plain({"a": 1}), files.plain("Dict")
    ),
)
STORAGES = {"0": HALF.tobytes(), "1": FLOAT.tobytes()}
EXPECTED = {
    "visual.0.weight": HALF.reshape(2, 3),
    "visual.0.bias": FLOAT,
    "visual.proj": HALF.reshape(3, 2),
    "logit_scale": FLOAT[2],
}


def test_parameters_have_the_names_of_the_state_dict_and_stay_views_of_the_file(tmp_path):
    contents = read(files.write_script(tmp_path / "a.pt", TOWER, STORAGES))
    assert contents.format == "torchscript" and contents.states.keys() == {""}
    state = {key: array for key, array in contents.states[""].items()}
    assert state["logit_scale"] == 2 and state["logit_scale"].shape == ()
    equal(state, EXPECTED | {"logit_scale": state["logit_scale"]})
    assert not any(array.flags.writeable or array.flags.owndata for array in state.values())
    assert any("code of the program was not read" in note for note in contents.notes)


def test_code_is_never_looked_at(tmp_path):
    """Not even unpacked: what stands there need not be Python, and nobody notices that it is damaged."""
    path = files.write_script(tmp_path / "a.pt", TOWER, STORAGES, code="raise SystemExit('run')\n" * 500)
    with zipfile.ZipFile(path) as archive:
        starts = [info.header_offset + 60 for info in archive.infolist() if "/code/" in info.filename]
    data = bytearray(path.read_bytes())
    for start in starts:
        data[start : start + 8] = bytes(8)
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert "/code/" in archive.testzip()
    assert read(path).states[""].keys() == EXPECTED.keys()


def test_arrays_among_the_constants_are_kept_apart_from_the_parameters(tmp_path):
    # A tuple of one tensor, whose storage has the number of one of the parameters'.
    constants = files.tensor("0", 4, (4,)) + b"\x85"
    path = files.write_script(tmp_path / "a.pt", TOWER, STORAGES, constants, {"0": (FLOAT + 7).tobytes()})
    contents = read(path)
    np.testing.assert_array_equal(contents.extras["constants"][0], FLOAT + 7)
    np.testing.assert_array_equal(contents.states[""]["visual.0.weight"], HALF.reshape(2, 3))


def test_lists_of_arrays_are_said_to_be_left_out(tmp_path):
    listed = files.call(files.global_("torch.jit._pickle", "build_tensorlist"), b"](" + half() + b"e")
    tower = module("Tower", weight=half(), others=listed)
    contents = read(files.write_script(tmp_path / "a.pt", tower, STORAGES))
    assert contents.states[""].keys() == {"weight"} and any("others holds arrays" in note for note in contents.notes)


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        (files.call(files.global_("posix", "system"), files.plain("true")), "posix.system"),
        (files.script("__torch", "Module", weight=half()), "__torch.Module"),
        (files.script("os.__torch__", "Module", weight=half()), "os.__torch__.Module"),
        (files.tensor("1", 2**40, (6,)), "storage of 1099511627776 elements"),
        (files.tensor("7", 6, (6,)), "no zip member"),
        (files.call(files.global_("torch.jit._pickle", "build_anything"), files.plain([1])), "build_anything"),
    ],
)
def test_hostile_programs_are_refused(tmp_path, attribute, words):
    tower = module("Tower", weight=half(), bad=attribute)
    refused(files.write_script(tmp_path / "a.pt", tower, STORAGES), words)
    constants = attribute + b"\x85"
    refused(files.write_script(tmp_path / "b.pt", module("Tower", weight=half()), STORAGES, constants, STORAGES), words)


def test_classes_of_a_program_are_known_in_programs_only(tmp_path):
    refused(files.write_zip(tmp_path / "a.pth", TOWER, STORAGES), "__torch__")


def test_a_program_without_weights_or_cut_short_is_refused(tmp_path):
    refused(files.write_script(tmp_path / "a.pt", module("Empty")), "without weights")
    path = files.write_script(tmp_path / "b.pt", TOWER, STORAGES)
    data = path.read_bytes()
    for end in (40, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:end])
        refused(path)


def test_modules_nested_without_end_are_refused(tmp_path):
    tower = module("Tower", weight=half())
    for _ in range(80):
        tower = module("Tower", part=tower)
    refused(files.write_script(tmp_path / "a.pt", tower, STORAGES), "nested too deeply")


def test_openai_s_archive_of_clip_is_the_same_tower_as_its_state_dict(tmp_path):
    """Half precision, `visual.` before every key, the text network beside it, and counters as arrays."""
    usual = next(found for found in vit.ARCHITECTURES if found.name == "clip_vit_b32")
    tower = network.Architecture(
        **{field: getattr(usual, field) for field in ("name", "about", "input", "outputs", "feature")},
        module=lambda **options: vit.ClipTower(patch=112, grid=2, depth=2, width=16, heads=2, embedding=8, **options),
        **{field: getattr(usual, field) for field in ("prefixes", "harmless", "rename")},
    )
    state = {
        key: array.astype(np.float16) for key, array in state_dicts.random_state(tower.blueprint.shapes, 0).items()
    }
    storages, tree = {}, {}

    def put(key, array, kind):
        number = str(len(storages))
        storages[number] = array.tobytes()
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = files.tensor(number, array.size, array.shape, kind=kind)

    for key, array in state.items():
        put(f"visual.{key}", array, "HalfStorage")
    put("transformer.resblocks.0.mlp.c_fc.weight", np.ones((4, 4), np.float16), "HalfStorage")
    put("positional_embedding", np.ones((7, 4), np.float16), "HalfStorage")
    put("input_resolution", np.array(224), "LongStorage")
    build = lambda node: module("M", **{k: build(v) if isinstance(v, dict) else v for k, v in node.items()})
    path = files.write_script(tmp_path / "ViT-B-32.pt", build(tree), storages)
    read_in = network.load(tower, path, network.Settings())
    plain = network.load(tower, {key: array.astype(np.float32) for key, array in state.items()}, network.Settings())
    assert read_in.sha256 == plain.sha256
