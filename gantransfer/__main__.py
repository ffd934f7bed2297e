"""The verbs of the command line: each is one function of `gantransfer.api`. What they take is in `arguments`.

Exit codes: 0 done, 1 a fault of ours (with its traceback) or a training that diverged, 2 the user's mistake (one line),
75 stopped by a signal with everything saved (run the same command again to go on), 130 interrupted before that.
"""

import argparse
import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gantransfer.arguments import build_parser, split_fields
from gantransfer.errors import NotFinite, Stopped, UserError, one_of
from gantransfer.host_memory import keep_freed_memory

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
        if unknown and not unknown[0].startswith("-"):
            raise UserError(options.verb, unknown[0], "one word after each option; lists are joined by commas: a,b")
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
