"""Rules of form that a reader relies on: short files, documented names, one place where standard output is written."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.source_tree import CHECKOUT, modules, path_of

MAX_LINES = 500
ENTRY = "gantransfer.__main__"


def public(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")


def where(module: str, node: ast.AST) -> str:
    return f"{path_of(module).relative_to(CHECKOUT)}:{getattr(node, 'lineno', 1)}"


def walk() -> Iterator[tuple[str, ast.AST]]:
    """Every node of every module, with the module's name."""
    for module, tree in modules().items():
        for node in ast.walk(tree):
            yield module, node


def test_a_file_reads_in_one_sitting():
    """A file above the limit has a second story in it, which gets a file of its own."""
    lengths = {module: path_of(module).read_text("utf-8").count("\n") for module in modules()}
    assert not {module: lines for module, lines in lengths.items() if lines > MAX_LINES}


def test_the_first_line_says_what_the_file_is_for():
    first = {module: (ast.get_docstring(tree) or "").partition("\n")[0] for module, tree in modules().items()}
    assert not [module for module, line in first.items() if len(line) <= 15]


def test_public_names_are_documented():
    assert not [
        f"{where(module, node)} {node.name}"
        for module, tree in modules().items()
        for node in tree.body
        if public(node) and not ast.get_docstring(node)
    ]


def test_only_the_command_line_writes_to_standard_output():
    """Standard output is for results; whatever is for people goes to standard error."""
    bad = []
    for module, node in walk():
        if (
            module != ENTRY
            and isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ):
            places = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "file"]
            if places in ([], ["sys.stdout"]):
                bad.append(where(module, node))
    assert not bad


def test_nothing_is_swallowed():
    """No handler that catches everything and goes on, and none whose whole answer is `pass`."""
    bad = []
    for module, node in walk():
        if isinstance(node, ast.ExceptHandler):
            caught = set(ast.unparse(node.type).strip("()").split(", ")) if node.type else {"BaseException"}
            broad = caught & {"Exception", "BaseException"}
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            empty = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            if empty or (broad and not raises):
                bad.append(where(module, node))
    assert not bad


def test_no_code_is_left_for_later():
    texts = {module: path_of(module).read_text("utf-8") for module in modules()}
    assert not [
        module for module, text in texts.items() if re.search(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError", text)
    ]


def recipes() -> list[Path]:
    return sorted((CHECKOUT / "configs").rglob("*.py"))


@pytest.mark.parametrize("path", recipes(), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_a_recipe_says_what_it_is_and_holds_one_function(path):
    tree = ast.parse(path.read_text("utf-8"))
    assert len(ast.get_docstring(tree) or "") > 80
    assert "get_config" in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_scripts_of_launch_stop_at_the_first_error():
    for path in sorted((CHECKOUT / "launch").rglob("*.sh")):
        text = path.read_text("utf-8")
        if text.startswith("#!"):
            assert "set -euo pipefail" in text, path.name
