"""The sampler as StableHLO: a compiled form of the generator that runs with JAX alone.

    sampler.stablehlo    of `jax.export`: (z, labels) -> images, for any number of them, with the weights inside
    sampler.json         what goes in and comes out, and how to call it

The serialised form is promised to be readable by later versions of JAX for six months: it is for running, not for
keeping.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gantransfer.errors import UserError
from gantransfer.pretrained.source import Source

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
HOW_TO_CALL = "jax.export.deserialize(open('sampler.stablehlo', 'rb').read()).call(z, labels)"


def write_sampler(folder: Path, source: Source, truncation: float = 1.0, platforms: Sequence[str] = PLATFORMS) -> None:
    """Writes the generator that makes images as `sampler.stablehlo`, with `sampler.json` beside it.

    Args:
      folder: where; must be there.
      source: whose generator, with its averaged weights in evaluation mode.
      truncation: of every picture; its meaning is the family's (`Networks.truncation`).
      platforms: that it will run on.

    Raises:
      UserError: the package flatbuffers is missing, or the truncation is out of range.
    """
    if not 0 < truncation <= 1:
        raise UserError("--truncation", truncation, "above 0, up to 1")
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise UserError("format", "stablehlo", "an environment with flatbuffers (pip install flatbuffers)") from error
    networks, info = source.networks, source.info
    given = {} if networks.truncation == "latents" else {"truncation": truncation}
    factor = 1.0 if networks.truncation == "call" else truncation

    variables = jax.device_put(source.ema)

    def sampler(z: Float[Array, "n z"], labels: Int[Array, " n"]) -> Float[Array, "n h w c"]:
        picture = networks.generator.apply(variables, jnp.float32(factor) * z, labels, **given)
        return picture.images.astype(jnp.float32)

    (n,) = jax.export.symbolic_shape("n")
    inputs = jax.ShapeDtypeStruct((n, networks.z_dim), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    exported = jax.export.export(jax.jit(sampler), platforms=platforms)(*inputs)
    (folder / "sampler.stablehlo").write_bytes(exported.serialize())
    content = {
        "name": info.name,
        "licence": info.licence,
        "origin": info.origin,
        "inputs": {
            "z": {"shape": ["n", networks.z_dim], "dtype": "float32", "distribution": networks.latent},
            "labels": {"shape": ["n"], "dtype": "int32", "below": info.num_classes},
        },
        "output": {
            "shape": ["n", networks.resolution, networks.resolution, networks.channels],
            "dtype": "float32",
            "range": [-1, 1],
        },
        "class_names": list(info.class_names),
        "truncation": truncation,
        "platforms": list(platforms),
        "jax": jax.__version__,
        "how_to_call": HOW_TO_CALL,
    }
    (folder / "sampler.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
