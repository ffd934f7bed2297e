"""A source's weights under the names and in the layouts of published code, so that both sides start from equal ones."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from gantransfer.pretrained.layouts.layout import Layout, to_theirs
from gantransfer.pretrained.source import Source


def weights(source: Source, layout: Layout) -> dict[str, np.ndarray]:
    """Entries of the state dicts of both networks, as `G/NAME` and `D/NAME`."""
    options, found = source.info.options, {}
    for letter, role, tree in (("G", "generator", source.generator), ("D", "discriminator", source.discriminator)):
        leaves = flatten_dict(jax.device_get(dict(tree)), sep="/")
        entries = to_theirs(layout.leaves(role, options), leaves) | dict(layout.made(role, options))
        found |= {f"{letter}/{name}": np.ascontiguousarray(value) for name, value in entries.items()}
    return found
