"""The one table of fields: default, type, range and a line of help for everything that a run can be told.

`defaults()` makes a config, `set_field` changes one field from text or a value, `validate` checks them all;
docs/config.md is `markdown_table()`. Architecture options stand under `model.` and are checked by the family that has
them.
"""

import ast
import difflib
import math
from dataclasses import dataclass
from typing import Any

import ml_collections

from gantransfer.errors import UserError, one_of


@dataclass(frozen=True)
class Field:
    """One field of the config.

    Attributes:
      default: value where nothing is said; None means "decided at start", as `help` tells.
      kind: type of a value that is not None; `tuple` is a tuple of strings.
      help: one line, with the unit.
      low, high: inclusive range of a number.
      choices: allowed values of a string.
      optional: whether None may be set.
      fixed: whether resuming with another value is refused (it would make another run of it).
    """

    default: Any
    kind: type
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    optional: bool = False
    fixed: bool = True

    @property
    def allowed(self) -> str:
        """What this field accepts, in words."""
        if self.choices:
            words = ", ".join(self.choices)
        else:
            words = {
                int: "an integer",
                float: "a number",
                bool: "true or false",
                str: "text",
                tuple: "a tuple of strings",
            }[self.kind]
            if self.low is not None and self.high is not None:
                words += f" from {self.low:g} to {self.high:g}"
            elif self.low is not None:
                words += f" of at least {self.low:g}"
        return words + (", or None" if self.optional else "")


