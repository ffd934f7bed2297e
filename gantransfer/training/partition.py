"""Which leaves train: modes are patterns over named groups, resolved once before anything is differentiated.

What a mode does not train is no argument of the gradient, so no weight gradient, no optimizer slot and no second copy
exists for it (`docs/design.md`). Modes also say where each network starts, which is what the four-way comparison of
Transferring GANs (Wang et al. 2018, section 4.1) needs: `full` transfers both networks, `generator_only` and
`discriminator_only` one, `none` neither.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer.errors import UserError, one_of
from gantransfer.methods.hooks import Method
from gantransfer.models.family import ROLES, Networks, Role

Tree = Any
BatchNorm = Literal["stored", "batch", "batch_frozen"]


@dataclass(frozen=True)
class Mode:
    """What a mode transfers and trains: patterns over groups for each network, and where each network starts."""

    train_g: tuple[str, ...] = ("*",)
    train_d: tuple[str, ...] = ("*",)
    init_g: Literal["source", "random"] = "source"
    init_d: Literal["source", "random"] = "source"
    help: str = ""


MODES: dict[str, Mode] = {
    "full": Mode(help="everything trains, both networks start from the source"),
    "class_embedding_only": Mode(train_g=("class_embedding",), help="only the class embedding of G trains; D trains"),
    "class_embedding_and_norms": Mode(
        train_g=("class_embedding", "conditional_norm"),
        help="class embedding and conditional batch norm of G train; D trains",
    ),
    "scale_shift": Mode(
        train_g=("conditional_norm", "norm"), help="gains and biases of G's normalisation train; D trains"
    ),
    "generator_only": Mode(init_d="random", help="everything trains; only G starts from the source"),
    "discriminator_only": Mode(init_g="random", help="everything trains; only D starts from the source"),
    "none": Mode(init_g="random", init_d="random", help="everything trains from scratch, in the source's architecture"),
    "custom": Mode(help="transfer.train_g and transfer.train_d say what trains"),
}


@dataclass(frozen=True)
class Leaf:
    """One parameter and what becomes of it: its group, whether it trains, and the rule that decided."""

    role: Role
    path: str
    group: str
    shape: tuple[int, ...]
    trained: bool
    why: str

    @property
    def size(self) -> int:
        """Number of values."""
        size = 1
        for n in self.shape:
            size *= n
        return size


@dataclass(frozen=True)
class Partition:
    """Every leaf of both networks, each trained or frozen by a named rule."""

    leaves: tuple[Leaf, ...]

    def trained(self, role: Role) -> frozenset[str]:
        """Paths of the leaves of `role` that train."""
        return frozenset(leaf.path for leaf in self.leaves if leaf.role == role and leaf.trained)

    def count(self, role: Role, trained: bool | None = None) -> int:
        """Number of values in the leaves of `role`: all, the trained or the frozen ones."""
        return sum(leaf.size for leaf in self.leaves if leaf.role == role and trained in (None, leaf.trained))

    def trains_convolution(self) -> bool:
        """Whether anything of G but its class side and its normalisation trains."""
        light = {"class_embedding", "conditional_norm", "norm"}
        return any(leaf.trained and leaf.group not in light for leaf in self.leaves if leaf.role == "generator")

    def table(self) -> str:
        """Returns one line per leaf and the totals of each network."""
        lines = []
        for role in ROLES:
            total = max(self.count(role), 1)
            lines.append(f"{role}: {self.count(role, True):,} of {self.count(role):,} values train")
            for leaf in (leaf for leaf in self.leaves if leaf.role == role):
                state = "trained" if leaf.trained else "frozen "
                shape = "x".join(map(str, leaf.shape)) or "scalar"
                share = 100 * leaf.size / total
                numbers = f"{shape:<16} {leaf.size:>11,} {share:6.2f} %"
                lines.append(f"  {state} {leaf.path:<38} {leaf.group:<18} {numbers}  {leaf.why}")
        return "\n".join(lines)

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the leaves as plain dictionaries, for partition.json."""
        return [
            {"role": leaf.role, "path": leaf.path, "group": leaf.group, "trained": leaf.trained, "why": leaf.why}
            | {"shape": list(leaf.shape), "parameters": leaf.size}
            for leaf in self.leaves
        ]


