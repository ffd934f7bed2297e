"""Few-shot draws: seeded, even over the classes, nested, and refused by name."""

import json

import numpy as np
import pytest

from gantransfer.data import choose, open_images
from gantransfer.errors import UserError
from tests.data.conftest import picture

COUNTS = {"ant": 9, "bee": 2, "cat": 5}


@pytest.fixture
def images(make_zip):
    entries = {
        f"{name}/{i}.png": picture(100 * n + i, (4, 4)) for n, name in enumerate(COUNTS) for i in range(COUNTS[name])
    }
    return open_images(make_zip(entries))


def test_nothing_asked_gives_the_set_itself(images):
    assert choose(images, seed=0) is images


@pytest.mark.parametrize(
    ("number", "counts"),
    [(16, [9, 2, 5]), (3, [1, 1, 1]), (6, [2, 2, 2]), (10, [4, 2, 4]), (13, [6, 2, 5]), (15, [8, 2, 5])],
)
def test_images_are_spread_evenly_as_far_as_classes_reach(images, number, counts):
    for seed in range(4):
        assert sorted(choose(images, images=number, seed=seed).counts) == sorted(counts)


def test_where_the_number_does_not_divide_the_seed_chooses_the_richer_classes(images):
    seen = {choose(images, images=7, seed=seed).counts for seed in range(40)}
    # Bees have no third image to give.
    assert seen == {(3, 2, 2), (2, 2, 3)}


def test_the_same_seed_gives_the_same_draw_and_others_differ(images):
    draws = [choose(images, images=8, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert draws[0].files == draws[1].files and draws[0].fingerprint == draws[1].fingerprint
    assert len({draw.files for draw in draws}) > 2
    assert len({draw.fingerprint for draw in draws}) == len({draw.files for draw in draws})


def test_smaller_draws_lie_inside_larger_ones(images):
    draws = [set(choose(images, images=number, seed=5).files) for number in range(1, 17)]
    assert all(small < large for small, large in zip(draws, draws[1:], strict=False))


def test_every_image_has_its_chance(images):
    times = np.zeros(len(images))
    for seed in range(100):
        for file in choose(images, images=6, seed=seed).files:
            times[images.files.index(file)] += 1
    # 2 of 9, 2 of 2, 2 of 5; binomial deviations of 100 draws, four of them.
    for label, share in enumerate((2 / 9, 1, 2 / 5)):
        spread = 4 * np.sqrt(100 * share * (1 - share))
        assert np.abs(times[images.labels == label] - 100 * share).max() <= spread


def test_per_class_gives_each_class_its_number(images):
    part = choose(images, per_class=2, seed=0)
    assert part.counts == (2, 2, 2) and part.class_names == images.class_names
    assert set(part.files) == set(choose(images, images=6, seed=0).files)


def test_pixels_and_labels_belong_to_the_chosen_files(images):
    part = choose(images, images=5, seed=3)
    for i, file in enumerate(part.files):
        whole = images.files.index(file)
        np.testing.assert_array_equal(part.read(i)[0], images.read(whole)[0])
        assert part.class_names[part.labels[i]] == file.split("/")[0]


def test_classes_left_without_images_are_dropped_with_a_note(images):
    part = choose(images, images=2, seed=0)
    assert len(part.class_names) == 2 and part.counts == (1, 1)
    assert "1 classes have no image" in part.notes[-1]
    assert part.with_classes(part.class_names[::-1]).class_names == part.class_names[::-1]


def test_the_draw_is_noted(images):
    assert choose(images, images=8, seed=4).notes[-1] == "8 of 16 images, chosen by data.images=8 with seed 4"


def write(tmp_path, name, content) -> str:
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(tmp_path / name)


def test_lists_may_be_text_json_or_a_key_of_json(images, tmp_path):
    names = ["cat/4.png", "ant/0.png"]
    paths = [
        write(tmp_path, "list.txt", "cat/4.png\n\n  ant/0.png \n"),
        write(tmp_path, "list.json", names),
        write(tmp_path, "splits.json", {"set": "x", "mine": names, "other": ["bee/0.png"]}) + ":mine",
    ]
    for path in paths:
        part = choose(images, files=path, seed=0)
        assert part.files == ("ant/0.png", "cat/4.png") and part.class_names == ("ant", "cat")


def test_names_below_the_common_folder_are_found_too(make_zip, tmp_path):
    images = open_images(make_zip({f"root/set/{name}": picture(i) for i, name in enumerate(("a.png", "b.png"))}))
    for name in ("b.png", "root/set/b.png"):
        assert choose(images, files=write(tmp_path, "l.txt", name), seed=0).files == ("root/set/b.png",)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"images": 17}, "data.images: 17 .*1 to 16"),
        ({"images": 0}, "data.images: 0"),
        ({"per_class": 3}, "data.per_class: 3 .*1 to 2.*class bee"),
        ({"per_class": 0}, "data.per_class: 0"),
        ({"images": 3, "per_class": 1}, "data.images and data.per_class.*one of them"),
        ({"files": "nowhere.txt"}, r"data\.files.*nowhere\.txt.*cannot be read"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused_by_name(images, wishes, words):
    with pytest.raises(UserError, match=words):
        choose(images, seed=0, **wishes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (["ant/0.png", "ant/00.png", "wasp/1.png"], r"ant/00\.png.*2 are not.*nearest is ant/0\.png"),
        (["ant/0.png", "bee/1.png", "ant/0.png"], r"ant/0\.png.*each file once"),
        ([], "at least one file name"),
        ([1, 2], "at least one file name"),
        ("{", "does not parse"),
        ({"set": "x", "few": ["ant/0.png"]}, r"one list of it: .*\.json:few"),
    ],
)
def test_lists_that_do_not_fit_are_refused_by_name(images, tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        choose(images, files=write(tmp_path, "list.json", content), seed=0)


@pytest.mark.parametrize("name", ["emoji64", "omniglot40", "blood_cells"])
def test_the_shared_splits_can_be_named(shared, name):
    path = shared / "data" / "splits" / f"{name}.json"
    splits = json.loads(path.read_text("utf-8"))
    images = open_images(str(shared / "data" / splits["set"]), check="headers")
    for key, names in splits.items():
        if isinstance(names, list):
            part = choose(images, files=f"{path}:{key}", seed=0)
            assert len(part) == len(names) and set(part.files) == set(names)
            assert set(part.class_names) == {name.split("/")[0] for name in names}
