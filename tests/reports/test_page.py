"""Reports: one self-contained page whose numbers are those of the run's files."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from gantransfer.errors import UserError
from gantransfer.reports.page import write_report
from gantransfer.reports.records import read_runs

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = '<img src=x onerror="alert(1)">&"\''


class Page(HTMLParser):
    """A page as its elements: tag, attributes, text inside; refuses tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], text
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        if tag in {"td", "th"}:
            self.handle_data(" ")
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag):
        return [(attrs, text) for name, attrs, text in self.elements if name == tag]

    def cells(self):
        return [(attrs["title"], re.sub(r"\s+", " ", text)) for attrs, text in self.all("td") if "title" in attrs]


def report(folders, tmp_path, **options):
    return Page(write_report(folders, tmp_path / "report.html", **options).read_text("utf-8"))


def preview(c=1):
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, c), np.uint8)
    return images, np.arange(8) % 2, ["cat", HOSTILE]


def edit(path, change):
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize("count", [1, 3])
def test_the_page_loads_nothing_and_runs_nothing(make_run, tmp_path, count):
    page = report([make_run(f"r{i}", mode=f"m{i}") for i in range(count)], tmp_path, data_preview=preview(3))
    for tag, attrs, _ in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            assert attrs.get(name, "").startswith(("data:", "#")) or name not in attrs, (tag, attrs)
    assert "url(" not in page.text and "@import" not in page.text
    (policy,) = [attrs["content"] for attrs, _ in page.all("meta") if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'")
    targets = {attrs["id"] for _, attrs, _ in page.elements if "id" in attrs}
    assert {attrs["href"][1:] for attrs, _ in page.all("a")} <= targets


def test_every_evaluated_number_stands_in_the_table(make_run, tmp_path):
    folder = make_run("a")
    cells = dict(report([folder], tmp_path).cells())
    for line in (folder / "evaluations.jsonl").read_text().splitlines():
        for name, value in json.loads(line)["metrics"].items():
            shown = float(cells[repr(value)].strip("()"))
            assert shown == pytest.approx(value, rel=1e-3), name


def test_header_tables_and_card_say_what_the_files_say(make_run, tmp_path):
    page = report([make_run("a", seed=7)], tmp_path)
    facts = dict(zip([text for _, text in page.all("dt")], [text for _, text in page.all("dd")], strict=True))
    assert facts["Source"] == "glyphs (biggan)" and facts["Mode"] == "full" and facts["Seed"] == "7"
    assert facts["Data"] == "cats: 100 images, 2 classes, 8×8, grey"
    assert facts["Trained"].replace("\u00a0", " ") == "12.8 kimg of 20 planned"
    assert "jax\u00a00.0.9" in facts["Versions"] and facts["Licence of the source"] == "CC0-1.0"
    rows = [" ".join(text.split()) for _, text in page.all("tr")]
    assert "generator class_embedding 1 640 100 % mode full" in rows
    assert "generator b8/conv blocks.8 360 held mode full" in rows
    assert "data.path cats.zip" in rows
    assert any("640" in text and "64 % of 1,000" in text for _, text in page.all("div"))
    assert "</pre><script>1</script>" in page.all("pre")[0][1]
    (protocol,) = [text for attrs, text in page.all("p") if attrs.get("class") == "protocol"]
    assert protocol.split() == "Protocol features small_cnn samples 500 seed 7 versions.jax 0.0.9".split()


def test_pictures_are_those_of_the_run(make_run, tmp_path):
    folder = make_run("a")
    shown = [attrs["src"].partition("base64,")[2] for attrs, _ in report([folder], tmp_path).all("img")]
    files = [
        folder / "grids/reals.png",
        folder / "grids/fakes_000012800.png",
        *sorted(folder.glob("grids/fakes_*.png")),
    ]
    assert [base64.b64decode(picture) for picture in shown] == [file.read_bytes() for file in files]


def test_large_grids_are_made_smaller_and_the_page_says_so(make_run, tmp_path):
    folder = make_run("a")
    Image.new("RGB", (3000, 1500)).save(folder / "grids" / "reals.png")
    page = report([folder], tmp_path)
    first = Image.open(io.BytesIO(base64.b64decode(page.all("img")[0][0]["src"].partition("base64,")[2])))
    assert first.size == (1100, 550)
    assert "made smaller, from 3000 to 1100 pixels" in page.text


def test_losses_and_speed_are_drawn(make_run, tmp_path):
    page = report([make_run("a")], tmp_path)
    charts = [attrs["aria-label"] for attrs, _ in page.all("svg")]
    assert {"Loss", "Logits", "Seconds per kimg", "Fréchet distance (lower is better)"} <= set(charts)
    titles = [text for _, text in page.all("title")]
    assert "discriminator: 0.5 at 1.28 kimg" in titles and "seconds per kimg: 10 at 12.8 kimg" in titles


def test_recall_is_in_brackets_exactly_where_precision_is_below_one_half(make_run, tmp_path):
    folder = make_run("a")
    page = report([folder], tmp_path)
    cells = dict(page.cells())
    records = [json.loads(line)["metrics"] for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    low = [record["precision"] < 0.5 for record in records]
    assert any(low) and not all(low)
    assert [cells[repr(record["recall"])].startswith("(") for record in records] == low
    assert "Recall in brackets" in page.text
    points = [text for _, text in page.all("title") if text.startswith("recall:")]
    assert len(points) == low.count(False)


def test_hostile_names_are_text(make_run, tmp_path):
    folder = make_run("a<b>")
    edit(folder / "config.json", lambda config: config.update({"note<i>": HOSTILE, "mode": "<u>"}))
    page = report([folder], tmp_path, data_preview=preview(), title="<h9>&")
    assert page.all("h1")[0][1] == "<h9>&"
    names = [text for _, text in page.all("th")]
    assert names.count(HOSTILE) == 2 and "note<i>" in names
    assert not page.all("i>") and not page.all("u") and not page.all("b>")
    assert all(attrs.get("src", "").startswith("data:") for attrs, _ in page.all("img"))


def test_a_run_that_has_just_begun_is_reported_in_sentences(make_run, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    page = report([folder], tmp_path)
    for sentence in (
        "has not been evaluated yet",
        "No pictures have been generated yet",
        "no grid of real pictures",
        "No training step has been recorded yet",
        "Nothing has been timed yet",
        "no partition table",
        "does not say what it was trained on",
        "no model card yet",
    ):
        assert sentence in page.text
    comparison = report([folder, make_run("old")], tmp_path)
    assert "Trained parameters" in comparison.text
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "config.json").write_text("{}")
    both = report([folder, tmp_path / "newer"], tmp_path)
    assert "None of these runs has been evaluated yet" in both.text and "no curves" in both.text


@pytest.mark.parametrize("broken", ["no folder", "no config", "config", "metrics", "evaluations", "twice", "none"])
def test_what_is_no_run_is_refused_by_name(make_run, tmp_path, broken):
    folder = make_run("a")
    folders = [folder]
    match broken:
        case "no folder":
            folders = [tmp_path / "missing"]
        case "no config":
            (folder / "config.json").unlink()
        case "config":
            (folder / "config.json").write_text("[1]")
        case "metrics":
            (folder / "metrics.jsonl").write_text('{"kimg": 1}\n')
        case "evaluations":
            (folder / "evaluations.jsonl").write_text('{"kimg": 1, "images_seen": 1000}\n')
        case "twice":
            folders = [folder, folder]
        case "none":
            folders = []
    with pytest.raises(UserError) as refused:
        write_report(folders, tmp_path / "report.html")
    assert "\n" not in str(refused.value) and not (tmp_path / "report.html").exists()
    assert not folders or str(folders[0]) in str(refused.value)


def test_a_line_that_is_being_written_is_left_out_and_said(make_run, tmp_path):
    folder = make_run("a")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"images_seen": 13440, "ki')
    page = report([folder], tmp_path)
    assert "a/metrics.jsonl" in page.text and "Still being written" in page.text


def test_what_a_restart_repeated_counts_once_and_evaluations_of_one_state_are_one_row(make_run):
    folder = make_run("a")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"images_seen": 640, "kimg": 0.64, "loss/generator": 9.0}) + "\n")
    protocol = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[0])["protocol"]
    with open(folder / "evaluations.jsonl", "a") as file:
        file.write(json.dumps({"images_seen": 0, "kimg": 0, "metrics": {"coverage": 0.5}, "protocol": protocol}) + "\n")
    (run,) = read_runs([folder])
    assert len(run.ticks) == 20 and run.ticks[0]["loss/generator"] == 9.0
    assert len(run.evaluations) == 5 and set(run.evaluations[0]["metrics"]) == {
        "frechet_distance",
        "precision",
        "recall",
        "coverage",
    }


