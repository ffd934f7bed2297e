"""One streaming pass over pictures: what feature networks say of them, as moments or as rows, on any devices.

The generator, the rule that makes bytes and all feature networks are one program, its batch split over the devices.
The last batch of a pass is padded, and the padding cut off again: exactly as many pictures count as were asked for,
and as many batches run as that takes. Moments are merged in float64 on the host, so nothing but a portion of rows is
kept where a metric needs no rows.

A pass can stop at any time: after every portion its state goes to disk (`Parts`), and the same pass begins there.
Statistics of real pictures are kept (`Reference`) under a key of content, preprocessing and the network's weights.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from gantransfer.errors import UserError
from gantransfer.metrics.frechet import Moments
from gantransfer.metrics.pictures import Maker, Pictures
from gantransfer.metrics.progress import Progress
from gantransfer.pretrained.download import cache_folder

# Raised whenever what is stored, or how it is computed, changes.
RULES = 1
MOMENTS, FEATURES = "moments", "features"
# Rows between two states on disk, and between two merges of moments.
PORTION = 1024
# Batch on a CPU, and for each accelerator.
BATCH = 64
# A larger share of values far outside [-1, 1] is said.
MOST_OUTSIDE = 0.01
Wants = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Statistics:
    """What is known of the features of some pictures.

    Attributes:
      count: how many pictures.
      moments: of the features, where asked for.
      rows: outputs of the network that were asked for, by name, float32 `(count, d)`.
    """

    count: int
    moments: Moments | None = None
    rows: Mapping[str, Float[np.ndarray, "n _"]] = field(default_factory=dict)

    @property
    def features(self) -> Float[np.ndarray, "n d"]:
        """The rows of the network's features."""
        return self.rows[FEATURES]


def collect(
    pictures: Pictures,
    networks: Mapping[str, Any],
    wants: Wants,
    *,
    batch: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    parts: "Parts | None" = None,
    progress: Progress | None = None,
) -> dict[str, Statistics]:
    """Passes all pictures through all networks once.

    Args:
      pictures: a side of the comparison.
      networks: by name; each a feature network with `params` and a pure `forward(params, images, want)`.
      wants: for each of them what is wanted: `moments` of the features, and rows of outputs by name.
      batch: pictures per program call, made a multiple of the devices; None chooses.
      devices: None: all.
      parts: where to keep what is done so far; None: nowhere.
      progress: told how far the pass is.

    Returns:
      Statistics by network.

    Raises:
      UserError: pictures or features that are not finite, pictures that a network does not take, no pictures.
    """
    count = len(pictures)
    if not count:
        raise UserError("images", pictures.name, "at least one image")
    mesh = _mesh(devices)
    batch = batch_size(count, mesh.size, batch, pictures.group)
    done = _Collected({name: wants[name] for name in networks}, parts)
    start = done.resume(count)
    run = _Program(pictures, networks, done.wants, mesh)
    portion, since = _portion(batch), start
    if progress is not None:
        progress.begin(start, count)
    # One batch is computed while the next one is read.
    pending: tuple[Any, int] | None = None
    for first in [*range(start, count, batch), count]:
        following = None
        if first < count:
            rows = np.arange(first, min(first + batch, count))
            following = run(rows, batch), len(rows)
        if pending is not None:
            done.add(run.fetch(*pending))
            if first - since >= portion or first >= count:
                done.close_portion(min(first, count))
                since = first
            if progress is not None:
                progress.at(min(first, count))
        pending = following
    if run.outside > MOST_OUTSIDE * max(count - start, 1):
        share = 100 * run.outside / (count - start)
        print(f"{pictures.name}: {share:.3g} % of values lie outside [-1.5, 1.5]; they are cut off", file=sys.stderr)
    return done.statistics(count)


