"""What is installed is what the package needs, at versions that were tested, with everything it ships."""

import ast
import re
import runpy
import shutil
import subprocess
import sys
import types
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.house.source_tree import CHECKOUT, PACKAGE, imports, modules

# What the project is built on; each of these is required and used.
FOUNDATIONS = {
    "jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "ml-collections", "clu", "grain", "array-record",
    "safetensors", "numpy", "pillow", "jinja2", "jaxtyping",
}  # fmt: skip
IMPORTED_AS = {
    "absl-py": "absl", "orbax-checkpoint": "orbax", "tensorflow-datasets": "tensorflow_datasets", "pillow": "PIL",
    "scikit-learn": "sklearn", "tensorboardx": "tensorboardX",
}  # fmt: skip


@pytest.fixture(scope="module")
def metadata():
    """The arguments that setup.py gives to setup()."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        stand_in = types.SimpleNamespace(setup=given.update, find_packages=lambda **kwargs: [])
        patch.setitem(sys.modules, "setuptools", stand_in)
        runpy.run_path(str(CHECKOUT / "setup.py"))
    return given


def names(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def constraints(file: str) -> dict[str, Version]:
    lines = [
        line for line in (CHECKOUT / "constraints" / file).read_text("utf-8").splitlines() if not line.startswith("#")
    ]
    assert not [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)]
    return {canonicalize_name(line.split("==")[0]): Version(line.split("==")[1]) for line in lines}


def test_the_foundations_are_required(metadata):
    assert FOUNDATIONS <= names(metadata["install_requires"])


def test_neither_tensorflow_nor_torch_is_required_anywhere(metadata):
    everything = metadata["install_requires"] + sum(metadata["extras_require"].values(), [])
    assert not {"tensorflow", "torch", "tensorflow-hub", "torchvision"} & names(everything)


@pytest.mark.parametrize("file", ["py311.txt", "py312.txt"])
def test_constraints_pin_every_requirement_at_or_above_its_lower_bound(metadata, file):
    pinned = constraints(file)
    extras = {name: lines for name, lines in metadata["extras_require"].items() if name != "gcs"}
    for line in metadata["install_requires"] + sum(extras.values(), []):
        requirement = Requirement(line)
        assert canonicalize_name(requirement.name) in pinned, f"{file} lacks {line}; remake it as its head says"
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, line


def test_lower_bounds_are_the_oldest_tested_release(metadata):
    """The first two numbers of a bound are those of the older constraints: a bound that nobody ran is a guess."""
    pinned = constraints("py311.txt")
    for line in metadata["install_requires"]:
        requirement = Requirement(line)
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{line}: no upper bounds"
        assert Version(bound.version).release[:2] == pinned[canonicalize_name(requirement.name)].release[:2], line


def test_every_foundation_is_used():
    """array_record is: TensorFlow Datasets reads its files with it."""
    imported = {name.split(".")[0] for module in modules() for _, name in imports(module)} | {"array_record"}
    assert not [name for name in FOUNDATIONS if IMPORTED_AS.get(name, name.replace("-", "_")) not in imported]


def test_everything_that_is_imported_is_required(metadata):
    """By the package itself: of its own requirements or of an extra, never of a requirement's requirement."""
    everything = metadata["install_requires"] + sum(metadata["extras_require"].values(), [])
    provided = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names(everything)} | {"gantransfer"}
    foreign = {name.split(".")[0] for module in modules() for _, name in imports(module)} - set(sys.stdlib_module_names)
    assert foreign <= provided


def test_the_version_stands_in_one_place(metadata):
    import gantransfer

    assert metadata["version"] == gantransfer.__version__
    assert f"version: {gantransfer.__version__}\n" in (CHECKOUT / "CITATION.cff").read_text("utf-8")
    literal = re.compile(rf"[\"']{re.escape(gantransfer.__version__)}[\"']")
    assert [module for module, tree in modules().items() if literal.search(ast.unparse(tree))] == ["gantransfer"]


def test_quickstart_installs_less_than_the_developer_does(metadata):
    quick = names(metadata["extras_require"]["quickstart"])
    assert not quick & names(metadata["extras_require"]["dev"])
    assert "scikit-learn" in quick


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    shutil.copytree(PACKAGE, source / "gantransfer", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(CHECKOUT / name, source)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("gantransfer-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as opened:
        inside = set(opened.namelist())
        info = next(name for name in inside if name.endswith("entry_points.txt"))
        assert "gantransfer = gantransfer.__main__:main" in opened.read(info).decode()
    package = {name for name in inside if ".dist-info/" not in name}
    assert package == {str(path.relative_to(source)) for path in (source / "gantransfer").rglob("*") if path.is_file()}
    assert any(name.endswith("LICENSE") for name in inside)
