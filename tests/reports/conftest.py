"""A made-up run folder with everything that a run leaves."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gantransfer.reports.grids import save_grid

HOSTILE = '<img src=x onerror="alert(1)">&"\''
POINTS = (0, 3200, 6400, 9600, 12800)


def _write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), "utf-8")


def _write_lines(folder: Path, name: str, records: list[dict]) -> None:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def _evaluation(images: int, seed: int, gain: float, samples: int) -> dict:
    quality = 1 - np.exp(-images / 1000 * gain)
    return {
        "kimg": images / 1000,
        "images_seen": images,
        "metrics": {
            "frechet_distance": 30.125 * (1 - quality) + 0.8125 + seed / 64,
            "precision": 0.1 + 0.8 * quality,
            "recall": 0.3 + 0.2 * quality,
        },
        "protocol": {"features": "small_cnn", "samples": samples, "seed": seed, "versions": {"jax": "0.0.9"}},
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder `tmp_path/NAME` and returns it."""

    def make(name: str, *, mode: str = "full", seed: int = 0, gain: float = 0.5, samples: int = 500) -> Path:
        folder = tmp_path / name
        (folder / "grids").mkdir(parents=True)
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 3)
        for file in ("reals.png", *(f"fakes_{images:09d}.png" for images in POINTS)):
            images = rng.integers(0, 256, (6, 8, 8, 1), np.uint8)
            save_grid(folder / "grids" / file, images, labels=labels, class_names=["cat", HOSTILE])
        config = {"source": "glyphs", "mode": mode, "seed": seed, "kimg": 20.0, "workdir": str(folder)}
        _write(folder, "config.json", {**config, "methods": ["r1(gamma=2.0)"], "data": {"path": "cats.zip"}})
        _write(folder, "source.json", {"name": "glyphs", "family": "biggan", "licence": "CC0-1.0", "origin": "made up"})
        classes = [{"index": 0, "name": "cat", "count": 70}, {"index": 1, "name": HOSTILE, "count": 30}]
        _write(
            folder,
            "data.json",
            {"name": "cats", "classes": classes, "fingerprint": "f00d", "images": 100, "resolution": 8, "channels": 1},
        )
        ticks = range(640, 12801, 640)
        _write_lines(
            folder,
            "metrics.jsonl",
            [
                {
                    "images_seen": n,
                    "kimg": n / 1000,
                    "loss/generator": 1.5,
                    "loss/discriminator": 640 / n,
                    "logits/real": 1,
                }
                for n in ticks
            ],
        )
        _write_lines(
            folder,
            "timing.jsonl",
            [
                {"images_seen": n, "kimg": n / 1000, "seconds": n / 100, "seconds_per_kimg": 10.0, "memory_bytes": 1}
                for n in ticks
            ],
        )
        _write_lines(folder, "evaluations.jsonl", [_evaluation(images, seed, gain, samples) for images in POINTS])
        leaf = {"role": "generator", "why": f"mode {mode}"}
        embedding = {**leaf, "path": "embed/table", "group": "class_embedding", "trained": True, "parameters": 640}
        kernel = {**leaf, "path": "b8/conv", "group": "blocks.8", "trained": False, "parameters": 360}
        _write(folder, "partition.json", [embedding, kernel])
        (folder / "snapshots" / "000012800").mkdir(parents=True)
        (folder / "snapshots" / "000012800" / "README.md").write_text("# A card\n</pre><script>1</script>\n", "utf-8")
        return folder

    return make
