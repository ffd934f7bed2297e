"""What a mode holds is held to the bit, in the raw networks and in the average, and what it trains moves."""

import json

import numpy as np
import pytest

from gantransfer import methods, models
from gantransfer.pretrained.folder import read_source
from gantransfer.pretrained.fresh import variable_shapes
from gantransfer.pretrained.source import latents
from gantransfer.training.partition import MODES, get_mode, make_partition
from gantransfer.training.prepare import prepare
from tests.runs import rig

ALL_G = {"class_embedding", "conditional_norm", "norm", "linear", "blocks.8", "blocks.16", "output"}
ALL_D = {"blocks.16", "blocks.8", "blocks.4", "head", "projection"}
EVERYTHING = (ALL_G, ALL_D, "source", "source")
# mode: (groups of G that train, groups of D that train, where G starts, where D starts)
TRAINS = {
    "full": EVERYTHING,
    "class_embedding_only": ({"class_embedding"}, ALL_D, "source", "source"),
    "class_embedding_and_norms": ({"class_embedding", "conditional_norm"}, ALL_D, "source", "source"),
    "scale_shift": ({"conditional_norm", "norm"}, ALL_D, "source", "source"),
    "generator_only": (ALL_G, ALL_D, "source", "random"),
    "discriminator_only": (ALL_G, ALL_D, "random", "source"),
    "none": (ALL_G, ALL_D, "random", "random"),
    "custom": ({"linear", "blocks.8"}, {"head"}, "source", "source"),
}
CUSTOM = (("linear", "block_0/conv*"), ("head",))


@pytest.fixture(scope="module")
def biggan():
    """Networks of the real family at 16 px, and the shapes of their parameters."""
    networks = models.get_family("biggan").build(resolution=16, channels=1, width=4, z_dim=12, num_classes=10)
    generator, discriminator = variable_shapes(networks)
    return networks, {"generator": generator["params"], "discriminator": discriminator["params"]}


def test_every_mode_is_in_the_table():
    assert set(TRAINS) == set(MODES)


@pytest.mark.parametrize("name", TRAINS)
def test_a_mode_trains_the_groups_that_it_says(biggan, name):
    networks, params = biggan
    mode = get_mode(name, *(CUSTOM if name == "custom" else ((), ())))
    partition = make_partition(networks, params, mode)
    groups_g, groups_d, start_g, start_d = TRAINS[name]
    assert {leaf.group for leaf in partition.leaves if leaf.trained and leaf.role == "generator"} == groups_g
    assert {leaf.group for leaf in partition.leaves if leaf.trained and leaf.role == "discriminator"} == groups_d
    assert (mode.init_g, mode.init_d) == (start_g, start_d)
    if name != "custom":
        frozen = {leaf.group for leaf in partition.leaves if not leaf.trained and leaf.role == "generator"}
        assert frozen == ALL_G - groups_g


@pytest.mark.parametrize("name", TRAINS)
def test_totals_of_the_partition_are_those_of_the_trees(biggan, name):
    networks, params = biggan
    partition = make_partition(networks, params, get_mode(name, *(CUSTOM if name == "custom" else ((), ()))))
    for role, tree in params.items():
        sizes = {path: int(np.prod(leaf.shape)) for path, leaf in rig.leaves_of_shapes(tree).items()}
        assert {leaf.path: leaf.size for leaf in partition.leaves if leaf.role == role} == sizes
        assert (
            partition.count(role, True) + partition.count(role, False) == partition.count(role) == sum(sizes.values())
        )
        trained = partition.count(role, True)
        assert f"{role}: {trained:,} of {sum(sizes.values()):,} values train" in partition.table()
    written = json.loads(json.dumps(partition.to_json()))
    assert sum(leaf["parameters"] for leaf in written) == sum(partition.count(role) for role in params)
    assert all(leaf["why"] for leaf in written)


def test_patterns_name_groups_and_paths(biggan):
    networks, params = biggan
    mode = get_mode("custom", ("*/bn?/gain/*", "output"), ("block_0/*",))
    partition = make_partition(networks, params, mode)
    assert all(("/gain/" in path) or path.startswith("out_conv/") for path in partition.trained("generator"))
    assert len([path for path in partition.trained("generator") if "/gain/" in path]) == 4
    assert {path.partition("/")[0] for path in partition.trained("discriminator")} == {"block_0"}


