"""The seven hooks: everything that a method may change about a training step.

A method is a frozen dataclass of its settings that defines any of the hooks below; what it leaves out costs nothing,
because the step asks `hook in method.hooks()` while it is being built, not while it runs.

    freeze(role, path, networks) -> bool                   is this leaf held? (one "yes" holds it)
    start(key, params, players, reals, labels) -> state    what state do I begin with? (`params` per role, whole trees)
    weights(role, params, state) -> params                 which weights does the network really use? (whole trees)
    latents(keys, z, c, players, state) -> (z, c)          which latents and labels go into the generator?
    view(keys, x, c, side, players, state) -> (x, c)       what does the discriminator see?
    loss(play, state) -> (scalar, {name: scalar})          which term do I add? (None: none for `play.role`)
    update(state, observed) -> carried                     how do my carried leaves move after the step?

Methods see the two networks as bound pure functions (`Player`s), never as parameter trees, and `keys` hold one random
key per image, so that a draw depends neither on the batch nor on the number of devices. A method that is off draws
nothing.
"""

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from types import UnionType
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from jaxtyping import Array, Float

from gantransfer.errors import UserError, one_of
from gantransfer.models.family import Judgement, Labels, Networks, Picture, Role

Side = Literal["real", "fake"]
Keys = Any  # typed random keys (n,), one per image
Tree = Any  # a pytree of arrays
HOOKS = ("freeze", "start", "weights", "latents", "view", "loss", "update")


@runtime_checkable
class GeneratorPlayer(Protocol):
    """A bound generator."""

    def __call__(self, z: Array, c: Labels, want: tuple[str, ...] = ()) -> Picture: ...


@runtime_checkable
class DiscriminatorPlayer(Protocol):
    """A bound discriminator."""

    def __call__(self, x: Array, c: Labels, want: tuple[str, ...] = ()) -> Judgement: ...


class MethodState(NamedTuple):
    """What a method keeps between steps, all of it in the checkpoint.

    Attributes:
      carried: leaves that the method's own `update` moves.
      generator: leaves that the generator's optimizer moves, by the generator's loss.
      discriminator: leaves that the discriminator's optimizer moves, by the discriminator's loss.
    """

    carried: Tree = ()
    generator: Tree = ()
    discriminator: Tree = ()


class Players(NamedTuple):
    """The two networks with their present weights, in training mode; calling them stores no statistics."""

    G: GeneratorPlayer
    D: DiscriminatorPlayer


class Seen(NamedTuple):
    """One side of a discriminator pass: images before the views, after them, their labels, and what D said.

    Attributes:
      images: `(n, h, w, channels)` before any view.
      labels: int32 `(n,)` or class weights `(n, k)`.
      judgement: of `view(images)`.
      view: the same views with the same draws, as a function of other images: `view(x) -> x`.
    """

    images: Array
    labels: Labels
    judgement: Judgement
    view: Callable[[Array], Array]


class Play(NamedTuple):
    """What `loss` sees: the players and what the step has already computed, so that nothing runs twice.

    Attributes:
      role: whose loss is being built.
      players: bound to the weights that are being differentiated.
      fake: generated images (constants for the discriminator) and their judgement.
      real: the real images and their judgement; None in the generator's update.
      picture: the generator's output with the stages that methods want; None in the discriminator's update.
      z: latents of `fake`.
      trained: the leaves of `role`'s network that are being differentiated, as a tree.
      keys: one random key per image, of this method's own stream.
      images_seen: real images shown to the discriminator before this step.
    """

    role: Role
    players: Players
    fake: Seen
    real: Seen | None
    picture: Picture | None
    z: Array
    trained: Tree
    keys: Keys
    images_seen: Array


class Observed(NamedTuple):
    """What `update` sees of the step that has just ended: the last discriminator update's logits over the whole batch.

    Attributes:
      real, fake: logits `(n,)` (of the first head where there are several).
      real_labels, fake_labels: labels of the two.
      batch: real images in one discriminator update.
      images_seen: real images shown to the discriminator, this step included.
    """

    real: Float[Array, " n"]
    fake: Float[Array, " n"]
    real_labels: Labels
    fake_labels: Labels
    batch: int
    images_seen: Array


Terms = Mapping[str, Array]


