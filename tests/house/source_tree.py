"""The package's files, parsed, for the tests that hold rules about them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "gantransfer"


@cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of every module of the package by its dotted name (`gantransfer.data` is its `__init__.py`)."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


def path_of(module: str) -> Path:
    """The file of a module of the package."""
    folder = CHECKOUT.joinpath(*module.split("."))
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def imports(module: str, *, top_level_only: bool = False) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) for what a module imports, at any depth unless `top_level_only`.

    `from a import b` is `a.b` where that is a module of the package, else `a`. What stands under `if TYPE_CHECKING`
    counts too: a floor that must know the types of the one above it is still upside down.
    """
    tree = modules()[module]
    for node in _outside_functions(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path_of(module).name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in modules() else base


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _outside_functions(child)
