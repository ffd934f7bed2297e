"""What each verb of the command line takes."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from gantransfer import __version__

EXAMPLES = """examples:
  gantransfer finetune --source glyphs --data flowers.zip --mode class_embedding_only --kimg 50 --workdir runs/flowers
  gantransfer finetune --config configs/quickstart.py --config.optimizer.lr_g=1e-3 --workdir runs/a --dry_run
  gantransfer sample --source runs/flowers --seeds 0-15 --classes rose,tulip --truncation 0.8 --output samples.png
  gantransfer evaluate --source runs/flowers --data flowers.zip --features digits_cnn
  gantransfer evaluate --source samples/ --data flowers.zip --protocol clean
  gantransfer select --sources glyphs,runs/a --data flowers.zip
  gantransfer report runs/a runs/b --output compare.html
  gantransfer convert weights/G_ema.pth converted/ --licence MIT
  gantransfer export runs/flowers biggan-pytorch exported/
  gantransfer list sources
"""


class Parser(argparse.ArgumentParser):
    """A parser that says one line of what it cannot read, and knows its flags and verbs."""

    def __init__(self, *arguments: Any, **named: Any):
        self.flags: list[str] = []
        self.verbs: dict[str, Parser] = {}
        super().__init__(*arguments, **named)

    def add_argument(self, *names: Any, **named: Any) -> argparse.Action:
        """Keeps the names of flags, to say them where one is misspelt."""
        self.flags += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **named)

    def error(self, message: str) -> NoReturn:
        """Prints one line; argparse would print the usage first."""
        self.exit(2, f"gantransfer: {message}\n")


# What argparse gives for adding verbs to.
Verbs = argparse._SubParsersAction


def build_parser() -> Parser:
    """Returns the parser of all verbs."""
    parser = Parser(
        prog="gantransfer",
        description="Finetune pretrained GANs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gantransfer {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for add in (_finetune, _sample, _evaluate, _compare, _select, _report, _convert, _export, _listing):
        add(verbs)
    parser.verbs = dict(verbs.choices)
    return parser


def split_fields(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.FIELD=VALUE` and `--config.FIELD VALUE` out of a command line; returns the rest and the
    fields.
    """
    rest: list[str] = []
    fields: dict[str, str] = {}
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--config."):
            rest.append(word)
            continue
        name, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            bare = not queue or queue[0].startswith("--")
            value = "true" if bare else queue.pop(0)
        fields[name] = value
    return rest, fields


def _finetune(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "finetune", help="finetune a source on images (the same command again resumes)", allow_abbrev=False
    )
    verb.add_argument(
        "--config", metavar="FILE.py", help="a file with get_config(); fields are set by --config.FIELD=VALUE"
    )
    for flag, kind, text in (
        ("source", str, "catalogue name, run, snapshot or source folder; without it: from scratch"),
        ("data", str, "folder, zip, tfds:NAME[:split], digits or glyphs"),
        ("mode", str, "what trains: full, class_embedding_only, ... (gantransfer list modes)"),
        ("kimg", str, "length, in thousands of real images shown to D"),
        ("batch", str, "real images per update of D"),
        ("workdir", str, "the run's folder"),
        ("seed", str, "seed of everything random"),
    ):
        verb.add_argument(f"--{flag}", type=kind, metavar=flag.upper(), help=text)
    verb.add_argument("--dry_run", action="store_true", help="print config, partition, parameters and memory, and stop")


def _sample(verbs: Verbs) -> None:
    verb = verbs.add_parser("sample", help="generate images", allow_abbrev=False)
    verb.add_argument("--source", required=True, help="catalogue name, run, snapshot or source folder")
    verb.add_argument(
        "--output", required=True, help="a .png grid, a folder for single images, or .gif/.mp4 with --interpolate"
    )
    verb.add_argument("--seeds", default="0-15", help="such as 0-15,40: one image per seed and class")
    verb.add_argument("--classes", default=None, help="names or indices, comma-separated; without it: all")
    verb.add_argument("--truncation", type=float, default=1.0, help="above 0, up to 1")
    verb.add_argument("--columns", type=int, default=None, help="images in a row of the grid")
    verb.add_argument(
        "--interpolate", type=int, default=None, metavar="FRAMES", help="walk through the seeds and classes instead"
    )