@dataclass(frozen=True)
class Method:
    """Base of all methods. Settings are dataclass fields; `every` is the lazy interval of `loss`, in iterations.

    A `loss` hook returns `(scalar, {name: scalar})`, or None for a role that it leaves alone; the step multiplies the
    scalar by `every` (a term that is computed every k-th iteration weighs k times as much there, Karras et al. 2020,
    section B), the named scalars are only logged, as `<method>/<name>`.

    Class attributes:
      name: the registered name.
      claims: resources that only one method of a run may hold.
      wants: per role, names of stages that the step must keep for this method's `loss`.
      settles: whether a snapshot stores, as the discriminator's own, the weights that this method's `weights` gives it.
    """

    every: int = field(default=1, kw_only=True)

    name: ClassVar[str] = ""
    claims: ClassVar[tuple[str, ...]] = ()
    wants: ClassVar[Mapping[Role, tuple[str, ...]]] = {}
    settles: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if "loss" in self.hooks():
            self.limit("every", 1)
        elif self.every != 1:
            raise UserError(f"{self.name}.every", self.every, "1, since this method has no loss term to be lazy with")
        self.check()

    def limit(self, setting: str, low: int | float, high: int | float = math.inf) -> None:
        """Raises `UserError` unless the setting is a finite number from `low` to `high`, both included."""
        value = getattr(self, setting)
        if not (math.isfinite(value) and low <= value <= high):
            allowed = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise UserError(f"{self.name}.{setting}", value, allowed)

    def check(self) -> None:
        """Raises `UserError` for a setting out of range."""

    def needs(self, networks: Networks) -> None:
        """Raises `UserError` where the networks lack what this method needs (a class head, say)."""

    @classmethod
    def hooks(cls) -> frozenset[str]:
        """Returns the names of the hooks that this method defines."""
        return frozenset(hook for hook in HOOKS if hasattr(cls, hook))


REGISTRY: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: makes a method known under `name`; a name can be taken only once."""

    def add(method: type[Method]) -> type[Method]:
        if name in REGISTRY:
            raise ValueError(f"method name {name!r} is taken by {REGISTRY[name].__module__}")
        if "update" in method.hooks() and "start" not in method.hooks():
            raise ValueError(f"method {name!r} has an update without a start, which makes what an update moves")
        method.name = name
        REGISTRY[name] = method
        return method

    return add


def parse_method(text: str) -> Method:
    """Makes a method from its line in a config, such as `"r1(gamma=2.0, every=16)"`.

    Only literals are accepted as settings. Raises `UserError` naming an unknown method, an unknown setting or a value
    out of range.
    """
    form = "a line such as r1(gamma=2.0), settings by name"
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise UserError("methods", text, form) from error
    if isinstance(node, ast.Name):
        node = ast.Call(func=node, args=[], keywords=[])
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args):
        raise UserError("methods", text, form)
    method = REGISTRY[one_of("methods", node.func.id, REGISTRY)]
    known = {setting.name for setting in _settings(method)}
    declared = get_type_hints(method)
    settings: dict[str, Any] = {}
    for keyword in node.keywords:
        name = one_of(f"methods.{node.func.id}", keyword.arg or "**", known)
        if name in settings:
            raise UserError(f"{node.func.id}.{name}", text, "one value for each setting")
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError) as error:
            raise UserError(f"{node.func.id}.{name}", ast.unparse(keyword.value), "a literal value") from error
        settings[name] = _as_declared(f"{node.func.id}.{name}", value, declared[name])
    return method(**settings)


def _settings(method: type[Method]) -> list[Field]:
    """The settings that a user may write, the method's own first; `every` only where a loss term can be lazy."""
    own = [setting for setting in fields(method) if setting.name != "every"]
    return own + [setting for setting in fields(method) if setting.name == "every" and "loss" in method.hooks()]


def _as_declared(name: str, value: Any, declared: Any) -> Any:
    """Checks a setting against its annotation; an integer is welcome where a float is declared."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise UserError(name, value, ", ".join(map(str, arguments)))
        return value
    if origin is tuple:
        if not isinstance(value, tuple) or not all(type(item) is arguments[0] for item in value):
            raise UserError(name, value, f"a tuple of {arguments[0].__name__}")
        return value
    allowed = arguments if origin in (Union, UnionType) else (declared,)
    if type(value) in allowed:
        return value
    if float in allowed and type(value) is int:
        return float(value)
    raise UserError(name, value, " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed))


def describe(method: type[Method]) -> str:
    """Returns the first line of a method's file and its settings with defaults, for `gantransfer list methods`."""
    first = (inspect.getdoc(inspect.getmodule(method)) or "").partition("\n")[0]
    settings = ", ".join(f"{setting.name}={setting.default!r}" for setting in _settings(method))
    return f"{method.name}({settings}): {first}"


def check_together(methods: tuple[Method, ...]) -> None:
    """Raises `UserError` where two methods claim one thing, or one method stands twice; names both."""
    holders: dict[str, str] = {}
    for method in methods:
        for claim in (*method.claims, f"the method {method.name}"):
            if claim in holders:
                raise UserError("methods", f"{holders[claim]}, {method.name}", f"one method only for {claim}")
            holders[claim] = method.name
