"""The layouts of published checkpoints: one file per convention, all declared as data.

A file of this folder is listed in `FILES` and declares one or more `Layout` constants.
"""

import importlib
from functools import cache

from gantransfer.errors import one_of
from gantransfer.pretrained.layouts.layout import Layout

# Imported at the first use of any layout: a family's networks need not be known to read a source folder.
FILES: tuple[str, ...] = (
    "biggan",
    "biggan_deep",
    "biggan_deep_hub",
    "biggan_tfhub",
    "dcgan",
    "dcgan_releases",
    "fastgan",
    "studiogan",
    "stylegan2",
    "wgangp_resnet",
)


@cache
def all_layouts() -> dict[str, Layout]:
    """Returns every layout by name, in the order of `FILES`."""
    found: dict[str, Layout] = {}
    for file in FILES:
        module = importlib.import_module(f"{__name__}.{file}")
        found |= {value.name: value for value in vars(module).values() if isinstance(value, Layout)}
    return found


def get_layout(name: str, field: str = "layout") -> Layout:
    """Returns the layout called `name`; raises `UserError` for `field` with the names that exist."""
    return all_layouts()[one_of(field, name, all_layouts())]