FIELDS: dict[str, Field] = {
    "source": Field(
        None,
        str,
        "where the networks come from: a catalogue name, a run, a snapshot; None: from scratch",
        optional=True,
    ),
    "mode": Field("full", str, "what is transferred and trained (docs/finetuning.md)"),
    "workdir": Field(
        None, str, "the run's folder; running the same command again resumes it", optional=True, fixed=False
    ),
    "seed": Field(0, int, "every random number of the run is folded from it", 0, 2**31 - 1),
    "kimg": Field(50.0, float, "length of the run in thousands of real images shown to D", 0, fixed=False),
    "batch": Field(64, int, "real images in one update of D, over all devices", 1),
    "methods": Field((), tuple, 'methods in order, such as ("r1(gamma=2.0)",); `gantransfer list methods` shows all'),
    "data.path": Field(None, str, "folder, zip, tfds:NAME[:split], digits or glyphs (docs/data.md)", optional=True),
    "data.images": Field(
        None, int, "few-shot: this many images in all, drawn by the seed, spread over the classes", 1, optional=True
    ),
    "data.per_class": Field(None, int, "few-shot: this many images of each class", 1, optional=True),
    "data.files": Field(None, str, "few-shot: a list of files (text, JSON, or JSON file:key)", optional=True),
    "data.draw_seed": Field(None, int, "seed of the few-shot draw; None: the run's seed", 0, optional=True),
    "data.mirror": Field(False, bool, "flip each shown image horizontally with probability one half"),
    "data.fit": Field("crop", str, "how an image becomes square", choices=("crop", "pad", "exact")),
    "data.resolution": Field(
        None, int, "side in pixels; None: the source's, or the set's own from scratch", 4, 4096, optional=True
    ),
    "data.channels": Field(None, int, "1 or 3; None: the source's, or the set's own from scratch", 1, 3, optional=True),
    "data.background": Field(0, int, "grey level 0..255 under transparent pixels and around padded images", 0, 255),
    "data.on_corrupt": Field("refuse", str, "what to do with a file that cannot be read", choices=("refuse", "skip")),
    "data.device_limit_mb": Field(
        2048, int, "sets up to this size (as uint8) live on the device, larger ones stream", 0, fixed=False
    ),
    "data.workers": Field(2, int, "reading processes of a streamed set; 0: threads", 0, fixed=False),
    "transfer.classes": Field(
        None,
        str,
        "where the rows of the target's classes come from; None: kept where count and names agree",
        choices=("mean", "nearest", "random", "list", "copy", "from_images", "from_images_weighted", "fresh"),
        optional=True,
    ),
    "transfer.class_map": Field(
        (), tuple, 'for list and copy: "target=source" or "target=source+source", names or indices'
    ),
    "transfer.class_noise": Field(0.0, float, "standard deviation of the noise added to new rows", 0),
    "transfer.projection_scale": Field(
        "compensate", str, "whether D's projection is rescaled after its rows change", choices=("compensate", "none")
    ),
    "transfer.channels": Field(
        None, int, "1 or 3: networks of the source are fitted to that many colour channels", 1, 3, optional=True
    ),
    "transfer.resolution": Field(
        None,
        int,
        "twice or half of the source's: its highest block is added or dropped (stylegan2)",
        4,
        4096,
        optional=True,
    ),
    "transfer.warmup_kimg": Field(
        0.0, float, "D alone trains while this many thousand real images are shown, so that a fresh D can learn", 0
    ),
    "transfer.warmup_gap": Field(
        None,
        float,
        "a warm-up ends earlier once D's mean logit of reals is this much above that of fakes",
        optional=True,
    ),
    "transfer.init_g": Field(
        None, str, "weights of G at the start; None: by mode", choices=("source", "random"), optional=True
    ),
    "transfer.init_d": Field(
        None, str, "weights of D at the start; None: by mode", choices=("source", "random"), optional=True
    ),
    "transfer.train_g": Field((), tuple, "mode custom: patterns over groups or paths of G that train"),
    "transfer.train_d": Field((), tuple, "mode custom: patterns over groups or paths of D that train"),
    "transfer.batch_norm": Field(
        None,
        str,
        "G's batch norm while training; None: stored unless a convolution of G trains",
        choices=("stored", "batch", "batch_frozen"),
        optional=True,
    ),
    "objective.loss": Field(
        "non_saturating",
        str,
        "adversarial loss",
        choices=("non_saturating", "hinge", "least_squares", "wasserstein", "saturating"),
    ),
    "objective.d_steps": Field(1, int, "updates of D per update of G", 1, 100),
    "objective.accumulate": Field(1, int, "micro-batches that one update's gradient is summed over", 1),
    "objective.joint_pass": Field(
        None, bool, "fakes and reals through D as one batch; None: as the family does", optional=True
    ),
    "objective.fake_labels": Field("uniform", str, "labels of the fakes", choices=("uniform", "data")),
    "optimizer.lr_g": Field(2e-4, float, "learning rate of G's weights", 0),
    "optimizer.lr_d": Field(1e-3, float, "learning rate of D", 0),
    "optimizer.lr_class_embedding": Field(
        None, float, "learning rate of G's class embedding; None: 50 times lr_d", 0, optional=True
    ),
    "optimizer.rates": Field((), tuple, 'other rates by role and group, such as ("generator/conditional_norm=5e-5",)'),
    "optimizer.beta1": Field(0.0, float, "Adam's decay of the first moment", 0, 0.9999),
    "optimizer.beta2": Field(0.99, float, "Adam's decay of the second moment", 0, 0.999999),
    "optimizer.eps": Field(1e-8, float, "Adam's epsilon", 0),
    "ema.decay": Field(0.995, float, "ceiling of the decay of G's running average, per iteration", 0, 0.9999999),
    "ema.start_kimg": Field(0.0, float, "until then the average is a copy", 0),
    "ema.rampup": Field(
        0.05, float, "half-life at most this share of the images seen; None: no ramp", 0, 1, optional=True
    ),
    "compute.dtype": Field(
        "float32", str, "operands of convolutions and matrix products", choices=("float32", "bfloat16")
    ),
    "compute.convolution": Field(
        "rewritten", str, "form of the convolutions (docs/performance.md)", choices=("rewritten", "plain")
    ),
    "devices.count": Field(None, int, "use the first so many devices; None: all", 1, optional=True, fixed=False),
    "devices.model": Field(1, int, "size of the mesh axis that parameters are sharded over", 1, fixed=False),
    "devices.rules": Field(
        (), tuple, 'leaves of the state sharded over it: "pattern=axis", such as ("*/kernel=-1",)', fixed=False
    ),
    "run.tick_kimg": Field(1.0, float, "status line and metrics every so many kimg", 0.001),
    "run.checkpoint_kimg": Field(5.0, float, "checkpoint every so many kimg", 0.001, fixed=False),
    "run.snapshot_kimg": Field(10.0, float, "snapshot and image grid every so many kimg", 0.001),
    "run.keep": Field(2, int, "checkpoints kept beside the best", 1, fixed=False),
    "run.keep_snapshots": Field(20, int, "newest snapshots kept", 1, fixed=False),
    "run.grid_columns": Field(8, int, "images of each class in the grids", 1, 64),
    "run.tensorboard": Field(True, bool, "write TensorBoard files where tensorboardX is installed", fixed=False),
    "run.compile_cache": Field(
        "~/.cache/gantransfer/compiled", str, "folder of compiled programs; None: none", optional=True, fixed=False
    ),
    "evaluate.protocol": Field(
        None, str, "protocol of the evaluations during training (docs/metrics.md); None: none", optional=True
    ),
    "evaluate.metrics": Field((), tuple, 'metrics instead of the protocol\'s, such as ("fid", "prdc")'),
    "evaluate.features": Field(
        None,
        str,
        "feature network of the evaluations; without protocol and metrics: the quickstart's measure by a classifier",
        optional=True,
    ),
    "evaluate.weights": Field(
        (), tuple, "files of published weights: NAME=PATH, or one PATH for evaluate.features", fixed=False
    ),
    "evaluate.data": Field(None, str, "reference images; None: the run's own images", optional=True),
    "evaluate.kimg": Field(
        (), tuple, 'kimg at which to evaluate beside the end, such as ("0", "6.4"); empty: at every snapshot'
    ),
    "evaluate.every_kimg": Field(
        None, float, "evaluate every so many kimg, instead of at every snapshot", 0.001, optional=True
    ),
    "evaluate.samples": Field(
        None, int, "generated images per evaluation; None: the protocol's number, or 2,000", 2, optional=True
    ),
    "evaluate.best": Field(
        None, str, "metric by which the best state is kept; None: the first that is measured", optional=True
    ),
    "evaluate.stop_after": Field(
        None, int, "stop after so many evaluations in a row that were not better", 1, optional=True, fixed=False
    ),
    "evaluate.at_end": Field(None, str, "protocol of one more, full evaluation at the end", optional=True, fixed=False),
}


