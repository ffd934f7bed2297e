"""The verbs of the command line: parsing and exit codes; each verb is one function of `gantransfer.api`.

Exit codes: 0 done, 1 a fault of ours (with its traceback) or a training that diverged, 2 the user's mistake (one line),
75 stopped by a signal with everything saved (run the same command again to go on), 130 interrupted before that.
"""

import argparse
import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gantransfer import __version__
from gantransfer.errors import NotFinite, Stopped, UserError, one_of
from gantransfer.host_memory import keep_freed_memory

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


# What stands in the way of writing and is not the program's fault: no place, no permission, something else there.
IN_THE_WAY = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)


class _Parser(argparse.ArgumentParser):
    def __init__(self, *arguments: Any, **named: Any):
        self.flags: list[str] = []
        self.verbs: dict[str, _Parser] = {}
        super().__init__(*arguments, **named)

    def add_argument(self, *names: Any, **named: Any) -> argparse.Action:
        """Keeps the names of flags, to say them where one is misspelt."""
        self.flags += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **named)

    def error(self, message: str) -> NoReturn:
        """Prints one line; argparse would print the usage first."""
        self.exit(2, f"gantransfer: {message}\n")


def build_parser() -> _Parser:
    """Returns the parser of all verbs."""
    parser = _Parser(
        prog="gantransfer",
        description="Finetune pretrained GANs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gantransfer {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    finetune = verbs.add_parser(
        "finetune", help="finetune a source on images (the same command again resumes)", allow_abbrev=False
    )
    finetune.add_argument(
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
        finetune.add_argument(f"--{flag}", type=kind, metavar=flag.upper(), help=text)
    finetune.add_argument(
        "--dry_run", action="store_true", help="print config, partition, parameters and memory, and stop"
    )

    sample = verbs.add_parser("sample", help="generate images", allow_abbrev=False)
    sample.add_argument("--source", required=True, help="catalogue name, run, snapshot or source folder")
    sample.add_argument(
        "--output", required=True, help="a .png grid, a folder for single images, or .gif/.mp4 with --interpolate"
    )
    sample.add_argument("--seeds", default="0-15", help="such as 0-15,40: one image per seed and class")
    sample.add_argument("--classes", default=None, help="names or indices, comma-separated; without it: all")
    sample.add_argument("--truncation", type=float, default=1.0, help="above 0, up to 1")
    sample.add_argument("--columns", type=int, default=None, help="images in a row of the grid")
    sample.add_argument(
        "--interpolate", type=int, default=None, metavar="FRAMES", help="walk through the seeds and classes instead"
    )

    evaluate = verbs.add_parser(
        "evaluate", help="measure generated images, or a folder of images, against real ones", allow_abbrev=False
    )
    evaluate.add_argument(
        "--source", required=True, help="catalogue name, run, snapshot or source folder; or images: a folder, a zip"
    )
    evaluate.add_argument("--data", default=None, help="the reference images")
    evaluate.add_argument(
        "--reference", default=None, metavar="FILE.npz", help="instead: their mean and covariance (mu, sigma), for fid"
    )
    evaluate.add_argument(
        "--write_reference", default=None, metavar="FILE.npz", help="keep those of --data in such a file"
    )
    evaluate.add_argument("--metrics", default=None, help="comma-separated (docs/metrics.md); default: the protocol's")
    evaluate.add_argument("--features", default=None, help="one feature network for all (gantransfer list features)")
    evaluate.add_argument(
        "--protocol", default=None, help="default, studiogan, nvidia, clean, fewshot, fd_dinov2 or quick"
    )
    evaluate.add_argument("--num_images", type=int, default=None, help="generated images; default: the protocol's")
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the generated images")
    evaluate.add_argument(
        "--repeats", type=int, default=1, metavar="N", help="generate anew with N seeds: mean and range of each number"
    )
    evaluate.add_argument("--labels", default=None, help="of the generated images: turn, uniform or data")
    evaluate.add_argument(
        "--batch_norm", default=None, help="what the generator normalises by: stored, standing or batch statistics"
    )
    evaluate.add_argument(
        "--std_max", type=int, default=None, metavar="N", help="standing: images of the largest batch"
    )
    evaluate.add_argument("--std_step", type=int, default=None, metavar="N", help="standing: number of batches")
    evaluate.add_argument("--truncation", type=float, default=1.0, help="above 0, up to 1")
    evaluate.add_argument(
        "--weights", action="append", default=[], metavar="[NAME=]PATH", help="published weights of a feature network"
    )
    evaluate.add_argument("--set", action="append", default=[], metavar="METRIC.SETTING=VALUE", help="such as prdc.k=3")
    evaluate.add_argument(
        "--train", default=None, metavar="DATA", help="what the source was trained on; default: the run's"
    )
    evaluate.add_argument("--output", default=None, metavar="FOLDER", help="for pictures; default: the run's folder")
    evaluate.add_argument("--batch", type=int, default=None, help="images per program call")

    compare = verbs.add_parser("compare", help="put the numbers of two evaluations side by side", allow_abbrev=False)
    compare.add_argument("a", metavar="A", help="a run, or a file of lines that evaluate printed")
    compare.add_argument("b", metavar="B", help="another")
    compare.add_argument("--force", action="store_true", help="also where they were measured by different protocols")

    select = verbs.add_parser(
        "select", help="rank sources for a target set, or feature networks for a source", allow_abbrev=False
    )
    select.add_argument("--data", required=True, help="the target's images")
    select.add_argument("--sources", required=True, help="comma-separated: what is ranked; one with --networks")
    select.add_argument("--features", default="fid_inception", help="network in which sources are compared")
    select.add_argument("--networks", default=None, help="comma-separated: rank feature networks for the one source")
    select.add_argument("--by", default="samples", help="samples of the sources, or the images they were trained on")
    select.add_argument("--num_images", type=int, default=None, help="of each side; default: all, up to 10,000")
    select.add_argument("--k", type=int, default=5, help="neighbour that sets the radius of recall and precision")
    select.add_argument("--seed", type=int, default=0, help="of samples and draws")
    select.add_argument(
        "--weights", action="append", default=[], metavar="[NAME=]PATH", help="published weights of a feature network"
    )
    select.add_argument("--output", default=None, metavar="FOLDER", help="for selection.json and selection.png")

    report = verbs.add_parser("report", help="write one HTML page about one or several runs", allow_abbrev=False)
    report.add_argument("runs", nargs="+", help="run folders")
    report.add_argument("--output", default=None, help="the page; default: report.html in the first run")
    report.add_argument("--title", default=None, help="heading of the page")

    convert = verbs.add_parser("convert", help="turn a published checkpoint into a source", allow_abbrev=False)
    convert.add_argument("checkpoint", metavar="CHECKPOINT", help="a file, or a folder of files that belong together")
    convert.add_argument("out", metavar="OUT", help="the folder to make")
    convert.add_argument("--licence", default="", help="of the weights, such as MIT")
    convert.add_argument("--origin", default="", help="where they are from")
    convert.add_argument("--name", default="", help="of the source; without it: that of OUT")
    convert.add_argument("--class_names", default=None, metavar="FILE", help="a text file with one name per line")
    convert.add_argument(
        "--drop", action="append", default=[], metavar="PATTERN", help="entries of the file that may be left out"
    )
    convert.add_argument(
        "--missing", action="append", default=[], metavar="PATTERN", help="entries that may be missing; made fresh"
    )
    convert.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="what the weights cannot tell"
    )
    convert.add_argument("--layout", default=None, help="the layout, where several would do")
    convert.add_argument("--seed", type=int, default=0, help="seed of what is made fresh")

    export = verbs.add_parser("export", help="write a source for other people's code", allow_abbrev=False)
    export.add_argument("source", metavar="SOURCE", help="catalogue name, run, snapshot or source folder")
    export.add_argument(
        "format",
        metavar="FORMAT",
        help="biggan-pytorch, huggingface-biggan-deep, stylegan2-ada-pytorch, dcgan-npz, safetensors or stablehlo",
    )
    export.add_argument("out", metavar="OUT", help="the folder to make")
    export.add_argument("--truncation", type=float, default=1.0, help="of the sampler of stablehlo")

    listing = verbs.add_parser("list", help="show what can be named", allow_abbrev=False)
    listing.add_argument("what", help="sources, modes, methods, families, features, metrics, protocols or config")
    listing.add_argument("pattern", nargs="?", default="*", help="such as 'biggan*'")
    listing.add_argument("--family", help="sources of this model family")
    listing.add_argument("--resolution", type=int, help="sources of this size in pixels")
    listing.add_argument("--commercial", action="store_true", help="sources that clearly allow commercial use")
    listing.add_argument("--with_discriminator", action="store_true", help="sources with a discriminator to finetune")
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


