"""The documentation is true: its tables, links, command lines, code blocks and the tree of docs/design.md."""

import ast
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from tests.house.source_tree import CHECKOUT, PACKAGE

MAKE_TABLES = runpy.run_path(str(CHECKOUT / "docs/make_tables.py"))
PAGES = [path for path in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))) if path.exists()]
PAGES += sorted((CHECKOUT / "launch").rglob("*.md"))
RECIPES = sorted((CHECKOUT / "configs").rglob("*.py"))
SCRIPTS = sorted(path for path in (CHECKOUT / "launch").rglob("*") if path.suffix in (".sh", ".sbatch"))
NAMES = [str(path.relative_to(CHECKOUT)) for path in PAGES]

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
SHELL = ("", "bash", "sh", "shell", "console")
TEXT = {".py", ".md", ".txt", ".sh", ".toml", ".json", ".cff", ".yaml", ".sbatch", ".jinja", ".ipynb", ".csv", ".jsonl"}
FOLDERS = ("gantransfer", "tests", "docs", "launch", "configs", "constraints", ".ci")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page."""
    return FENCE.findall(path.read_text("utf-8"))


def command_lines(text: str) -> list[str]:
    """The gantransfer command lines in a block of shell, a docstring or a script, without comments."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    starts = r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:python3? -m |\"\$PYTHON\" -m )?gantransfer +([a-z-][^\n]*)$"
    return [found[1] for found in re.finditer(starts, joined, re.M)]


def all_command_lines() -> list[tuple[str, str]]:
    found = [(path, text) for path in PAGES for language, text in blocks(path) if language in SHELL]
    found += [(path, ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "") for path in RECIPES]
    found += [(path, path.read_text("utf-8")) for path in SCRIPTS]
    return [(str(path.relative_to(CHECKOUT)), line) for path, text in found for line in command_lines(text)]


def headings(path: Path) -> set[str]:
    """The anchors of a page, made as GitHub makes them."""
    text = FENCE.sub("", path.read_text("utf-8"))
    titles = re.findall(r"^#+ +(.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_tables_are_those_of_the_code(path):
    text = path.read_text("utf-8")
    assert MAKE_TABLES["filled"](text) == text, "run: python docs/make_tables.py"


def test_the_config_page_holds_the_whole_table():
    from gantransfer import config

    assert config.markdown_table() in (CHECKOUT / "docs/config.md").read_text("utf-8")


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_relative_links_lead_somewhere(path):
    for target in LINK.findall(FENCE.sub("", path.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), f"{target} does not exist"
        assert linked.is_relative_to(CHECKOUT), f"{target} leaves the repository"
        if anchor and linked.suffix == ".md":
            assert anchor in headings(linked), f"{target}: no such heading"


def test_the_index_lists_every_page():
    text = (CHECKOUT / "docs/README.md").read_text("utf-8")
    pages = [path.relative_to(CHECKOUT / "docs") for path in (CHECKOUT / "docs").rglob("*.md")]
    assert not [str(page) for page in pages if str(page) != "README.md" and f"({page})" not in text]


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_named_files_exist(path):
    """Paths in `backticks` that begin with a folder of the repository and have a suffix."""
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+\.\w+)`", path.read_text("utf-8"))
    assert not [name for name in named if not (CHECKOUT / name).exists()]


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_rows_have_as_many_cells_as_the_head_of_their_table(path):
    for table in re.findall(r"(?:^ *\|[^\n]*\n)+", FENCE.sub("", path.read_text("utf-8")) + "\n", re.M):
        head, *rows = (len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines())
        assert set(rows) == {head}, table


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_python_blocks_are_python_and_json_blocks_are_json(path):
    for language, text in blocks(path):
        if language in ("python", "py"):
            compile(text, str(path), "exec")
        if language == "json":
            json.loads(text)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_python_blocks_use_names_that_the_package_has(path):
    import gantransfer

    for language, text in blocks(path):
        if language not in ("python", "py"):
            continue
        tree = ast.parse(text)
        short = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name == "gantransfer"
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in short:
                assert node.attr in gantransfer.__all__ or (PACKAGE / node.attr).is_dir(), node.attr


@pytest.mark.parametrize(("place", "line"), all_command_lines())
def test_command_lines_are_accepted(place, line, capsys):
    """By the parser, and by the config's table for every field that they set."""
    from gantransfer import config as fields
    from gantransfer.arguments import build_parser, split_fields
    from gantransfer.training.partition import MODES

    words, settings = split_fields(shlex.split(line, comments=True))
    words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&", "2>", ">>", "&")), len(words))]
    try:
        options = build_parser().parse_args(words)
    except SystemExit as stop:
        assert not stop.code, capsys.readouterr().err
        return
    config = fields.defaults()
    if options.verb == "finetune":
        given = {name: getattr(options, name) for name in ("mode", "kimg", "batch", "seed")}
        settings |= {name: value for name, value in given.items() if value is not None}
    for name, value in settings.items():
        if not name.startswith("model.") and "$" not in value:
            fields.set_field(config, name, value)
    if options.verb == "finetune":
        assert config.mode in MODES
        if options.config:
            assert (CHECKOUT / options.config.partition(":")[0]).exists(), f"{options.config} does not exist"


def test_command_lines_are_found_in_shell_blocks():
    text = "pip install .\n$ gantransfer list sources  # all\n# gantransfer no\n"
    text += "X=1 python -m gantransfer finetune \\\n    --kimg 5\n"
    assert command_lines(text) == ["list sources  # all", "finetune --kimg 5"]


# --- the tree of docs/design.md


def design_tree() -> list[str]:
    """The paths of the block of docs/design.md that draws a tree; four spaces are one folder down."""
    text = next(text for _, text in blocks(CHECKOUT / "docs/design.md") if text.startswith("gantransfer/"))
    folders: list[str] = []
    found = []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        names = re.match(r"((?:[\w.-]+/?,? ?)+?)(?:  +|$)", line.strip())
        assert names, f"not a line of the tree: {line!r}"
        for name in names[1].replace(",", " ").split():
            found.append("/".join([*folders[:depth], name.rstrip("/")]))
        folders[depth:] = [found[-1].rpartition("/")[2]]
    return found


def test_the_tree_of_the_design_names_files_that_exist():
    assert not [path for path in design_tree() if not (CHECKOUT / path).exists()]


def test_the_tree_of_the_design_names_every_module_of_the_package():
    tree = set(design_tree())
    inside = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    missing = [path.name for path in inside if path.name != "__init__.py" and f"gantransfer/{path.name}" not in tree]
    assert not missing


def test_the_design_names_every_hook():
    from gantransfer.methods.hooks import HOOKS

    text = (CHECKOUT / "docs/design.md").read_text("utf-8")
    assert not [hook for hook in HOOKS if f"`{hook}" not in text]


def test_no_file_names_a_place_on_somebodys_machine():
    place = re.compile(r"(?<![\w./~-])/(?:work|root|home|Users|opt|tmp/\w)/?\w*")
    files = [path for folder in FOLDERS for path in (CHECKOUT / folder).rglob("*")] + list(CHECKOUT.iterdir())
    texts = {path.relative_to(CHECKOUT): path.read_text("utf-8") for path in files if path.suffix in TEXT}
    assert not [f"{path}: {found[0]}" for path, text in texts.items() for found in place.finditer(text)]