def defaults() -> ml_collections.ConfigDict:
    """Returns a config with every field at its default, and an empty `model`."""
    config = ml_collections.ConfigDict({"model": {}}, type_safe=False)
    for name, field in FIELDS.items():
        *parents, leaf = name.split(".")
        node = config
        for parent in parents:
            if parent not in node:
                node[parent] = ml_collections.ConfigDict(type_safe=False)
            node = node[parent]
        node[leaf] = field.default
    return config.lock()


def get_field(config: ml_collections.ConfigDict, name: str) -> Any:
    """Returns the value of a field by its dotted name."""
    node: Any = config
    for part in name.split("."):
        node = node[part]
    return node


def set_field(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
    """Sets a field by its dotted name; text (as on a command line) is read as the field's type.

    Raises `UserError` for a misspelt name (with the nearest one) or a value that is out of range.
    """
    if name.startswith("model."):
        # Which text is a number is known to the family alone: "32_64" names two sizes, and is 3264 to Python.
        with config.unlocked():
            config.model[name.removeprefix("model.")] = value
        return
    field = _find(name, value)
    *parents, leaf = name.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[leaf] = _checked(name, field, _read(field, value))


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks names, types and ranges of every field; raises `UserError` for the first that is wrong."""
    for name, value in flatten(config).items():
        if not name.startswith("model."):
            field = _find(name, value)
            set_field(config, name, _checked(name, field, _read(field, value)))
    micro = config.objective.accumulate
    if config.batch % micro:
        raise UserError("objective.accumulate", micro, f"a divisor of the batch, {config.batch}")
    if config.ema.start_kimg and config.ema.rampup is not None and config.ema.rampup <= 0:
        raise UserError("ema.rampup", config.ema.rampup, "above 0, or None")


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as `{dotted name: value}`, lists as tuples."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key in node:
            value = node[key]
            if isinstance(value, ml_collections.ConfigDict | dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = tuple(value) if isinstance(value, list) else value

    walk(config, "")
    return flat


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as nested plain dictionaries."""
    return config.to_dict()


def markdown_table() -> str:
    """Returns the table of docs/config.md."""
    lines = ["| field | default | allowed | what it is |", "| --- | --- | --- | --- |"]
    for name, field in FIELDS.items():
        lines.append(f"| `{name}` | `{field.default!r}` | {field.allowed} | {field.help} |".replace("\n", " "))
    return "\n".join(lines) + "\n"


def literal(value: Any) -> Any:
    """Reads text as a Python literal, and true, false, none and null in any case; other text stays text."""
    if not isinstance(value, str):
        return value
    words = {"true": True, "false": False, "none": None, "null": None}
    if value.lower() in words:
        return words[value.lower()]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _find(name: str, value: Any) -> Field:
    """Returns the field of that name; raises `UserError` with the nearest names (there are too many to list)."""
    if name not in FIELDS:
        last = name.rpartition(".")[2]
        near = [known for known in FIELDS if known.rpartition(".")[2] == last]
        near = near or difflib.get_close_matches(name, FIELDS, n=1)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"config.{name}", value, f"a field that `gantransfer list config` shows{meant}")
    return FIELDS[name]


def _read(field: Field, value: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, str):
        return value
    if field.kind is str:
        return None if field.optional and value in ("None", "none", "") else value
    if field.kind is tuple:
        # Commas stand inside a method's settings, so text is one entry unless it is written as a tuple.
        read = literal(value) if value.strip().startswith(("(", "[")) else (value,) if value else ()
        return tuple(read) if isinstance(read, list | tuple) else read
    read = literal(value)
    return int(read) if field.kind is int and isinstance(read, float) and read.is_integer() else read


def _checked(name: str, field: Field, value: Any) -> Any:
    if value is None:
        if field.optional:
            return None
        raise UserError(name, value, field.allowed)
    if field.kind is float and type(value) is int:
        value = float(value)
    if type(value) is not field.kind or (field.kind is tuple and not all(isinstance(v, str) for v in value)):
        raise UserError(name, value, field.allowed)
    if field.choices:
        return one_of(name, value, field.choices)
    below = field.low is not None and value < field.low
    above = field.high is not None and value > field.high
    if below or above or (field.kind is float and not math.isfinite(value)):
        raise UserError(name, value, field.allowed)
    return value
