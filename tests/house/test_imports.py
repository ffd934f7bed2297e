"""What importing costs: nothing for the package and its help, and never TensorFlow or PyTorch."""

import json
import subprocess
import sys

from tests.house.source_tree import CHECKOUT, modules

WEIGHTY = ("jax", "flax", "numpy", "optax", "orbax", "grain", "PIL", "scipy", "sklearn", "matplotlib", "ml_collections")

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Block())
"""


def python(code: str, *arguments: str) -> str:
    """Runs `code` in a fresh interpreter in the checkout; returns its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def loaded(code: str) -> list[str]:
    """Which of WEIGHTY are loaded after `code`."""
    return json.loads(
        python(f"{code}\nimport json, sys\nprint(json.dumps([m for m in {WEIGHTY} if m in sys.modules]))")
    )


def test_importing_the_package_imports_no_library():
    assert loaded("import gantransfer; gantransfer.__version__; dir(gantransfer)") == []


def test_help_imports_no_library():
    code = """
import contextlib, io, runpy, sys
for argv in (["gantransfer", "--help"], ["gantransfer", "finetune", "--help"], ["gantransfer", "--version"]):
    sys.argv = argv
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            runpy.run_module("gantransfer", run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, stop.code
    assert "gantransfer" in shown.getvalue(), shown.getvalue()
"""
    assert loaded(code) == []


def test_a_mistyped_verb_is_answered_without_importing_a_library():
    code = """
import runpy, sys
sys.argv = ["gantransfer", "finetoon"]
try:
    runpy.run_module("gantransfer", run_name="__main__")
except SystemExit as stop:
    assert stop.code == 2, stop.code
"""
    assert loaded(code) == []


def test_every_module_imports_without_tensorflow_and_torch():
    code = BLOCK + "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(len(sys.argv) - 1)"
    names = [name for name in modules() if not name.endswith("__main__")]
    assert python(code, *names) == str(len(names))


def test_the_names_of_the_package_are_those_of_its_api():
    import gantransfer
    from gantransfer import api

    assert sorted(gantransfer.__all__) == sorted(["__version__", *api.__all__])
    assert all(getattr(gantransfer, name) is getattr(api, name) for name in api.__all__)


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import gantransfer

    assert not hasattr(gantransfer, "finetoon")