def batch_size(count: int, devices: int, wanted: int | None = None, group: int = 1) -> int:
    """Pictures per program call: a multiple of the devices and of a group, and no larger than it takes."""
    if wanted is not None and wanted < 1:
        raise UserError("batch", wanted, "at least 1")
    if wanted is None:
        wanted = BATCH if jax.default_backend() == "cpu" else BATCH * devices
    multiple = math.lcm(devices, group)
    return -(-min(wanted, count) // multiple) * multiple


def _portion(batch: int) -> int:
    return -(-PORTION // batch) * batch


def _mesh(devices: Sequence[jax.Device] | None) -> Mesh:
    listed = list(jax.devices() if devices is None else devices)
    return jax.make_mesh((len(listed),), ("data",), axis_types=(AxisType.Auto,), devices=listed)


@partial(jax.jit, static_argnums=(0, 1))
def _run(maker: Maker, forwards: tuple[tuple[Any, tuple[str, ...]], ...], constants: Any, params: Any, *args: Any):
    images, outside = maker(constants, *args)
    return outside, [forward(p, images, want) for (forward, want), p in zip(forwards, params, strict=True)]


class _Program:
    """The compiled pass of one batch, its weights in place."""

    def __init__(self, pictures: Pictures, networks: Mapping[str, Any], wants: Wants, mesh: Mesh):
        self.pictures, self.names = pictures, tuple(networks)
        # Features always: that they are finite is the one thing known of every network.
        self.forwards = tuple(
            (network.forward, tuple(sorted((wants[name] - {MOMENTS}) | {FEATURES})))
            for name, network in networks.items()
        )
        self.outside = 0.0
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.split = NamedSharding(mesh, PartitionSpec("data"))
        self.constants = jax.device_put(pictures.constants, self.everywhere)
        self.params = jax.device_put(tuple(network.params for network in networks.values()), self.everywhere)

    def __call__(self, rows: Int[np.ndarray, " b"], batch: int) -> Any:
        """Starts a batch; its padding repeats the last row, where that does not change the others' pictures."""
        if self.pictures.group > 1:
            rows = np.arange(rows[0], rows[0] + batch)
        arguments = [
            np.concatenate([array, np.repeat(array[-1:], batch - len(rows), axis=0)]) if len(rows) < batch else array
            for array in self.pictures.arguments(rows)
        ]
        placed = [jax.device_put(array, self.split) for array in arguments]
        return _run(self.pictures.maker, self.forwards, self.constants, self.params, *placed)

    def fetch(self, result: Any, count: int) -> dict[str, dict[str, Float[np.ndarray, "b _"]]]:
        """Waits for a batch; returns the rows of its pictures without the padding."""
        outside, outputs = _to_host(result)
        self.outside += float(outside[:count].sum())
        bad = int(np.count_nonzero(~np.isfinite(outside[:count])))
        if bad:
            value = f"{bad} of {count} in one batch of {self.pictures.name} hold NaN or infinity"
            raise UserError("generated images", value, "finite pixels")
        found = {}
        for name, (_, kinds), output in zip(self.names, self.forwards, outputs, strict=True):
            found[name] = {kind: np.asarray(output[kind][:count], np.float32) for kind in kinds}
            rows = found[name][FEATURES]
            if rows.ndim != 2:
                raise UserError(f"feature network {name}", f"features of shape {rows.shape[1:]}", "one row per image")
            broken = int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))
            if broken:
                value = f"{broken} of {count} in one batch of {self.pictures.name} hold NaN or infinity"
                raise UserError(f"features of {name}", value, "finite features")
        return found


def _to_host(tree: Any) -> Any:
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree)


