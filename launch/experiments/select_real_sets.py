"""Does the order of `gantransfer select` agree with what finetuning makes of each source? Real sources, real sets.

    python launch/experiments/select_real_sets.py --shared ../shared --workdir scratch/select \\
        --sources svhn=converted/svhn celeba=converted/celeba glyphs=glyphs --targets fashion crawl_tiles --seeds 0 1

For each target: sources are ranked by recall in features of CIFAR ResNet-20, then each is finetuned in full mode under
one recipe, once for each seed, and judged by the Fréchet distance in features of CIFAR ResNet-32, which had no part in
the ranking. Everything is kept in `--workdir`: the same command goes on where it stopped. Prints the table, and per
target the rank correlation of recall (and of the distance before finetuning) with the distance after it; writes
`results.json`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gantransfer

KIMG, BATCH, IMAGES, NEIGHBOUR = 4, 16, 600, 5
RECIPE: dict[str, Any] = {
    "mode": "full",
    "batch": BATCH,
    "kimg": KIMG,
    "objective.loss": "non_saturating",
    "optimizer.lr_g": 2e-4,
    "optimizer.lr_d": 2e-4,
    "optimizer.lr_class_embedding": 2e-3,
    "optimizer.beta1": 0.5,
    "ema.decay": 0.995,
    "methods": ("differentiable_augment()", "r1(gamma=0.1)"),
    "run.snapshot_kimg": KIMG,
    "run.tensorboard": False,
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="the folder with data/ and weights/")
    parser.add_argument("--workdir", type=Path, required=True, help="for runs and what was measured")
    parser.add_argument("--sources", nargs="+", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--targets", nargs="+", required=True, help="names of zips in data/")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    return parser.parse_args()


def kept(path: Path, make: Callable[..., Any], *given: Any) -> Any:
    """What `make(*given)` returns, from `path` if it was made before."""
    if not path.exists():
        found = make(*given)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    return json.loads(path.read_text())


def ranked(options: argparse.Namespace, sources: dict[str, str], target: str) -> list[dict[str, Any]]:
    """The table of `select`, with the names of the command line."""
    rows = gantransfer.select(
        list(sources.values()),
        str(options.shared / "data" / f"{target}.zip"),
        features="cifar_resnet20_optionA",
        weights=[str(options.shared / "weights" / "cifar_resnet20" / "resnet20.npz")],
        num_images=IMAGES,
        k=NEIGHBOUR,
    )
    names = {source: name for name, source in sources.items()}
    columns = ("recall", "precision", "fid", "gradient_similarity")
    return [{"source": names[str(row["source"])]} | {name: row[name] for name in columns} for row in rows]


def distance(options: argparse.Namespace, source: str | Path, data: str, seed: int = 1) -> float:
    """Fréchet distance of samples to the target in the judge's features."""
    (record,) = gantransfer.evaluate(
        source,
        data,
        metrics=["fid"],
        features="cifar_resnet32_optionA",
        weights=[str(options.shared / "weights" / "cifar_resnet32" / "resnet32.npz")],
        num_images=IMAGES,
        seed=seed,
    )
    return float(record["value"])


def finetuned(options: argparse.Namespace, name: str, source: str, target: str, seed: int) -> float:
    """Finetunes a source, or goes on, and returns the distance of what it has become."""
    data, place = str(options.shared / "data" / f"{target}.zip"), options.workdir / "runs" / f"{name}-{target}-{seed}"
    settings = RECIPE | {"source": source, "data.path": data, "workdir": str(place), "seed": seed}
    pretrained = gantransfer.load(source)
    if pretrained.discriminator is None:
        settings |= {"transfer.warmup_kimg": 1}
    if pretrained.info.num_classes > 1:
        # Classes of letters and digits mean nothing to the targets: every new class starts as the mean of all.
        settings |= {"transfer.classes": "mean"}
    gantransfer.finetune(settings=settings)
    return distance(options, place, data)


def spearman(a: list[float], b: list[float]) -> float:
    """Rank correlation; ties share their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def main() -> None:
    """Measures what is missing, and prints the tables."""
    options = parse()
    sources = dict(pair.split("=", 1) for pair in options.sources)
    results: dict[str, Any] = {"recipe": RECIPE, "images": IMAGES, "k": NEIGHBOUR, "targets": {}}
    for target in options.targets:
        table = kept(options.workdir / f"ranked-{target}.json", ranked, options, sources, target)
        for row in table:
            name, after = row["source"], {}
            for seed in options.seeds:
                path = options.workdir / "judged" / f"{name}-{target}-{seed}.json"
                after[seed] = kept(path, finetuned, options, name, sources[name], target, seed)
            row["after"] = after
        means = [float(np.mean(list(row["after"].values()))) for row in table]
        results["targets"][target] = {
            "rows": table,
            "recall against the distance after": spearman([row["recall"] for row in table], means),
            "distance before against the distance after": spearman([row["fid"] for row in table], means),
        }
        print(f"\n{target}: rank correlation with the distance after finetuning: ", end="")
        print("recall {:.2f}, distance before {:.2f}".format(*list(results["targets"][target].values())[1:]))
        print("| source | recall | precision | distance before | pull of D | after, per seed |")
        print("| --- | --- | --- | --- | --- | --- |")
        for row in table:
            pull = "" if row["gradient_similarity"] is None else f"{row['gradient_similarity']:.3f}"
            after = ", ".join(f"{value:.2f}" for value in row["after"].values())
            numbers = f"{row['recall']:.3f} | {row['precision']:.3f} | {row['fid']:.1f}"
            print(f"| {row['source']} | {numbers} | {pull} | {after} |")
        (options.workdir / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
