"""Does `gantransfer select` foretell finetuning where the sources differ in nothing but their images?

    python launch/experiments/select_equal_sources.py --shared ../shared --workdir scratch/equal --seeds 0 1 2

Trains one source on each of six sets, all of one architecture, size (16 px, grey) and budget; ranks them for each of
four other sets in features of CIFAR ResNet-20; finetunes each for each set under one recipe and once for each seed, and
from random weights beside; judges by the Fréchet distance in features of CIFAR ResNet-32, which had no part in the
ranking. Everything is kept in `--workdir`: the same command goes on where it stopped. Prints a table per target, and
rank correlations with the distance after finetuning; writes `results.json`, and `pictures.png`: samples of each source
on the left, beside them what the first seed made of it for each target, reals above, random weights below.
"""

import argparse
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from select_real_sets import distance, kept, ranked, spearman

import gantransfer
from gantransfer.data import open_images

GLYPHS = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "pretrain_glyphs.py"))
SOURCES = ("glyphs", "fashion", "quickdraw3", "omniglot40", "cifar10_train", "crawl_tiles")
TARGETS = ("mnist", "sign_digits64", "blood_cells", "emoji64")
PRETRAIN_KIMG, KIMG = 64.0, 6.4
SHOWN = ("recall", "precision", "fid")
PICTURED = 6
COMMON: dict[str, Any] = {
    "batch": 64,
    "methods": ("r1(gamma=2.0)", "auxiliary_classifier(weight_d=1.0, weight_g=0.05)"),
    "run.tensorboard": False,
    "devices.count": 1,
}
NEW = {"mode": "none", "data.resolution": 16, "data.channels": 1}
NEW |= {f"model.{name}": value for name, value in GLYPHS["ARCHITECTURE"].items()}


def rates(lr_g: float, lr_d: float, rows: float) -> dict[str, float]:
    """Learning rates of G, D and the class embedding."""
    return {"optimizer.lr_g": lr_g, "optimizer.lr_d": lr_d, "optimizer.lr_class_embedding": rows}


PRETRAIN = NEW | rates(1e-3, 1e-3, 1e-3) | {"ema.decay": 0.999}
# Those of the quickstart, each way at its own best of a sweep on digits.
SCRATCH = NEW | rates(2e-3, 2e-3, 2e-3) | {"ema.decay": 0.995}
FULL = {"mode": "full", "transfer.classes": "mean", **rates(2e-4, 1e-3, 0.05), "ema.decay": 0.995}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="the folder with data/ and weights/")
    parser.add_argument("--workdir", type=Path, required=True, help="for runs and what was measured")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    return parser.parse_args()


def images_of(options: argparse.Namespace, name: str) -> str:
    """What `--data` takes for a set."""
    return name if name == "glyphs" else str(options.shared / "data" / f"{name}.zip")


def pretrained(options: argparse.Namespace, name: str) -> Path:
    """Trains a source, or goes on, and returns its run."""
    place = options.workdir / "sources" / name
    rare = {"run.snapshot_kimg": PRETRAIN_KIMG, "run.checkpoint_kimg": 16.0, "seed": 0}
    gantransfer.finetune(
        settings=COMMON | PRETRAIN | rare,
        data=images_of(options, name),
        kimg=PRETRAIN_KIMG,
        workdir=place,
    )
    return place


def finetuned(options: argparse.Namespace, source: str | None, target: str, seed: int) -> float:
    """Finetunes a source, or trains from random weights, and returns the distance of what it has become."""
    place = options.workdir / "runs" / f"{source or 'scratch'}-{target}-{seed}"
    gantransfer.finetune(
        None if source is None else options.workdir / "sources" / source,
        images_of(options, target),
        settings=COMMON | (SCRATCH if source is None else FULL) | {"run.snapshot_kimg": KIMG},
        kimg=KIMG,
        workdir=place,
        seed=seed,
    )
    return distance(options, place, images_of(options, target))


