"""How the leaves of a published file correspond to ours: names, changes of layout, and what is left out.

A `Layout` is one table read in both directions, so that a file exported from what was imported is the same file, bit
for bit. Nothing here reads files (`readers`) or decides what to do about a leaf that is missing (`convert`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from gantransfer.models.family import Role

Shapes = Mapping[str, tuple[int, ...]]
State = Mapping[str, np.ndarray]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """An invertible change of an array's layout.

    Attributes:
      words: what a report calls it: "mapped" (nothing changes), "transposed", "reshaped" or both.
      forward: from the file's array to ours.
      backward: from our array to the file's.
    """

    words: str
    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]

    def then(self, other: "Change") -> "Change":
        """This change and then another, in the direction from the file to us."""
        words = [w for change in (self, other) for w in change.words.split(" and ") if w != "mapped"] or ["mapped"]
        return Change(
            " and ".join(dict.fromkeys(words)),
            lambda a: other.forward(self.forward(a)),
            lambda a: self.backward(other.backward(a)),
        )


SAME = Change("mapped", lambda a: a, lambda a: a)


def transposed(*axes: int) -> Change:
    """`ours = theirs.transpose(axes)`."""
    back = tuple(int(i) for i in np.argsort(axes))
    return Change("transposed", lambda a: a.transpose(axes), lambda a: a.transpose(back))


def reshaped(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Change:
    """`ours = theirs.reshape(...)`; both shapes in full, since each is the other's target."""
    return Change("reshaped", lambda a: a.reshape(ours), lambda a: a.reshape(theirs))


# Kernels of convolutions: (out, in, height, width) of PyTorch to (height, width, in, out).
KERNEL = transposed(2, 3, 1, 0)
# Kernels of linear layers: (out, in) of PyTorch to (in, out).
MATRIX = transposed(1, 0)


def input_vector(channels: int, side: int) -> Change:
    """A vector over the inputs of a kernel: channels, rows, columns of PyTorch to rows, columns, channels."""
    if side == 1:
        return SAME
    count = channels * side**2
    split = reshaped((count,), (channels, side, side)).then(transposed(1, 2, 0))
    return split.then(reshaped((side, side, channels), (count,)))


@dataclass(frozen=True)
class Leaf:
    """One correspondence.

    Attributes:
      theirs: name in the file; several are stacked to one leaf of ours along a new first axis, after `change` of each.
      ours: collection and path, joined with "/": `"params/block_0/conv1/kernel"`.
      change: from the file's array to ours.
    """

    theirs: str | tuple[str, ...]
    ours: str
    change: Change = SAME

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the file."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    def read(self, state: State) -> np.ndarray:
        """Our leaf, from the file's arrays."""
        parts = [self.change.forward(np.asarray(state[name])) for name in self.names]
        return parts[0] if isinstance(self.theirs, str) else np.stack(parts)

    def write(self, leaf: np.ndarray) -> dict[str, np.ndarray]:
        """The file's arrays, from our leaf."""
        parts = [leaf] if isinstance(self.theirs, str) else list(leaf)
        # The rows of a vector are scalars, which are no arrays.
        return {n: np.asarray(self.change.backward(np.asarray(p))) for n, p in zip(self.names, parts, strict=True)}


@dataclass(frozen=True)
class Found:
    """What the names and shapes of one state say: whose it is and how the network is built.

    Attributes:
      role: generator or discriminator.
      options: architecture options of the family that the weights decide; what they cannot decide (an epsilon, an
        activation) is left out and takes the layout's `assumed`.
    """

    role: Role
    options: Options


@dataclass(frozen=True)
class Layout:
    """One on-disk convention for the weights of a family.

    Attributes:
      name: what reports and `export` call it, such as "biggan-pytorch".
      family: the model family.
      about: whose code writes it, one line.
      recognise: from names and shapes of one state to what it is; None where it is of another layout. Must not raise
        on any names and shapes.
      leaves: `leaves(role, options)`: the table, for all options of the family.
      assumed: options that weights cannot tell, with the values that the original code uses.
      from_config: options that a configuration beside the weights states (`config.json`, keyword arguments in a
        pickle, the training options of a `state_dict.pth`); they are checked against those of the weights.
      dropped: patterns of names that are left out on reading, each with the reason.
      made: on writing, arrays of dropped names that the original code insists on: `made(role, options)`.
      absent: our leaves (collection and path) that no file holds: `absent(role, options)` gives their values.
      to_config: the other way round of `from_config`: what an exported configuration says of options that weights
        cannot tell, so that importing it again gives the same network.
      averaged: whether a generator that is alone, under a name that does not tell, is the averaged one.
      notice: what must be said whenever a file of this layout is converted, such as the terms of its release.
    """

    name: str
    family: str
    about: str
    recognise: Callable[[Shapes], Found | None]
    leaves: Callable[[Role, Options], tuple[Leaf, ...]]
    assumed: Options = field(default_factory=dict)
    from_config: Callable[[Mapping[str, Any]], Options] = lambda config: {}
    dropped: tuple[tuple[str, str], ...] = ()
    made: Callable[[Role, Options], State] = lambda role, options: {}
    absent: Callable[[Role, Options], State] = lambda role, options: {}
    to_config: Callable[[Options], Mapping[str, Any]] = lambda options: {}
    averaged: bool = False
    notice: str = ""

    def reason(self, name: str) -> str | None:
        """Why a name of the file is left out; None where it is not."""
        return next((why for pattern, why in self.dropped if fnmatchcase(name, pattern)), None)


def to_ours(leaves: Iterable[Leaf], state: State) -> dict[str, np.ndarray]:
    """Our leaves by collection and path; every name of the table must be in `state`."""
    return {leaf.ours: leaf.read(state) for leaf in leaves}


def to_theirs(leaves: Iterable[Leaf], ours: State) -> dict[str, np.ndarray]:
    """The file's arrays by name; every leaf of the table must be in `ours` (keys as in `Leaf.ours`)."""
    return {name: array for leaf in leaves for name, array in leaf.write(np.asarray(ours[leaf.ours])).items()}
