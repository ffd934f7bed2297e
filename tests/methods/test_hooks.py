"""Lines of a config become methods; what is wrong in them is named; what excludes each other is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

import gantransfer.methods
from gantransfer.errors import UserError
from gantransfer.methods import REGISTRY, Method, check_together, describe, parse_method, register
from gantransfer.methods.hooks import MethodState


@pytest.fixture
def registered():
    """Registers methods for one test only."""
    before = dict(REGISTRY)
    yield register
    REGISTRY.clear()
    REGISTRY.update(before)


def _lossy(cls: type) -> type:
    cls.loss = lambda self, play, state: None
    return cls


def test_every_file_of_the_folder_is_registered_under_its_name_and_says_what_it_is():
    files = {path.stem for path in Path(gantransfer.methods.__file__).parent.glob("*.py")} - {"__init__", "hooks"}
    shipped = {name: method for name, method in REGISTRY.items() if method.__module__.startswith("gantransfer.")}
    assert files == set(shipped)
    for name, method in shipped.items():
        assert method.__module__ == f"gantransfer.methods.{name}"
        line = describe(method)
        assert line.startswith(f"{name}(")
        assert len(line.partition("): ")[2].split()) > 3
        assert method.hooks()


def test_a_line_gives_the_method_with_its_settings():
    method = parse_method(" r1(gamma=2, every=16, point='augmented') ")
    assert method == REGISTRY["r1"](gamma=2.0, every=16, point="augmented")
    assert isinstance(method.gamma, float)
    assert parse_method("r1") == parse_method("r1()") == REGISTRY["r1"]()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("weight_deca", r"methods: 'weight_deca' .*did you mean weight_decay"),
        ("r1(gama=1)", r"methods\.r1: 'gama' .*did you mean gamma"),
        ("r1(gamma=1, gamma=2)", r"r1\.gamma: .*one value"),
        ("r1(2.0)", r"methods: 'r1\(2\.0\)' .*settings by name"),
        ("r1(**{})", r"methods\.r1: '\*\*'"),
        ("r1(gamma=10 ** 3)", r"r1\.gamma: '10 \*\* 3' .*literal"),
        ("r1(gamma={[]: 1})", r"r1\.gamma: .*literal"),
        ("r1(gamma=True)", r"r1\.gamma: True .*float"),
        ("r1(gamma=1e999)", r"r1\.gamma: inf .*at least 0"),
        ("r1(every=1.0)", r"r1\.every: 1\.0 .*int"),
        ("r1(every=0)", r"r1\.every: 0 .*at least 1"),
        ("r1(point='rough')", r"r1\.point: 'rough' .*raw, augmented"),
        ("freeze_discriminator(every=2, blocks=1)", r"methods\.freeze_discriminator: 'every'"),
        ("freeze_discriminator(blocks='two')", r"freeze_discriminator\.blocks: 'two' .*int or None"),
        ("r1; r1", r"methods: 'r1; r1'"),
        ("", r"methods: ''"),
        ("r1\0", r"methods: "),
    ],
)
def test_what_is_wrong_in_a_line_is_named(line, message):
    with pytest.raises(UserError, match=message):
        parse_method(line)


def test_annotations_decide_what_a_setting_may_be(registered):
    @registered("toy")
    @_lossy
    @dataclass(frozen=True)
    class Toy(Method):
        names: tuple[str, ...] = ()
        kind: Literal["a", 2] = "a"
        flag: bool = False
        share: float | None = None

    assert parse_method("toy(names=('x', 'y'), kind=2, flag=True, share=1)") == Toy(("x", "y"), 2, True, 1.0)
    for bad in ("names='x'", "names=(1,)", "kind=True", "flag=1", "share='all'", "share=False"):
        with pytest.raises(UserError, match=r"toy\.(names|kind|flag|share): "):
            parse_method(f"toy({bad})")


def test_laziness_is_refused_where_there_is_no_term():
    with pytest.raises(UserError, match=r"freeze_discriminator\.every: 2 .*no loss term"):
        REGISTRY["freeze_discriminator"](blocks=1, every=2)


def test_a_name_can_be_taken_only_once():
    with pytest.raises(ValueError, match=r"'r1' is taken by gantransfer\.methods\.r1"):
        register("r1")(REGISTRY["weight_decay"])


def test_an_update_needs_a_start_that_makes_what_it_moves():
    class Mover(Method):
        def update(self, state, observed):
            return state.carried

    with pytest.raises(ValueError, match="'mover' has an update without a start"):
        register("mover")(Mover)
    assert "mover" not in REGISTRY


def test_only_defined_hooks_are_reported():
    assert REGISTRY["r1"].hooks() == {"loss"}
    assert REGISTRY["differentiable_augment"].hooks() == {"view"}
    assert REGISTRY["freeze_generator"].hooks() == {"freeze"}
    assert Method.hooks() == frozenset()


def test_methods_that_claim_one_thing_are_refused_by_both_names(registered):
    def controller(name: str) -> Callable:
        @registered(name)
        @_lossy
        @dataclass(frozen=True)
        class Controller(Method):
            claims: ClassVar[tuple[str, ...]] = ("overfitting controller",)

        return Controller

    one, two = controller("one"), controller("two")
    with pytest.raises(UserError, match=r"one, two.*overfitting controller"):
        check_together((one(), parse_method("r1"), two()))
    with pytest.raises(UserError, match=r"r1, r1.*one method only"):
        check_together((parse_method("r1"), parse_method("r1(gamma=1.0)")))
    check_together((one(), parse_method("r1"), parse_method("freeze_discriminator(blocks=1)")))


def test_a_state_is_empty_unless_told_otherwise():
    assert MethodState() == ((), (), ())