def run_finetune(options: argparse.Namespace, fields: dict[str, str]) -> None:
    """The verb finetune."""
    from gantransfer import api

    named = {name: getattr(options, name) for name in ("source", "mode", "kimg", "batch", "workdir", "seed")}
    fields |= {name: value for name, value in named.items() if value is not None}
    if options.data is not None:
        fields["data.path"] = options.data
    if options.dry_run:
        print(api.dry_run(config=options.config, settings=fields))
        return
    run = api.finetune(config=options.config, settings=fields)
    print(json.dumps({"workdir": str(run.path), "images_seen": run.images_seen, "snapshot": str(run.snapshot)}))


def run_sample(options: argparse.Namespace) -> None:
    """The verb sample."""
    from gantransfer import api

    names = None if options.classes is None else [name.strip() for name in options.classes.split(",")]
    written = api.sample(
        options.source,
        options.output,
        seeds=options.seeds,
        classes=names,
        truncation=options.truncation,
        columns=options.columns,
        interpolate=options.interpolate,
    )
    print(json.dumps({"written": [str(path) for path in written]}))


def run_evaluate(options: argparse.Namespace) -> None:
    """The verb evaluate."""
    from gantransfer import api
    from gantransfer.metrics.records import table

    named = ("features", "protocol", "num_images", "seed", "repeats", "truncation", "labels", "batch_norm", "std_max")
    named += ("std_step", "reference", "write_reference", "weights", "train", "output", "batch")
    metrics = None if options.metrics is None else _listed(options.metrics)
    given = {name: getattr(options, name) for name in named}
    settings = _pairs("--set", options.set)
    records = api.evaluate(options.source, options.data, metrics=metrics, settings=settings, **given)
    for record in records:
        print(json.dumps(record))
    # The quickstart's record has many numbers.
    if "metric" in records[0]:
        print(table(records), file=sys.stderr)