def correlations(rows: list[dict[str, Any]], after: list[float]) -> dict[str, float]:
    """Rank correlation of each number of the ranking with the distance after finetuning."""
    return {name: spearman([row[name] for row in rows], after) for name in SHOWN}


def measure(options: argparse.Namespace, target: str, places: dict[str, str]) -> dict[str, Any]:
    """The rows of one target and what correlates in them."""
    rows = kept(options.workdir / f"ranked-{target}.json", ranked, options, places, target)
    judged = options.workdir / "judged"
    after = {
        name: [
            kept(judged / f"{name or 'scratch'}-{target}-{seed}.json", finetuned, options, name, target, seed)
            for seed in options.seeds
        ]
        for name in (None, *places)
    }
    rows = [{**row, "after": after[row["source"]]} for row in rows]
    means = [float(np.mean(row["after"])) for row in rows]
    by_seed = [correlations(rows, [row["after"][k] for row in rows]) for k in range(len(options.seeds))]
    return {
        "rows": rows,
        "scratch": after[None],
        "correlation": correlations(rows, means),
        "correlation by seed": by_seed,
    }


def show(target: str, found: dict[str, Any]) -> None:
    """Prints one target's table."""
    told = ", ".join(f"{name} {value:+.2f}" for name, value in found["correlation"].items())
    print(f"\n{target}: rank correlation with the distance after finetuning: {told}")
    print("| source | recall | precision | distance before | after, per seed |")
    print("| --- | --- | --- | --- | --- |")
    for row in found["rows"]:
        after = ", ".join(f"{value:.2f}" for value in row["after"])
        print(f"| {row['source']} | {row['recall']:.3f} | {row['precision']:.3f} | {row['fid']:.2f} | {after} |")
    print(f"| random weights | | | | {', '.join(f'{value:.2f}' for value in found['scratch'])} |")


def row(images: np.ndarray) -> np.ndarray:
    """Images side by side, twice as large, with a margin of white."""
    wide = np.concatenate([*images[:PICTURED, :, :, 0]], axis=1).repeat(2, 0).repeat(2, 1)
    return np.pad(wide, ((2, 2), (6, 6)), constant_values=255)


def draw(options: argparse.Namespace) -> None:
    """Writes `pictures.png`."""
    samples = lambda place: row(gantransfer.load(str(place)).sample(PICTURED, seed=0))
    reals = lambda name: row(open_images(images_of(options, name), resolution=16, channels=1).arrays()[0][::37])
    blank = np.full_like(reals(TARGETS[0]), 255)
    runs, first = options.workdir / "runs", options.seeds[0]
    rows = [[blank, *map(reals, TARGETS)]]
    for name in (*SOURCES, "scratch"):
        own = blank if name == "scratch" else samples(options.workdir / "sources" / name)
        rows.append([own, *(samples(runs / f"{name}-{target}-{first}") for target in TARGETS)])
    whole = np.concatenate([np.concatenate(parts, axis=1) for parts in rows])
    Image.fromarray(whole).save(options.workdir / "pictures.png")


def main() -> None:
    """Measures what is missing, and prints the tables."""
    options = parse()
    places = {name: str(pretrained(options, name)) for name in SOURCES}
    results = {target: measure(options, target, places) for target in TARGETS}
    for target, found in results.items():
        show(target, found)
    overall = {name: float(np.mean([found["correlation"][name] for found in results.values()])) for name in SHOWN}
    print("\nmean over targets: " + ", ".join(f"{name} {value:+.2f}" for name, value in overall.items()))
    settings = {"common": COMMON, "pretrain": PRETRAIN, "full": FULL, "scratch": SCRATCH}
    settings |= {"pretrain_kimg": PRETRAIN_KIMG, "kimg": KIMG}
    text = json.dumps({"settings": settings, "targets": results, "mean": overall}, indent=1)
    (options.workdir / "results.json").write_text(text + "\n")
    draw(options)


if __name__ == "__main__":
    main()