@dataclass
class _Collected:
    """Rows and moments of the pass so far."""

    wants: Wants
    parts: "Parts | None"
    moments: dict[str, Moments] = field(default_factory=dict)
    rows: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=dict)
    open_rows: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=dict)

    def resume(self, count: int) -> int:
        """Takes up what is on disk; returns the number of the first picture that is not done."""
        found = None if self.parts is None else self.parts.load(self.wants, count)
        if found is None:
            return 0
        first, self.moments, rows = found
        self.rows = {key: [array] for key, array in rows.items()}
        return first

    def add(self, outputs: Mapping[str, Mapping[str, Float[np.ndarray, "b _"]]]) -> None:
        """Adds a batch."""
        for name, kinds in outputs.items():
            for kind, array in kinds.items():
                self.open_rows.setdefault((name, kind), []).append(array)

    def close_portion(self, first: int) -> None:
        """Merges the open rows, and writes the state: the next picture is number `first`."""
        closed = {key: np.concatenate(arrays) for key, arrays in self.open_rows.items()}
        self.open_rows = {}
        for name, wanted in self.wants.items():
            if MOMENTS in wanted:
                own = Moments.of(closed[name, FEATURES])
                self.moments[name] = self.moments[name].merge(own) if name in self.moments else own
        kept = {key: array for key, array in closed.items() if key[1] in self.wants[key[0]]}
        for key, array in kept.items():
            self.rows.setdefault(key, []).append(array)
        if self.parts is not None:
            self.parts.save(first, self.moments, kept)

    def statistics(self, count: int) -> dict[str, Statistics]:
        """What was wanted."""
        joined = {key: np.concatenate(arrays) for key, arrays in self.rows.items()}
        return {
            name: Statistics(
                count, self.moments.get(name), {kind: joined[name, kind] for kind in sorted(wanted - {MOMENTS})}
            )
            for name, wanted in self.wants.items()
        }


# ------------------------------------------------------------------------------------------------------------ on disk


def key_of(value: Any) -> str:
    """A short name for a JSON value: equal for equal values, different for others."""
    return hashlib.sha256(json.dumps([RULES, value], sort_keys=True).encode()).hexdigest()[:32]


def network_identity(network: Any) -> dict[str, Any]:
    """What the features of a network are a function of, beside the pictures: weights and preprocessing."""
    preprocessing = network.info.get("preprocessing")
    return {"network": network.name, "sha256": network.sha256, "preprocessing": preprocessing}


