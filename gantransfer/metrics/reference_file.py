"""Reference statistics in a file: mean and covariance of features of real images, as published ones are exchanged.

An npz file with `mu` (d,) and `sigma` (d, d), as of pytorch-fid and clean-fid, and where known `count`, the number of
images. Files that are written here also hold, as text, what the statistics are a function of (`about`, JSON), so that
a file of another network or of other pixels is refused. Of clean-fid's files the name tells
(`NAME_MODE_SPLIT_RESOLUTION.npz`).
"""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gantransfer.errors import UserError
from gantransfer.metrics.frechet import Moments

KEYS = "mu (d,) and sigma (d, d) of one d, finite, sigma symmetric"
# Where a file does not say how many images it was made of, its covariance counts as it is.
COUNT_UNKNOWN = 2**31
# Half-precision sums and threads leave published covariances a little asymmetric.
ASYMMETRY = 1e-6
_CLEAN_FID = re.compile(
    r"(?P<name>.+)_(?P<mode>clean|legacy_pytorch|legacy_tensorflow)(?P<network>_clip_vit_b_32)?"
    r"_(?P<split>train|test|trainfull|trainval70k|trainval|val|custom)_(?P<size>\d+|na)"
)


@dataclass(frozen=True, eq=False)
class ReferenceFile:
    """Statistics of real images out of a file; a side of Fréchet distances.

    Attributes:
      path: the file.
      mean, covariance: of the features, float64.
      count: images; None where the file does not say.
      sha256: of the file's bytes.
      about: what the statistics are a function of, where the file or its name says so: `network`, `network_sha256`,
        `output`, `preprocessing`, `pipeline`, `split`.
    """

    path: Path
    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    count: int | None
    sha256: str
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's."""
        return self.path.name

    def moments(self, ddof: int) -> Moments:
        """Moments whose covariance, divided by the count minus `ddof`, is the stored one."""
        return Moments.of_covariance(self.mean, self.covariance, self.count or COUNT_UNKNOWN, ddof)

    def check(self, network: Any, output: str, width: int) -> None:
        """Raises `UserError` unless the statistics can be those of an output of a network, so many numbers wide."""
        if len(self.mean) != width:
            value = f"{self.name}: {len(self.mean)} numbers"
            raise UserError("--reference", value, f"statistics of {output} of {network.name}, {width} numbers")
        # As JSON gives it back.
        pixels = json.loads(json.dumps(network.info.get("preprocessing") or {}))
        used = {"network": network.name, "network_sha256": network.sha256, "output": output, "preprocessing": pixels}
        used["pipeline"] = pixels.get("pipeline")
        for key, value in used.items():
            if key in self.about and self.about[key] != value:
                told = f"{self.name}: made with {key} {self.about[key]}"
                raise UserError("--reference", told, f"statistics made with {key} {value}, or another protocol")


def read_reference(path: str | Path) -> ReferenceFile:
    """Reads a file of statistics; nothing in it is run.

    Raises:
      UserError: no such file, no npz file, keys that are missing, shapes that do not fit, numbers that are not finite.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in ("mu", "sigma", "count", "about") if key in file.files}
            keys = file.files
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError("--reference", str(path), f"an npz file with {KEYS} ({error})") from error
    if not {"mu", "sigma"} <= set(found):
        raise UserError(
            "--reference", f"{path.name} with {', '.join(sorted(keys)) or 'nothing'}", f"a file with {KEYS}"
        )
    mean, covariance = found["mu"], found["sigma"]
    shapes = f"{path.name}: mu {mean.shape}, sigma {covariance.shape}"
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        raise UserError("--reference", shapes, KEYS)
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise UserError("--reference", f"{path.name}: {mean.dtype} and {covariance.dtype}", KEYS)
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError("--reference", f"{path.name}: NaN or infinity", KEYS)
    if np.abs(covariance - covariance.T).max() > ASYMMETRY * np.abs(covariance).max():
        raise UserError("--reference", f"{path.name}: sigma is not symmetric", KEYS)
    about = _about(path, found.get("about"))
    covariance = (covariance + covariance.T) / 2
    return ReferenceFile(path, mean, covariance, _count(path, found), hashlib.sha256(content).hexdigest(), about)


def _count(path: Path, found: Mapping[str, np.ndarray]) -> int | None:
    if "count" not in found:
        return None
    count = found["count"]
    if count.size != 1 or count.dtype.kind not in "iu" or int(count.reshape(())) < 2:
        raise UserError("--reference", f"{path.name}: count {count.tolist()}", "a whole number of at least 2")
    return int(count.reshape(()))


def _about(path: Path, stored: np.ndarray | None) -> dict[str, Any]:
    if stored is not None:
        try:
            about = json.loads(str(stored))
        except ValueError:
            about = None
        if not isinstance(about, dict):
            raise UserError("--reference", f"{path.name}: about {str(stored)[:40]!r}", "a JSON object")
        return about
    named = _CLEAN_FID.fullmatch(path.stem)
    if named is None:
        return {}
    about = {"pipeline": named["mode"], "split": named["split"]}
    return about | ({} if named["network"] is None else {"network": "clip_vit_b32"})


def write_reference(path: Path, moments: Moments, network: Any, output: str, ddof: int, **about: Any) -> None:
    """Writes statistics of real images, to be read back by `read_reference` and by other tools.

    Args:
      path: an npz file; one that is there is replaced as a whole.
      moments: of the features.
      network: which made them.
      output: which of its outputs they are.
      ddof: `sigma` is divided by the count minus this.
      **about: further words for `about`, such as the images' fingerprint.
    """
    known = {"network": network.name, "network_sha256": network.sha256, "output": output}
    known["preprocessing"] = network.info.get("preprocessing") or {}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        np.savez(
            file,
            mu=moments.mean,
            sigma=moments.covariance(ddof),
            count=np.asarray(moments.count),
            about=np.asarray(json.dumps(known | about)),
        )
    temporary.replace(path)
