"""Recognition: whose layout the states of a checkpoint have, which network each is, how the networks are built.

A file or folder holds states (named arrays). One layout must recognise them; the raw generator, its running average
and the discriminator are told apart by what is recognised and by their names, and must agree on every option.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gantransfer.errors import UserError, one_of
from gantransfer.models import get_family
from gantransfer.pretrained.layouts import all_layouts, get_layout
from gantransfer.pretrained.layouts.layout import Found, Layout

Slot = Literal["generator", "ema", "discriminator"]
States = Mapping[str, Mapping[str, np.ndarray]]
Decided = dict[str, tuple[Any, str]]

AVERAGED = {"ema", "gs", "avg", "average", "averaged"}
# Words in the name of a state or file that say which network it is.
NETWORKS = AVERAGED | {"g", "generator", "netg"}
SHOWN = 4


class Part(NamedTuple):
    """One network of a checkpoint: what it serves as, the name of its state, and what the layout found in it."""

    slot: Slot
    state: str
    found: Found


@dataclass(frozen=True)
class Recognised:
    """What the states of a checkpoint are.

    Attributes:
      layout: whose names and shapes they have.
      parts: the networks that are used.
      strange: names of states that the layout knows nothing of.
    """

    layout: Layout
    parts: tuple[Part, ...]
    strange: tuple[str, ...]


def recognise(states: States, path: Path, layout: str | None = None) -> Recognised:
    """Finds out what the states of a checkpoint are.

    Args:
      states: arrays by state and name.
      path: of the checkpoint; its name tells what a state without a name is.
      layout: the layout to take; None: the one that recognises most states.

    Raises:
      UserError: no layout knows the names and shapes, several do, there is no generator, or two states are one network.
    """
    shapes = {state: {key: tuple(array.shape) for key, array in arrays.items()} for state, arrays in states.items()}
    candidates = all_layouts() if layout is None else {layout: get_layout(layout, "--layout")}
    found = {
        label: {state: what for state, named in shapes.items() if (what := candidate.recognise(named)) is not None}
        for label, candidate in candidates.items()
    }
    most = max(map(len, found.values()), default=0)
    best = [label for label, whats in found.items() if len(whats) == most]
    if not most:
        raise UserError(str(path), _glance(shapes), f"weights in one of the layouts {', '.join(sorted(candidates))}")
    if len(best) > 1:
        raise UserError(str(path), " or ".join(best), "a --layout that says which of these it is")
    chosen, whats = candidates[best[0]], found[best[0]]
    parts = tuple(Part(_slot(state or path.stem, what, chosen.averaged), state, what) for state, what in whats.items())
    slots = [part.slot for part in parts]
    strange = tuple(state for state in states if state not in whats)
    if set(slots) == {"discriminator"}:
        others = f"; {', '.join(strange)} with other names or shapes" if strange else ""
        raise UserError(str(path), f"only a discriminator{others}", f"a generator of {chosen.name} too")
    if len(set(slots)) < len(slots):
        words = ", ".join(f"{part.state} ({part.slot})" for part in parts)
        raise UserError(str(path), words, "one generator, one running average of it and one discriminator at most")
    return Recognised(chosen, parts, strange)


def _slot(name: str, what: Found, averaged: bool) -> Slot:
    if what.role == "discriminator":
        return "discriminator"
    words = set(re.split(r"[^a-z]+", name.lower()))
    return "ema" if words & AVERAGED or (averaged and not words & NETWORKS) else "generator"


def _glance(shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> str:
    """The first names and shapes, to recognise the file by."""
    some = [f"{key} {list(shape)}" for named in shapes.values() for key, shape in list(named.items())[:SHOWN]]
    count = sum(map(len, shapes.values()))
    return f"{count} arrays: " + ", ".join(some[:SHOWN]) + (", ..." if count > SHOWN else "")


def decide_options(recognised: Recognised, config: Mapping[str, Any], given: Mapping[str, Any], name: str) -> Decided:
    """Decides every architecture option, and says by whom (`conversion_report.DECIDED`).

    What the weights say cannot be changed: networks, configuration and user must agree with it. What weights cannot
    tell is decided by the user, the configuration, the layout's assumption, and the family's default, in this order.

    Raises:
      UserError: naming the option and both values.
    """
    layout, decided = recognised.layout, {}
    said_by: dict[str, str] = {}
    for part in recognised.parts:
        for option, value in part.found.options.items():
            if option in decided and decided[option][0] != value:
                both = f"{decided[option][0]} in {said_by[option]}, {value} in {part.state}"
                raise UserError(f"{name}: {option}", both, "networks that belong together")
            decided[option], said_by[option] = (value, "weights"), part.state
    family = get_family(layout.family)
    typed = {
        option: _typed(value, family.options[one_of("--option", option, family.options)].default)
        for option, value in given.items()
    }
    for options, who in ((typed, "given"), (layout.from_config(config) if config else {}, "config")):
        for option, value in options.items():
            if option not in decided:
                decided[option] = (value, who)
            elif decided[option][1] == "weights" and decided[option][0] != value:
                where = f"--option {option}" if who == "given" else f"{name}: {option} of its configuration"
                raise UserError(where, value, f"{decided[option][0]}, as the weights say")
    for option, value in layout.assumed.items():
        decided.setdefault(option, (value, "assumed"))
    for option, known in family.options.items():
        decided.setdefault(option, (known.default, "default"))
    return {option: decided[option] for option in family.options} | {
        option: value for option, value in decided.items() if option not in family.options
    }


def _typed(value: Any, default: Any) -> Any:
    """Text of a command line as the kind of value that the option's default is."""
    if not isinstance(value, str) or isinstance(default, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return type(default)(value) if type(default) in (int, float) else ast.literal_eval(value)
    except (ValueError, SyntaxError):
        # The family refuses it, with what it allows.
        return value
