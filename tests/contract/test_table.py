"""The battery's table is complete, its settings are refused where they are wrong, and all seven hooks are in it."""

import itertools

import pytest

from gantransfer.errors import UserError
from gantransfer.methods import REGISTRY, check_together, describe, parse_method
from gantransfer.methods.hooks import HOOKS
from tests.contract import rig
from tests.contract.table import CASES, EVERYTHING
from tests.contract.toys import TOYS


def test_every_registered_method_has_its_line():
    assert set(CASES) == set(REGISTRY) - {"toy_rival"}


def test_all_seven_hooks_are_used_by_the_table():
    assert set().union(*(REGISTRY[name].hooks() for name in CASES)) == set(HOOKS)


@pytest.mark.parametrize("name", CASES)
def test_lines_are_read_as_the_method_that_they_name(name):
    for line in filter(None, (CASES[name].line, CASES[name].neutral)):
        assert parse_method(line).name == name
    assert describe(REGISTRY[name]).startswith(f"{name}(")


@pytest.mark.parametrize(("line", "setting"), [item for case in CASES.values() for item in case.wrong.items()])
def test_settings_out_of_range_are_refused_by_name(line, setting):
    with pytest.raises(UserError) as refusal:
        parse_method(line).needs(rig.source("toy").networks)
    assert refusal.value.field == setting
    assert refusal.value.allowed


@pytest.mark.parametrize("name", [name for name in CASES if name not in TOYS])
def test_every_setting_with_a_range_has_a_wrong_value_in_the_table(name):
    assert CASES[name].wrong


def test_pairs_are_allowed_unless_they_claim_one_thing():
    methods = [parse_method(line) for line in (*EVERYTHING, "toy_rival")]
    for one, other in itertools.combinations(methods, 2):
        if {one.name, other.name} == {"toy_controller", "toy_rival"}:
            with pytest.raises(UserError, match=r"toy_controller, toy_rival.*overfitting controller"):
                check_together((one, other))
        else:
            check_together((one, other))


def test_a_run_of_two_that_claim_one_thing_is_refused_before_it_starts():
    with pytest.raises(UserError, match=r"toy_controller, toy_rival"):
        rig.make_task(("toy_controller", "toy_rival"))