class Parts:
    """The state of a pass on disk: rows of each portion, and one file that says how far it is.

    Args:
      folder: of this pass alone; named by what it is a function of (`key_of`), so that no other pass is taken up.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def of(cls, pictures: Pictures, networks: Mapping[str, Any], wants: Wants) -> "Parts":
        """In the cache, under a key of pictures, networks and what is wanted of them."""
        asked = {name: [network_identity(network), sorted(wants[name])] for name, network in networks.items()}
        return cls(cache_folder() / "statistics" / "parts" / key_of([dict(pictures.identity), len(pictures), asked]))

    def save(self, first: int, moments: Mapping[str, Moments], rows: Mapping[tuple[str, str], np.ndarray]) -> None:
        """Writes a portion and then the state, each as a whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for (name, kind), array in rows.items():
            _write_arrays(self.folder / f"{kind}-{key_of(name)}-{first:09d}.npz", {"rows": array})
        state: dict[str, np.ndarray] = {"first": np.asarray(first)}
        for name, own in moments.items():
            state |= {f"{name}/count": np.asarray(own.count), f"{name}/mean": own.mean, f"{name}/scatter": own.scatter}
        _write_arrays(self.folder / "state.npz", state)

    def load(
        self, wants: Wants, count: int
    ) -> tuple[int, dict[str, Moments], dict[tuple[str, str], np.ndarray]] | None:
        """Reads how far the pass was; None where there is nothing to go on from."""
        state = _read_arrays(self.folder / "state.npz")
        if state is None or not 0 < int(state["first"]) <= count:
            return None
        first = int(state["first"])
        moments = {
            name: Moments(int(state[f"{name}/count"]), state[f"{name}/mean"], state[f"{name}/scatter"])
            for name, wanted in wants.items()
            if MOMENTS in wanted
        }
        rows = {}
        for name, wanted in wants.items():
            for kind in wanted - {MOMENTS}:
                files = sorted(self.folder.glob(f"{kind}-{key_of(name)}-*.npz"))
                arrays = [_read_arrays(path) for path in files if int(path.stem.rpartition("-")[2]) <= first]
                if not arrays or any(array is None for array in arrays):
                    return None
                rows[name, kind] = np.concatenate([array["rows"] for array in arrays])
                if len(rows[name, kind]) != first:
                    return None
        return first, moments, rows

    def clear(self) -> None:
        """Removes it all."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Reference:
    """Statistics of real pictures, kept for all later evaluations.

    The key holds the content of the set (a changed file changes it), mirroring, the network's weights and its
    preprocessing. So statistics of another size, split, network or resize rule are never taken for these.

    Args:
      folder: None: `statistics` in the cache folder (`$GANTRANSFER_CACHE`).
    """

    def __init__(self, folder: Path | None = None):
        self.folder = cache_folder() / "statistics" if folder is None else folder

    def key(self, pictures: Pictures, network: Any) -> str:
        """The name of an entry."""
        return key_of([dict(pictures.identity), len(pictures), network_identity(network)])

    def load(self, pictures: Pictures, network: Any, kinds: frozenset[str]) -> Statistics | None:
        """What is kept, if all of it is there."""
        place, moments, rows = self.folder / self.key(pictures, network), None, {}
        for kind in kinds:
            arrays = _read_arrays(place / f"{kind}.npz")
            if arrays is None:
                return None
            if kind == MOMENTS:
                moments = Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
            else:
                rows[kind] = arrays["rows"]
        return Statistics(len(pictures), moments, rows)

    def save(self, pictures: Pictures, network: Any, statistics: Statistics) -> None:
        """Keeps statistics, beside what is kept already; a full disk keeps none, which is said."""
        place = self.folder / self.key(pictures, network)
        try:
            place.mkdir(parents=True, exist_ok=True)
            about = {"pictures": pictures.name, "count": len(pictures), **network_identity(network)}
            (place / "about.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
            if (own := statistics.moments) is not None:
                content = {"count": np.asarray(own.count), "mean": own.mean, "scatter": own.scatter}
                _write_arrays(place / f"{MOMENTS}.npz", content)
            for kind, rows in statistics.rows.items():
                _write_arrays(place / f"{kind}.npz", {"rows": rows})
        except OSError as error:
            print(f"reference statistics are not kept: {error}", file=sys.stderr)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A whole file or none, whatever happens meanwhile."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(path)


def _read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None where it is missing or damaged, which is said."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        print(f"{path} cannot be read and is made again: {error}", file=sys.stderr)
        return None


def gather(
    pictures: Pictures,
    networks: Mapping[str, Any],
    wants: Wants,
    *,
    reference: Reference | None = None,
    parts: Callable[..., Parts] | None = None,
    **settings: Any,
) -> dict[str, Statistics]:
    """`collect`, but of kept statistics only what is missing is computed, and that is kept.

    Args:
      pictures, networks, wants: as `collect`.
      reference: where statistics are kept; None: nowhere.
      parts: makes the `Parts` of a pass, `Parts.of`; None: an interrupted pass begins again.
      settings: for `collect`.
    """
    found: dict[str, Statistics] = {}
    if reference is not None:
        for name, network in networks.items():
            kept = reference.load(pictures, network, wants[name])
            if kept is not None:
                found[name] = kept
    missing = {name: network for name, network in networks.items() if name not in found}
    if missing:
        own = None if parts is None else parts(pictures, missing, wants)
        made = collect(pictures, missing, wants, parts=own, **settings)
        if reference is not None:
            for name, network in missing.items():
                reference.save(pictures, network, made[name])
            if own is not None:
                own.clear()
        found |= made
    return found