def get_mode(name: str, train_g: tuple[str, ...] = (), train_d: tuple[str, ...] = ()) -> Mode:
    """Returns the mode called `name`; `custom` takes its patterns from the two tuples, the others refuse them.

    Raises `UserError` for an unknown mode, patterns beside a named mode, or `custom` without any.
    """
    mode = MODES[one_of("mode", name, MODES)]
    for field, patterns in (("transfer.train_g", train_g), ("transfer.train_d", train_d)):
        if patterns and name != "custom":
            raise UserError(field, patterns, "nothing beside a named mode; set mode=custom to use patterns")
    if name != "custom":
        return mode
    if not (train_g or train_d):
        raise UserError("transfer.train_g", train_g, "patterns over groups or paths, with mode=custom")
    return Mode(train_g=train_g, train_d=train_d, help=mode.help)


def make_partition(
    networks: Networks,
    params: Mapping[Role, Tree],
    mode: Mode,
    methods: Iterable[Method] = (),
    fresh: Mapping[Role, frozenset[str]] | None = None,
) -> Partition:
    """Decides for every leaf whether it trains.

    Args:
      networks: for the groups.
      params: per role, the parameter tree (arrays or shapes).
      mode: patterns (`fnmatch`) over group names or leaf paths; a leaf trains if any matches.
      methods: those with a `freeze` hook may hold further leaves.
      fresh: leaves that surgery had to invent; they train even where the mode holds their group, because a random leaf
        that never trains is a mistake (`docs/design.md`).

    Raises:
      UserError: a pattern that matches no leaf, naming the groups that exist.
    """
    leaves = []
    for role in ROLES:
        patterns = mode.train_g if role == "generator" else mode.train_d
        paths = {path: leaf.shape for path, leaf in flatten_dict(params[role], sep="/").items()}
        groups = {path: networks.group(role, path) for path in paths}
        for pattern in patterns:
            if not any(_matches(pattern, path, groups[path]) for path in paths):
                field = "transfer.train_g" if role == "generator" else "transfer.train_d"
                raise UserError(
                    field, pattern, "a pattern over these groups: " + ", ".join(sorted(set(groups.values())))
                )
        for path, shape in paths.items():
            trained, why = _decide(
                role, path, groups[path], patterns, tuple(methods), networks, (fresh or {}).get(role, frozenset())
            )
            leaves.append(Leaf(role, path, groups[path], tuple(shape), trained, why))
    return Partition(tuple(leaves))


def _matches(pattern: str, path: str, group: str) -> bool:
    return fnmatchcase(group, pattern) or fnmatchcase(path, pattern)


def _decide(
    role: Role,
    path: str,
    group: str,
    patterns: tuple[str, ...],
    methods: tuple[Method, ...],
    networks: Networks,
    fresh: frozenset[str],
) -> tuple[bool, str]:
    for method in methods:
        if "freeze" in method.hooks() and method.freeze(role, path, networks):
            return False, f"held by {method.name}"
    for pattern in patterns:
        if _matches(pattern, path, group):
            return True, f"mode trains {pattern}"
    if path in fresh:
        return True, "new leaf, trains by default"
    return False, "held by the mode"


def split(tree: Tree, keep: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Splits a nested dictionary by leaf path (joined with "/") into the leaves to keep and the others."""
    flat = flatten_dict(tree)
    kept = {key: leaf for key, leaf in flat.items() if keep("/".join(key))}
    return unflatten_dict(kept), unflatten_dict({key: leaf for key, leaf in flat.items() if key not in kept})


def merge(*trees: Tree) -> Tree:
    """Joins nested dictionaries with disjoint leaves into one."""
    flat: dict[tuple[str, ...], Any] = {}
    for tree in trees:
        for key, leaf in flatten_dict(tree).items():
            if key in flat:
                raise ValueError(f"leaf {'/'.join(key)} stands in two trees")
            flat[key] = leaf
    return unflatten_dict(flat)


def pick(tree: Tree, like: Tree) -> Tree:
    """Returns the leaves of `tree` that `like` has too."""
    wanted = flatten_dict(like)
    return unflatten_dict({key: leaf for key, leaf in flatten_dict(tree).items() if key in wanted})


def bytes_of(tree: Tree) -> int:
    """Bytes of all leaves (arrays or shapes) of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