def test_training_time_is_read_between_ticks(make_run):
    (run,) = read_runs([make_run("a")])
    assert (
        run.seconds_at(0) == 0
        and run.seconds_at(6.4) == pytest.approx(64)
        and run.seconds_at(0.32) == pytest.approx(3.2)
    )
    assert run.seconds == 128 and run.seconds_at(99) is None


def test_a_comparison_has_every_number_of_every_run_and_marks_the_best(make_run, tmp_path):
    folders = [make_run("fast", mode="full"), make_run("slow", mode="none", gain=0.1)]
    page = report(folders, tmp_path)
    cells = page.cells()
    for folder in folders:
        for line in (folder / "evaluations.jsonl").read_text().splitlines():
            for value in json.loads(line)["metrics"].values():
                assert repr(value) in dict(cells)
    last = [json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])["metrics"] for folder in folders]
    strong = {text for _, text in page.all("strong")}
    assert f"{last[0]['frechet_distance']:.4g}" in strong
    assert f"{last[1]['frechet_distance']:.4g}" not in strong
    charts = [attrs["aria-label"] for attrs, _ in page.all("svg")]
    assert charts.count("Fréchet distance (lower is better)") == 2
    seconds = [text for _, text in page.all("title") if "seconds of training" in text]
    assert any(text.startswith("fast:") and text.endswith("at 128 seconds of training") for text in seconds)
    differing = {text for _, text in page.all("th")} & {"mode", "seed", "workdir", "kimg", "data.path"}
    assert "mode" in differing and not differing & {"seed", "workdir", "data.path"}
    grids = [attrs["alt"] for attrs, _ in page.all("img")]
    assert grids[:6] == [f"{name} after {kimg} kimg" for kimg in ("0", "6.4", "12.8") for name in ("fast", "slow")]


