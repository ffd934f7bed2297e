"""launch/setup_env.sh: finds a Python that runs, installs what is missing, and leaves alone what is there."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.house.source_tree import CHECKOUT

# Stands for an interpreter: says its version, copies itself into an environment, and writes down what pip is asked.
PYTHON = """#!/bin/sh
[ "$1" = -V ] && echo "Python 3.{minor}.0" && exit 0
[ "$1" = -c ] && case "$2" in *"(3, 11)"*) exit {too_old} ;; *"(3, 12)"*) exit {is_new} ;; esac
[ "$2" = venv ] && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo venv >> "$CALLS" && exit 0
[ "$2" = pip ] && echo "$@" >> "$CALLS" && exit ${{PIP_FAILS:-0}}
exit 9
"""
BROKEN_SHIM = "#!/bin/sh\necho 'command not found' >&2\nexit 127\n"


@pytest.fixture
def machine(tmp_path):
    """Returns `setup(extras, **environment)` and a function that installs an interpreter under a name."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    calls = tmp_path / "calls"

    def install(name: str, text: str) -> None:
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)

    # Whatever Python this machine really has must not be found before the ones of the test.
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        install(name, BROKEN_SHIM)

    def setup(extras: str, **environment: str) -> tuple[int, str, list[str]]:
        calls.write_text("")
        script = f"source launch/setup_env.sh; setup_environment {extras}; echo interpreter $PYTHON"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=60,
            env={
                "PATH": f"{binaries}{os.pathsep}/usr/bin{os.pathsep}/bin",
                "CALLS": str(calls),
                "GANTRANSFER_VENV": str(tmp_path / "environment"),
                **environment,
            },
        )
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()

    return setup, install


def python(minor: int) -> str:
    return PYTHON.format(minor=minor, too_old=int(minor < 11), is_new=int(minor >= 12))


def test_a_first_run_makes_the_environment_and_installs_with_the_constraints_of_its_python(machine, tmp_path):
    setup, install = machine
    install("python3", python(11))
    code, said, calls = setup("dev,quickstart")
    assert code == 0, said
    assert calls[0] == "venv"
    assert len(calls) == 2
    assert calls[1].endswith(f"-c {CHECKOUT}/constraints/py311.txt -e {CHECKOUT}[dev,quickstart]")
    assert f"interpreter {tmp_path}/environment/bin/python" in said


@pytest.mark.parametrize("minor", [12, 14])
def test_newer_pythons_use_the_newest_constraints(machine, minor):
    setup, install = machine
    install("python3", python(minor))
    assert "constraints/py312.txt" in setup("quickstart")[2][1]


def test_a_second_run_does_nothing(machine):
    setup, install = machine
    install("python3", python(12))
    setup("dev,quickstart")
    code, said, calls = setup("quickstart")
    assert (code, calls) == (0, [])
    assert "up to date" in said


def test_a_further_extra_is_added_to_those_that_are_there(machine):
    setup, install = machine
    install("python3", python(12))
    setup("quickstart")
    (call,) = setup("dev,quickstart")[2]
    assert call.endswith("[quickstart,dev]")
    assert setup("quickstart,dev")[2] == []


def test_another_accelerator_installs_again(machine):
    setup, install = machine
    install("python3", python(12))
    setup("quickstart")
    (call,) = setup("quickstart", GANTRANSFER_JAX="cuda12")[2]
    assert call.endswith("[quickstart] jax[cuda12]")


def test_an_installation_that_failed_is_tried_again(machine):
    setup, install = machine
    install("python3", python(12))
    code, said, _ = setup("quickstart", PIP_FAILS="1")
    assert code == 1
    assert "pip could not install" in said
    assert len(setup("quickstart")[2]) == 1


def test_names_that_do_not_run_and_old_pythons_are_passed_over(machine):
    setup, install = machine
    install("python3", python(9))
    install("python3.12", python(12))
    code, said, calls = setup("quickstart")
    assert (code, calls[0]) == (0, "venv"), said
    assert "Python 3.12" in said


def test_no_usable_python_is_said_in_one_line(machine):
    setup, install = machine
    install("python3", python(9))
    code, said, calls = setup("quickstart")
    assert (code, calls) == (1, [])
    assert said.strip().count("\n") == 0
    assert "3.11 or newer" in said
    assert "GANTRANSFER_PYTHON" in said


def test_the_python_that_was_asked_for_is_taken(machine, tmp_path):
    setup, install = machine
    install("python3", python(11))
    install("mine", python(13))
    assert "Python 3.13" in setup("quickstart", GANTRANSFER_PYTHON="mine")[1]
    assert Path(tmp_path / "environment/bin/python").exists()
