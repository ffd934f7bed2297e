"""Finetune pretrained GANs: load a source, train it on your images, sample from it and measure it.

The names of `gantransfer.api` are the names of this module. They are looked up at first use, so that importing the
package, asking for its version or its help costs nothing.
"""

from typing import Any

__version__ = "0.1.0"

_API = (
    "LISTINGS",
    "Run",
    "convert",
    "dry_run",
    "evaluate",
    "export",
    "finetune",
    "list_sources",
    "listing",
    "load",
    "report",
    "sample",
    "select",
)

__all__ = ["__version__", *_API]


def __getattr__(name: str) -> Any:
    if name in _API:
        from gantransfer import api

        return getattr(api, name)
    raise AttributeError(f"module 'gantransfer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