def test_seeds_of_one_arm_are_one_line_with_a_band_and_a_mean(make_run, tmp_path):
    folders = [make_run(f"full-{seed}", seed=seed) for seed in (0, 1, 2)] + [make_run("scratch", mode="none", gain=0.1)]
    page = report(folders, tmp_path)
    means = [text for _, text in page.all("tr") if "full, mean of 3" in text]
    assert len(means) == 5
    values = [
        json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])["metrics"]["frechet_distance"]
        for folder in folders[:3]
    ]
    mean = dict(page.cells())[repr(float(np.mean(values)))]
    assert mean.startswith(f"{np.mean(values):.4g}") and f"{min(values):.4g} to {max(values):.4g}" in mean
    said = [text for _, text in page.all("title") if text.startswith("full (3 seeds):") and "12.8 kimg" in text]
    assert any(f"({min(values):.4g} to {max(values):.4g})" in text for text in said)
    assert "full-1" in page.text and "of runs that differ only in their seed, the first" in page.text


def test_numbers_by_different_protocols_are_not_ranked_and_the_difference_is_named(make_run, tmp_path):
    page = report([make_run("a"), make_run("b", mode="none", samples=900)], tmp_path)
    (warning,) = [text for attrs, text in page.all("p") if attrs.get("class") == "warning"]
    assert "samples (500 / 900)" in warning and "features" not in warning
    assert not page.all("strong")


@pytest.mark.parametrize(
    ("source", "data", "headline"),
    [
        ("glyphs", "cats", "glyphs finetuned on cats"),
        (None, "cats", "Trained from scratch on cats"),
        ("glyphs", None, "glyphs finetuned"),
    ],
)
def test_the_headline_says_what_was_finetuned_on_what(make_run, tmp_path, source, data, headline):
    folder = make_run("a")
    edit(folder / "config.json", lambda config: config.update(source=source, data={"path": data}))
    (folder / "source.json").unlink()
    (folder / "data.json").unlink()
    assert report([folder], tmp_path).all("h1")[0][1] == headline


def test_runs_of_the_same_name_are_told_apart_by_their_folders(make_run, tmp_path):
    names = [run.name for run in read_runs([make_run("one/run"), make_run("two/run", seed=1)])]
    assert names == ["one/run", "two/run"]


def test_the_preview_shows_each_class_with_its_count(make_run, tmp_path):
    page = report([make_run("a")], tmp_path, data_preview=preview())
    alts = [attrs["alt"] for attrs, _ in page.all("img")]
    assert alts[-2:] == ["pictures of cat", f"pictures of {HOSTILE}"]
    rows = [" ".join(text.split()) for _, text in page.all("tr")]
    assert "cat 70" in rows
    many = np.zeros((40, 8, 8, 3), np.uint8), np.arange(40), [str(i) for i in range(40)]
    assert "The first 12 of 40 classes" in report([make_run("b")], tmp_path, data_preview=many).text
    with pytest.raises(UserError, match="data_preview"):
        report([make_run("c")], tmp_path, data_preview=(many[0], np.arange(40), ["one"]))
