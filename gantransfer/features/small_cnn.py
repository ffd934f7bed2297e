"""A small frozen classifier of 16-pixel characters, whose 48 features measure digits and letters.

Feature networks made for photographs say little about 16x16 strokes. These classifiers are 58 k parameters each, ship
with the package, and were made by `train_small_cnn.py` from data that ships too, so a number that carries their hash
can be checked by anybody.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, UInt8

from gantransfer.errors import UserError, one_of

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = ("digits_cnn", "letters_cnn")
RESOLUTION = 16
FEATURES = 48


class CharacterClassifier(nn.Module):
    """Three 3x3 convolutions (24, 32, 48 channels; pooling after the first two), 48 features, a linear head.

    Args:
      num_classes: outputs of the head.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "n 16 16 1"]) -> tuple[Float[Array, "n 48"], Float[Array, "n k"]]:
        """Returns features (after the ReLU) and logits of images in [-1, 1]."""
        # Accelerators would round to bfloat16 or TF32 here, and a metric must not depend on the device.
        highest = jax.lax.Precision.HIGHEST
        for channels in (24, 32):
            x = nn.relu(nn.Conv(channels, (3, 3), precision=highest)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(48, (3, 3), precision=highest)(x))
        features = nn.relu(nn.Dense(FEATURES, precision=highest, name="features")(x.reshape(x.shape[0], -1)))
        return features, nn.Dense(self.num_classes, precision=highest, name="head")(features)


def to_unit(images: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """uint8 to [-1, 1]: x / 127.5 - 1."""
    return images.astype(jnp.float32) / 127.5 - 1


class SmallCNN:
    """A trained `CharacterClassifier`, frozen: call it with uint8 images to get features and logits.

    Attributes:
      name: the shipped name, or the file's stem.
      outputs: `features` and `logits`.
      stages: none.
      sha256: of the weights file, as `sha256sum` prints it.
      info: the record beside the weights: classes, test accuracy, training config, seed, versions.
      classes: names of the classes, in the order of the logits.
      params: tree of parameters, the first argument of `forward`.
    """

    outputs = ("features", "logits")
    stages: tuple[str, ...] = ()

    def __init__(self, name: str, params: Mapping[str, Any], sha256: str, info: Mapping[str, Any], batch: int = 256):
        self.name, self.sha256, self.info, self.batch = name, sha256, info, batch
        self.classes: tuple[str, ...] = tuple(info["classes"])
        self.params = params
        self._network = CharacterClassifier(len(self.classes))
        self._compiled = jax.jit(self.forward)

    def forward(
        self, params: Mapping[str, Any], images: UInt8[Array, "n h w c"], want: tuple[str, ...] = ()
    ) -> dict[str, Float[Array, "n _"]]:
        """The same as a call, for use inside programs: a pure function of parameters and uint8 images."""
        self._check(images.shape[1:], want)
        features, logits = self._network.apply({"params": params}, to_unit(images))
        found = {"features": features, "logits": logits}
        return {name: found[name] for name in want or self.outputs}

    def __call__(
        self, images: UInt8[np.ndarray, "n h w c"], want: tuple[str, ...] = ()
    ) -> dict[str, Float[np.ndarray, "n _"]]:
        """Returns `features` `(n, 48)` and `logits` `(n, k)`, float32, for uint8 images `(n, 16, 16, 1)`.

        `want` names one of them, or both; none takes both.

        Raises:
          UserError: if the images are not 16x16 with one channel, or a name is unknown.
        """
        self._check(images.shape[1:], want)
        features = np.empty((len(images), FEATURES), np.float32)
        logits = np.empty((len(images), len(self.classes)), np.float32)
        for part, padded in _padded_batches(images, self.batch):
            batch, count = self._compiled(self.params, padded), part.stop - part.start
            features[part], logits[part] = (np.asarray(batch[name])[:count] for name in self.outputs)
        found = {"features": features, "logits": logits}
        return {name: found[name] for name in want or self.outputs}

    def _check(self, shape: tuple[int, ...], want: tuple[str, ...]) -> None:
        for name in want:
            one_of("want", name, self.outputs)
        if shape != (RESOLUTION, RESOLUTION, 1):
            told = "x".join(map(str, shape))
            raise UserError(f"images for {self.name}", told, f"{RESOLUTION}x{RESOLUTION}x1, uint8")


def load(name_or_path: str | Path) -> SmallCNN:
    """Loads a shipped classifier by name, or one that `train_small_cnn` wrote, by the path of its .safetensors file.

    Raises:
      UserError: for an unknown name, a file that is missing, or weights that are not those of the record beside them.
    """
    from safetensors.numpy import load as parse

    path = Path(name_or_path)
    if path.suffix != ".safetensors":
        path = WEIGHTS / f"{one_of('feature network', str(name_or_path), SHIPPED)}.safetensors"
    for part in (path, path.with_suffix(".json")):
        if not part.is_file():
            raise UserError("feature network", str(part), "an existing .safetensors file with its .json record")
    content = path.read_bytes()
    info = json.loads(path.with_suffix(".json").read_text())
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != info["sha256"]:
        raise UserError("feature network", str(path), f"the file of its record, sha256 {info['sha256']}")
    params = traverse_util.unflatten_dict(parse(content), sep="/")
    return SmallCNN(path.stem, params, sha256, info)


def save(path: Path, params: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Writes weights (float32 safetensors) and, beside them, the record with the hash of the weights added."""
    from safetensors.numpy import save as serialise

    leaves = traverse_util.flatten_dict(params, sep="/")
    # safetensors writes a view's whole buffer in memory order: a transposed array would come back scrambled.
    content = serialise(
        {key: np.ascontiguousarray(leaves[key], np.float32) for key in sorted(leaves)},
        metadata={"architecture": "gantransfer small_cnn"},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    full = {**record, "sha256": hashlib.sha256(content).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(full, indent=1, ensure_ascii=False) + "\n")


def _padded_batches(images: np.ndarray, batch: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of full size; the last one repeats its last row, so that one compiled program serves any count."""
    for start in range(0, len(images), batch):
        part = slice(start, min(start + batch, len(images)))
        chunk = images[part]
        if len(chunk) < batch:
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)])
        yield part, chunk