def _evaluate(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "evaluate", help="measure generated images, or a folder of images, against real ones", allow_abbrev=False
    )
    verb.add_argument(
        "--source", required=True, help="catalogue name, run, snapshot or source folder; or images: a folder, a zip"
    )
    verb.add_argument("--data", default=None, help="the reference images")
    verb.add_argument(
        "--reference", default=None, metavar="FILE.npz", help="instead: their mean and covariance (mu, sigma), for fid"
    )
    verb.add_argument("--write_reference", default=None, metavar="FILE.npz", help="keep those of --data in such a file")
    verb.add_argument("--metrics", default=None, help="comma-separated (docs/metrics.md); default: the protocol's")
    verb.add_argument("--features", default=None, help="one feature network for all (gantransfer list features)")
    verb.add_argument("--protocol", default=None, help="default, studiogan, nvidia, clean, fewshot, fd_dinov2 or quick")
    verb.add_argument("--num_images", type=int, default=None, help="generated images; default: the protocol's")
    verb.add_argument("--seed", type=int, default=0, help="seed of the generated images")
    verb.add_argument(
        "--repeats", type=int, default=1, metavar="N", help="generate anew with N seeds: mean and range of each number"
    )
    verb.add_argument("--labels", default=None, help="of the generated images: turn, uniform or data")
    verb.add_argument(
        "--batch_norm", default=None, help="what the generator normalises by: stored, standing or batch statistics"
    )
    verb.add_argument("--std_max", type=int, default=None, metavar="N", help="standing: images of the largest batch")
    verb.add_argument("--std_step", type=int, default=None, metavar="N", help="standing: number of batches")
    verb.add_argument("--truncation", type=float, default=1.0, help="above 0, up to 1")
    verb.add_argument(
        "--weights", action="append", default=[], metavar="[NAME=]PATH", help="published weights of a feature network"
    )
    verb.add_argument("--set", action="append", default=[], metavar="METRIC.SETTING=VALUE", help="such as prdc.k=3")
    verb.add_argument(
        "--train", default=None, metavar="DATA", help="what the source was trained on; default: the run's"
    )
    verb.add_argument("--output", default=None, metavar="FOLDER", help="for pictures; default: the run's folder")
    verb.add_argument("--batch", type=int, default=None, help="images per program call")


def _compare(verbs: Verbs) -> None:
    verb = verbs.add_parser("compare", help="put the numbers of two evaluations side by side", allow_abbrev=False)
    verb.add_argument("a", metavar="A", help="a run, or a file of lines that evaluate printed")
    verb.add_argument("b", metavar="B", help="another")
    verb.add_argument("--force", action="store_true", help="also where they were measured by different protocols")


def _select(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "select", help="rank sources for a target set, or feature networks for a source", allow_abbrev=False
    )
    verb.add_argument("--data", required=True, help="the target's images")
    verb.add_argument("--sources", required=True, help="comma-separated: what is ranked; one with --networks")
    verb.add_argument("--features", default="fid_inception", help="network in which sources are compared")
    verb.add_argument("--networks", default=None, help="comma-separated: rank feature networks for the one source")
    verb.add_argument("--by", default="samples", help="samples of the sources, or the images they were trained on")
    verb.add_argument("--num_images", type=int, default=None, help="of each side; default: all, up to 10,000")
    verb.add_argument("--k", type=int, default=5, help="neighbour that sets the radius of recall and precision")
    verb.add_argument("--seed", type=int, default=0, help="of samples and draws")
    verb.add_argument(
        "--weights", action="append", default=[], metavar="[NAME=]PATH", help="published weights of a feature network"
    )
    verb.add_argument("--output", default=None, metavar="FOLDER", help="for selection.json and selection.png")


def _report(verbs: Verbs) -> None:
    verb = verbs.add_parser("report", help="write one HTML page about one or several runs", allow_abbrev=False)
    verb.add_argument("runs", nargs="+", help="run folders")
    verb.add_argument("--output", default=None, help="the page; default: report.html in the first run")
    verb.add_argument("--title", default=None, help="heading of the page")


def _convert(verbs: Verbs) -> None:
    verb = verbs.add_parser("convert", help="turn a published checkpoint into a source", allow_abbrev=False)
    verb.add_argument("checkpoint", metavar="CHECKPOINT", help="a file, or a folder of files that belong together")
    verb.add_argument("out", metavar="OUT", help="the folder to make")
    verb.add_argument("--licence", default="", help="of the weights, such as MIT")
    verb.add_argument("--origin", default="", help="where they are from")
    verb.add_argument("--name", default="", help="of the source; without it: that of OUT")
    verb.add_argument("--class_names", default=None, metavar="FILE", help="a text file with one name per line")
    verb.add_argument(
        "--drop", action="append", default=[], metavar="PATTERN", help="entries of the file that may be left out"
    )
    verb.add_argument(
        "--missing", action="append", default=[], metavar="PATTERN", help="entries that may be missing; made fresh"
    )
    verb.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="what the weights cannot tell"
    )
    verb.add_argument("--layout", default=None, help="the layout, where several would do")
    verb.add_argument("--seed", type=int, default=0, help="seed of what is made fresh")


def _export(verbs: Verbs) -> None:
    verb = verbs.add_parser("export", help="write a source for other people's code", allow_abbrev=False)
    verb.add_argument("source", metavar="SOURCE", help="catalogue name, run, snapshot or source folder")
    verb.add_argument(
        "format",
        metavar="FORMAT",
        help="biggan-pytorch, huggingface-biggan-deep, stylegan2-ada-pytorch, dcgan-npz, safetensors or stablehlo",
    )
    verb.add_argument("out", metavar="OUT", help="the folder to make")
    verb.add_argument("--truncation", type=float, default=1.0, help="of the sampler of stablehlo")


def _listing(verbs: Verbs) -> None:
    verb = verbs.add_parser("list", help="show what can be named", allow_abbrev=False)
    verb.add_argument("what", help="sources, modes, methods, families, features, metrics, protocols or config")
    verb.add_argument("pattern", nargs="?", default="*", help="such as 'biggan*'")
    verb.add_argument("--family", help="sources of this model family")
    verb.add_argument("--resolution", type=int, help="sources of this size in pixels")
    verb.add_argument("--commercial", action="store_true", help="sources that clearly allow commercial use")
    verb.add_argument("--with_discriminator", action="store_true", help="sources with a discriminator to finetune")
