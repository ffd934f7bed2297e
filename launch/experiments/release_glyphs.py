"""Makes the shipped source `glyphs` and its results page out of a finished run of configs/pretrain_glyphs.py.

gantransfer finetune --config configs/pretrain_glyphs.py --workdir runs/glyphs
python launch/experiments/release_glyphs.py runs/glyphs
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import gantransfer
from gantransfer.pretrained.card import model_card
from gantransfer.pretrained.catalogue import CATALOGUE
from gantransfer.pretrained.folder import write_source

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("class_accuracy", "frechet_distance", "precision", "recall", "coverage", "within_class_deviation")


def log_table(run: Path) -> str:
    """The run's evaluations as Markdown."""
    lines = ["| kimg | " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " |"]
    lines.append("| --- " * (len(COLUMNS) + 1) + "|")
    for record in map(json.loads, (run / "evaluations.jsonl").open()):
        numbers = " | ".join(f"{record['metrics'][name]:.3f}" for name in COLUMNS)
        lines.append(f"| {record['kimg']:g} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """Writes the package's asset and docs/results/glyphs.md with its grid."""
    run = Path(sys.argv[1])
    record = json.loads((run / "evaluations.jsonl").read_text("utf-8").splitlines()[-1])
    protocol = record["protocol"]
    notes = f"""## How it was trained

`configs/pretrain_glyphs.py`: logistic loss, R1, a class head on the discriminator, no spectral norm; 11,100 letters
rendered from the fonts that matplotlib bundles, in the form of scikit-learn's handwritten digits. No digit was seen.

## Class agreement and what stands beside it

{protocol["n_generated"]} samples against {protocol["n_real"]} unseen letters, features and judgement by
`{protocol["network"]}` ({protocol["network_sha256"][:8]}), k = {protocol["k"]}, one seed. Agreement alone hides
collapse: read it with recall and with the deviation inside classes (1 = as in real letters).

{log_table(run)}
"""
    source = gantransfer.load(run)
    info = replace(
        source.info,
        name="glyphs",
        licence="Apache-2.0",
        origin="trained by this project: configs/pretrain_glyphs.py",
        trained_on="glyphs (37 letters, 300 of each, rendered from the fonts of matplotlib)",
    )
    released = replace(source, info=info, generator=source.ema)
    write_source(CATALOGUE["glyphs"].folder, released, card=model_card(released, "made for the quickstart", notes))
    results = ROOT / "docs" / "results"
    (results / "pictures").mkdir(parents=True, exist_ok=True)
    gantransfer.sample(released, results / "pictures" / "glyphs.png", seeds="0-11")
    shutil.copy(run / "evaluations.jsonl", results / "glyphs_evaluations.jsonl")
    page = f"""# The source `glyphs`

```bash
gantransfer finetune --config configs/pretrain_glyphs.py --workdir runs/glyphs
python launch/experiments/release_glyphs.py runs/glyphs
```

![one row per letter, one latent per column](pictures/glyphs.png)

{notes}
The records behind the table: [glyphs_evaluations.jsonl](glyphs_evaluations.jsonl).
"""
    (results / "glyphs.md").write_text(page, "utf-8")


if __name__ == "__main__":
    main()