def run_compare(options: argparse.Namespace) -> int:
    """The verb compare; 2 where the protocols differ."""
    from gantransfer.metrics.records import compare, read_records, warnings_of

    rows = compare(read_records(Path(options.a)), read_records(Path(options.b)), warn=False)
    for row in rows:
        print(json.dumps(row))
    lines = warnings_of(rows)
    for line in lines:
        print(f"gantransfer: {line}", file=sys.stderr)
    return 2 if lines and not options.force else 0


def run_select(options: argparse.Namespace) -> None:
    """The verb select."""
    from gantransfer import api, measuring

    named = ("features", "by", "num_images", "k", "seed", "weights", "output")
    networks = None if options.networks is None else _listed(options.networks)
    settings = {name: getattr(options, name) for name in named}
    rows = api.select(_listed(options.sources), options.data, networks=networks, **settings)
    print(measuring.selection_table(rows), file=sys.stderr)
    for row in rows:
        print(json.dumps(row))


def _pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """Reads NAME=VALUE, as often as given."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UserError(flag, text, "NAME=VALUE")
        pairs[name] = value
    return pairs


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def run_report(options: argparse.Namespace) -> None:
    """The verb report."""
    from gantransfer import api

    print(json.dumps({"written": str(api.report(options.runs, options.output, title=options.title))}))


def run_convert(options: argparse.Namespace) -> None:
    """The verb convert."""
    from gantransfer import api

    settings = _pairs("--option", options.option)
    named = ("licence", "origin", "name", "class_names", "drop", "missing", "layout", "seed")
    report = api.convert(
        options.checkpoint, options.out, options=settings, **{name: getattr(options, name) for name in named}
    )
    print(report.summary(), file=sys.stderr)
    print(json.dumps({"written": str(report.folder), "layout": report.layout, "entries": report.counts}))


def run_export(options: argparse.Namespace) -> None:
    """The verb export."""
    from gantransfer import api

    written = api.export(options.source, options.format, options.out, truncation=options.truncation)
    print(json.dumps({"written": [str(path) for path in written]}))


def run_list(options: argparse.Namespace) -> None:
    """The verb list."""
    from gantransfer import api

    one_of("list", options.what, api.LISTINGS)
    asked = {name: getattr(options, name) for name in ("family", "resolution", "commercial", "with_discriminator")}
    filters = {name: value for name, value in asked.items() if value not in (None, False)}
    print(api.listing(options.what, options.pattern, **filters))


def dispatch(options: argparse.Namespace, fields: dict[str, str]) -> int | None:
    """Runs the verb that was asked for; returns an exit code where it is another than 0."""
    if options.verb == "finetune":
        return run_finetune(options, fields)
    if fields:
        raise UserError("--config." + next(iter(fields)), options.verb, "the verb finetune")
    verbs: dict[str, Any] = {
        "sample": run_sample,
        "evaluate": run_evaluate,
        "compare": run_compare,
        "select": run_select,
        "report": run_report,
        "convert": run_convert,
        "export": run_export,
        "list": run_list,
    }
    return verbs[options.verb](options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code."""
    words, fields = split_fields(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and words[:1] in (["finetune"], ["evaluate"]):
        # What runs one program many times gains from it; what runs once would only need more memory.
        keep_freed_memory()
    parser = build_parser()
    try:
        if words and not words[0].startswith("-"):
            one_of("verb", words[0], parser.verbs)
        options, unknown = parser.parse_known_args(words)
        if options.verb is None:
            parser.print_help(sys.stderr)
            return 2
        if unknown:
            one_of(options.verb, unknown[0].partition("=")[0], (*parser.verbs[options.verb].flags, "--config.FIELD"))
        return dispatch(options, fields) or 0
    except SystemExit as stop:
        return int(stop.code or 0)
    except UserError as error:
        print(f"gantransfer: {error}", file=sys.stderr)
        return 2
    except NotFinite as error:
        print(f"gantransfer: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        print(f"gantransfer: {stop}", file=sys.stderr)
        return 75
    except KeyboardInterrupt:
        print("gantransfer: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.errno not in IN_THE_WAY or error.filename is None:
            raise
        print(f"gantransfer: {UserError(str(error.filename), error.strerror, 'a place to write to')}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
