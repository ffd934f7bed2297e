"""Statistics of 16 samples by which a converted network is known again, made in as little memory as can be.

Who can hold a large network must be able to convert it. So the samples come few at a time, by the form of convolution
that copies no kernel, and by a program that scales a kernel when it needs it, not all of them at once; what compiling
has freed is given back before it runs.
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from gantransfer.host_memory import give_back_freed_memory
from gantransfer.models import get_family
from gantransfer.pretrained.source import Source, images_of, latents, to_uint8

SAMPLES = 16
# Of the images that are made at once.
PIXELS = 2**15


def sample_statistics(source: Source) -> dict[str, Any]:
    """Returns mean, deviation and per-image means (of bytes / 255) of 16 samples of seed 0, classes in turn.

    Two machines that hold the same weights agree on these to about 1e-3; a wrong layout or constant does not.
    """
    networks, family = source.networks, get_family(source.info.family)
    plain = {"convolution": "plain"} if "convolution" in family.options else {}
    generator = family.build(**dict(source.info.options) | plain).generator
    truncation = None if networks.truncation == "latents" else 1.0
    rows = max(1, min(SAMPLES, PIXELS // networks.resolution**2))
    z = latents(SAMPLES, networks.z_dim, 0, latent=networks.latent)
    labels = (np.arange(SAMPLES) % source.info.num_classes).astype(np.int32)
    # The last rows come again where they do not fill a batch: one program serves all.
    batches = [np.minimum(np.arange(start, start + rows), SAMPLES - 1) for start in range(0, SAMPLES, rows)]
    options = None
    if jax.default_backend() == "cpu":
        options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED", "xla_backend_optimization_level": 0}
    draw = jax.jit(partial(images_of, generator, truncation), compiler_options=options)
    compiled = draw.lower(source.ema, z[batches[0]], labels[batches[0]]).compile()
    give_back_freed_memory()
    parts = [np.asarray(compiled(source.ema, z[batch], labels[batch])) for batch in batches]
    images = to_uint8(np.concatenate(parts)[:SAMPLES]) / 255.0
    return {
        "samples": SAMPLES,
        "seed": 0,
        "mean": round(float(images.mean()), 6),
        "std": round(float(images.std()), 6),
        "image_means": [round(float(mean), 6) for mean in images.mean(axis=(1, 2, 3))],
    }
