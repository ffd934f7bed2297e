"""Imports go downward by the floors of docs/design.md, at module level and inside functions."""

import ast
import graphlib

from tests.house.source_tree import CHECKOUT, imports, modules, path_of

# From the top of the house to its bottom; a module belongs to the longest name that begins its own.
FLOORS = (
    ("gantransfer", "gantransfer.__main__", "gantransfer.arguments"),
    ("gantransfer.api", "gantransfer.measuring", "gantransfer.run"),
    (
        "gantransfer.reports",
        "gantransfer.selection",
        "gantransfer.training.evaluator",
        "gantransfer.training.loop",
    ),
    ("gantransfer.metrics", "gantransfer.pretrained", "gantransfer.training"),
    ("gantransfer.methods", "gantransfer.objectives"),
    ("gantransfer.models", "gantransfer.features"),
    (
        "gantransfer.data",
        "gantransfer.config",
        "gantransfer.errors",
        "gantransfer.host_memory",
        "gantransfer.pretrained.download",
        "gantransfer.pretrained.readers",
    ),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# These cost seconds to import, so they are imported where they are used.
HEAVY = {
    "av", "grain", "imageio", "matplotlib", "orbax", "pyarrow", "scipy", "sklearn", "tensorboardX",
    "tensorflow_datasets",
}  # fmt: skip
FORBIDDEN = {"tensorflow", "torch", "torchvision", "tensorflow_hub"}


def room_of(module: str) -> str:
    parts = module.split(".")
    while ".".join(parts) not in FLOOR_OF:
        parts.pop()
    return ".".join(parts)


def inner_imports(module: str) -> list[tuple[int, str]]:
    return [(line, name) for line, name in imports(module) if name.split(".")[0] == "gantransfer"]


def test_every_module_has_a_floor_of_its_own():
    homeless = [name for name in modules() if name != "gantransfer" and room_of(name) == "gantransfer"]
    assert not homeless, f"say in FLOORS and in docs/design.md where these stand: {homeless}"


def test_imports_go_downward():
    assert not [
        f"{path_of(module).relative_to(CHECKOUT)}:{line} imports {name}"
        for module in modules()
        for line, name in inner_imports(module)
        if FLOOR_OF[room_of(name)] < FLOOR_OF[room_of(module)] and name != "gantransfer"
    ]


def test_only_the_version_is_taken_from_the_roof():
    """`import gantransfer` and `from gantransfer import name` would otherwise reach the whole house."""
    bad = []
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "gantransfer":
                taken = [alias.name for alias in node.names if f"gantransfer.{alias.name}" not in modules()]
            elif (
                isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gantransfer"
            ):
                taken = [node.attr]
            else:
                continue
            bad += [f"{module}:{node.lineno} {name}" for name in taken if name != "__version__"]
    assert not bad


def test_rooms_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for module in modules():
        reached = {room_of(name) for _, name in inner_imports(module) if name != "gantransfer"}
        graph.setdefault(room_of(module), set()).update(reached - {room_of(module)})
    graphlib.TopologicalSorter(graph).prepare()


def test_files_do_not_import_each_other_in_a_circle():
    graph = {module: {name for _, name in inner_imports(module) if name != "gantransfer"} for module in modules()}
    graphlib.TopologicalSorter(graph).prepare()


def test_heavy_libraries_are_imported_inside_functions():
    assert not [
        f"{module}:{line} {name}"
        for module in modules()
        for line, name in imports(module, top_level_only=True)
        if name.split(".")[0] in HEAVY
    ]


def test_neither_tensorflow_nor_torch_is_imported_anywhere():
    assert not [
        f"{module}:{line}" for module in modules() for line, name in imports(module) if name.split(".")[0] in FORBIDDEN
    ]
