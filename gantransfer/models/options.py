"""Checks architecture options against what a family declares."""

from collections.abc import Collection, Mapping
from typing import Any

from gantransfer.errors import UserError
from gantransfer.models.family import Option


def complete(
    table: Mapping[str, Option], given: Mapping[str, Any], may_be_zero: Collection[str] = ()
) -> dict[str, Any]:
    """Returns every option of `table` with its value, given or default.

    Numbers must be above 0, those in `may_be_zero` at least 0.

    Raises:
      UserError: for `model.NAME`: an option that the table lacks, or a value of the wrong type or out of range.
    """
    for name, value in given.items():
        if name not in table:
            raise UserError(f"model.{name}", value, f"one of the options {', '.join(table)}")
        allowed = table[name].allowed
        if isinstance(allowed, tuple):
            if value not in allowed:
                raise UserError(f"model.{name}", value, " or ".join(map(repr, allowed)))
        elif allowed in (bool, str):
            if not isinstance(value, allowed):
                raise UserError(f"model.{name}", value, f"a {allowed.__name__}")
        else:
            _check_number(name, value, allowed, name in may_be_zero)
    return {name: option.default for name, option in table.items()} | dict(given)


def _check_number(name: str, value: Any, kind: type, zero: bool) -> None:
    kinds = (int, float) if kind is float else (int,)
    fits = isinstance(value, kinds) and not isinstance(value, bool) and value >= 0 and (value or zero)
    if not fits:
        words = "a whole number" if kind is int else "a number"
        raise UserError(f"model.{name}", value, f"{words} {'at least' if zero else 'above'} 0")


def numbers(name: str, text: str, least: int = 1) -> tuple[int, ...]:
    """Returns the whole numbers of an option that holds several, joined with "_".

    Raises:
      UserError: for `model.NAME`: not numbers, or fewer than `least`.
    """
    parts = text.split("_")
    if len(parts) < least or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"model.{name}", text, f"at least {least} whole numbers above 0 joined with '_'")
    return tuple(map(int, parts))