@pytest.mark.parametrize(
    ("line", "held"),
    [
        ("blocks=1", {"block_0"}),
        ("blocks=2", {"block_0", "block_1"}),
        ("blocks=2, heads=True", {"block_0", "block_1", "head", "embed", "class_head"}),
    ],
)
def test_freezing_blocks_of_the_discriminator_holds_in_every_mode(biggan, line, held):
    networks, params = biggan
    freeze = methods.parse_method(f"freeze_discriminator({line})")
    for name in TRAINS:
        mode = get_mode(name, *(CUSTOM if name == "custom" else ((), ())))
        free, frozen = make_partition(networks, params, mode), make_partition(networks, params, mode, (freeze,))
        assert free.trained("generator") == frozen.trained("generator")
        lost = free.trained("discriminator") - frozen.trained("discriminator")
        assert lost == {path for path in free.trained("discriminator") if path.partition("/")[0] in held}
        assert all(
            leaf.why == "held by freeze_discriminator"
            for leaf in frozen.leaves
            if leaf.path in lost and leaf.role == "discriminator"
        )


# Toy runs, by step

FAST = {
    **rig.TOY,
    "optimizer.lr_g": 0.01,
    "optimizer.lr_d": 0.01,
    "optimizer.lr_class_embedding": 0.01,
    "ema.decay": 0.5,
    "ema.rampup": None,
}
STEPS = 3
# settings: (leaves of G that train, leaves of D that train), by the first part of their path
G, D = {"shared", "linear", "block_0", "block_1", "out"}, {"block_0", "block_1", "head", "embed", "class_head", "fade"}
FREEZE = {
    "full, freezing D": "freeze_discriminator(blocks=1)",
    "class_embedding_only, freezing D": "freeze_discriminator(resolution=8)",
    "full, freezing both": "('freeze_discriminator(blocks=2)','freeze_generator(blocks=1)')",
}
DECAY = "weight_decay(strength_g=1.0, strength_d=1.0)"
RUNS = {
    "full": ({}, G, D),
    "class_embedding_only": ({}, {"shared"}, D),
    "none": ({}, G, D),
    "custom": (
        {"transfer.train_g": "('output','block_1/*')", "transfer.train_d": "head"},
        {"out", "block_1"},
        {"head"},
    ),
    "custom, G only": ({"transfer.train_g": "linear"}, {"linear"}, set()),
    "custom, D only": ({"transfer.train_d": "projection"}, set(), {"embed"}),
    "full, freezing D": ({}, G, D - {"block_0"}),
    "class_embedding_only, freezing D": ({}, {"shared"}, D - {"block_0"}),
    "full, freezing both": ({}, G - {"linear", "block_0"}, D - {"block_0", "block_1"}),
    "class_embedding_only, decaying": ({"methods": DECAY}, {"shared"}, D),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_trains_moves_and_all_else_is_the_same_bits(dots, name):
    settings, trained_g, trained_d = RUNS[name]
    frozen = {"methods": FREEZE[name]} if name in FREEZE else {}
    task = rig.make(dots, {**FAST, **frozen, **settings, "mode": name.partition(",")[0]})
    first, *_, last = rig.advance(task, STEPS)
    pairs = {
        "generator": (first.generator, last.generator, trained_g),
        "average": (first.ema, last.ema, trained_g),
        "discriminator": (first.discriminator, last.discriminator, trained_d),
    }
    for network, (before, after, trained) in pairs.items():
        role = "discriminator" if network == "discriminator" else "generator"
        old, new = (rig.leaves(task.variables(moving, role)["params"]) for moving in (before, after))
        assert old.keys() == new.keys() and {path.partition("/")[0] for path in old} == (
            D if role == "discriminator" else G
        )
        moved = {path for path in old if old[path].tobytes() != new[path].tobytes()}
        # The class head stands apart from the logits, so that without a class term its gradient is zero.
        expected = {path for path in old if path.partition("/")[0] in trained - {"class_head"}}
        if "decaying" in name and role == "discriminator":
            expected |= {"class_head/kernel"}
        assert moved == expected, network
    # The state holds nothing of what does not train: no slot, no average.
    for tree, trained in (
        (last.generator.trained, trained_g),
        (last.ema.trained, trained_g),
        (last.discriminator.trained, trained_d),
    ):
        assert set(tree) == trained
    for optimizer, trained in ((last.optimizer_g, trained_g), (last.optimizer_d, trained_d)):
        slots = {
            path.partition("network/")[2].partition("/")[0] for path in rig.leaves(optimizer) if "network/" in path
        }
        assert slots == trained


def test_rows_of_classes_that_are_never_shown_stay_the_same_bits(dots):
    settings = {**FAST, "mode": "class_embedding_only", "objective.fake_labels": "data"}
    known = rig.make(dots, settings)
    shown = known.images.subset(np.flatnonzero(known.images.labels != 1))
    task = prepare(known.config, known.source, shown)
    first, *_, last = rig.advance(task, STEPS)
    for before, after in ((first.generator, last.generator), (first.ema, last.ema)):
        old, new = (moving.trained["shared"]["embedding"] for moving in (before, after))
        assert [bool((a == b).all()) for a, b in zip(old, new, strict=True)] == [False, True, False]


# The real family, whole runs

ONLY = {
    **{name: value for name, value in rig.BIGGAN.items() if not name.startswith("model.")},
    "source": "glyphs",
    "mode": "class_embedding_only",
    "transfer.classes": "mean",
    "transfer.class_noise": 0.1,
    "kimg": 0.024,
    "run.snapshot_kimg": 0.024,
}


@pytest.fixture(scope="module")
def only(letters, tmp_path_factory):
    """A run that trains the class embedding of the shipped source, from its start to its end."""
    workdir = tmp_path_factory.mktemp("runs") / "only"
    assert rig.finetune(workdir, letters, ONLY) == 0
    return workdir


def all_leaves(source):
    return rig.leaves({"raw": dict(source.generator), "average": dict(source.ema)})


def test_class_embedding_only_changes_one_leaf_of_a_real_source(only):
    start, end = (read_source(only / name) for name in ("start", "snapshots/000000024"))
    old, new = all_leaves(start), all_leaves(end)
    changed = {path for path in old if old[path].tobytes() != new[path].tobytes()}
    assert changed == {"raw/params/shared/embedding", "average/params/shared/embedding"}
    assert (old["raw/params/shared/embedding"] != new["raw/params/shared/embedding"]).any(axis=1).all()
    # The rows are all that the optimizer and the average hold.
    state = rig.newest_checkpoint(only)
    of = lambda part: {path: leaf.shape for path, leaf in state.items() if path.startswith(part) and leaf.ndim > 0}
    rows = (10, 64)
    assert of("ema/") == {"ema/trained/shared/embedding": rows}
    assert of("generator/") == {"generator/trained/shared/embedding": rows}
    assert list(of("optimizer_g/").values()) == [rows]
    assert len(old) > 60


def test_a_generator_step_with_rate_zero_leaves_samples_the_same_bits(only, letters, tmp_path):
    settings = {**ONLY, "optimizer.lr_class_embedding": 0.0}
    assert rig.finetune(tmp_path / "run", letters, settings) == 0
    sources = [read_source(tmp_path / "run" / name) for name in ("start", "snapshots/000000024")]
    z = latents(20, sources[0].networks.z_dim, seed=3)
    one, other = (source.generate(z) for source in sources)
    assert one.tobytes() == other.tobytes()
    assert (
        all_leaves(sources[0])["raw/params/shared/embedding"].tobytes()
        == all_leaves(sources[1])["raw/params/shared/embedding"].tobytes()
    )
    moved = read_source(only / "snapshots/000000024").generate(z)
    assert np.abs(moved - one).max() > 1e-4
    # The discriminator did learn meanwhile.
    old, new = (rig.leaves(source.discriminator) for source in sources)
    assert any(old[path].tobytes() != new[path].tobytes() for path in old)
