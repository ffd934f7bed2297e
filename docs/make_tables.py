"""Fills the tables of the documentation from the code: `python docs/make_tables.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->` in any page; a test compares it with the
code.
"""

import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.S)


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [path for path in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))) if path.exists()]


def row(*cells: object) -> str:
    """One line of a table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """A table, ended by a line break."""
    return "\n".join([row(*head), row(*("---" for _ in head)), *(row(*cells) for cells in rows)]) + "\n"


def make(name: str) -> str:
    """The table of that name, from the code."""
    from gantransfer import config, methods
    from gantransfer.models import FAMILIES
    from gantransfer.pretrained import catalogue
    from gantransfer.training.partition import MODES

    if name == "config":
        return config.markdown_table()
    if name == "modes":
        return table(("mode", "what trains"), [(f"`{name}`", mode.help) for name, mode in MODES.items()])
    if name == "families":
        return table(("family", "paper"), [(f"`{name}`", family.paper) for name, family in FAMILIES.items()])
    if name == "methods":
        lines = [methods.describe(methods.REGISTRY[method]).rpartition("): ") for method in sorted(methods.REGISTRY)]
        return table(("method and its defaults", "what it does"), [(f"`{call})`", text) for call, _, text in lines])
    if name == "metrics":
        from gantransfer.metrics.registry import METRICS

        return table(
            ("`--metrics`", "numbers", "better", "what it is", "source", "network", "settings", "least images"),
            [
                (
                    f"`{metric.name}`",
                    ", ".join(f"`{made}`" for made in metric.makes),
                    metric.better,
                    metric.about,
                    metric.paper,
                    metric.network or ("the protocol's" if metric.needs_network else "none"),
                    ", ".join(f"`{key}={value}`" for key, value in metric.settings.items()),
                    metric.least_images(metric.settings),
                )
                for metric in METRICS.values()
            ],
        )
    if name == "protocols":
        from gantransfer.metrics.protocols import PROTOCOLS

        return table(
            ("protocol", "samples", "labels", "pixels of Inception", "metrics", "made to compare with"),
            [
                (
                    f"`{protocol.name}`",
                    {"reference": "as many as real images", "by_size": "5,000 to 50,000, as the data has"}.get(
                        str(protocol.count), protocol.count
                    ),
                    protocol.labels,
                    f"`{protocol.pipeline}`",
                    ", ".join(f"`{metric}`" for metric in protocol.metrics),
                    protocol.about,
                )
                for protocol in PROTOCOLS.values()
            ],
        )
    if name == "sources":
        return table(
            ("source", "family", "images", "classes", "G + D", "licence", "commercial use", "what it is"),
            [
                (
                    f"`{entry.name}`",
                    entry.family,
                    f"{entry.resolution} px" if entry.resolution else "not stated",
                    entry.num_classes,
                    "both" if entry.has_discriminator else "G",
                    entry.licence,
                    entry.commercial_use,
                    entry.about,
                )
                for entry in catalogue.list_sources()
            ],
        )
    raise KeyError(f"no table is called {name}")


def filled(text: str) -> str:
    """A page's text with all its tables made anew."""
    return TABLE.sub(lambda found: found[1] + make(found[2]) + found[3], text)


def main() -> None:
    """Rewrites the pages whose tables differ, and says which."""
    for path in pages():
        text = path.read_text("utf-8")
        if filled(text) != text:
            path.write_text(filled(text), "utf-8")
            print(f"rewrote {path.relative_to(CHECKOUT)}", file=sys.stderr)


if __name__ == "__main__":
    sys.path.insert(0, str(CHECKOUT))
    main()
