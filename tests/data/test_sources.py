"""Folders and zips become image sets: classes, sizes, channels, fingerprints, options and refusals."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gantransfer.data import open_images
from gantransfer.data import sources as sources_module
from gantransfer.errors import UserError
from tests.data.conftest import picture

CLASSES = {f"{name}/{i}.png": picture(10 * n + i) for n, name in enumerate(("ant", "bee")) for i in range(3)}

# Images and classes as section 1 of the data sets' README has them: (images, classes, size, channels).
SHARED = {
    "cifar10_train": (7500, {750}, 10, 32, 3),
    "cifar10_test": (1500, {150}, 10, 32, 3),
    "mnist": (3000, {300}, 10, 32, 1),
    "fashion": (3000, None, 10, 32, 1),
    "quickdraw3": (1200, {400}, 3, 32, 1),
    "omniglot40": (800, {20}, 40, 32, 1),
    "crawl_tiles": (1962, None, 8, 32, 3),
    "emoji64": (517, {126, 131, 123, 137}, 4, 64, 3),
    "apple_leaves64": (800, {200}, 4, 64, 3),
    "blood_cells": (799, {300, 199}, 3, 32, 3),
    "sign_digits64": (800, {80}, 10, 64, 3),
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_sets_open_as_they_stand(shared, name):
    count, counts, classes, resolution, channels = SHARED[name]
    # Headers only: checking every pixel of 20,000 images takes seconds, and half a minute under type checks.
    images = open_images(str(shared / "data" / f"{name}.zip"), check="headers")
    assert (len(images), len(images.class_names), images.resolution, images.channels) == (
        count,
        classes,
        resolution,
        channels,
    )
    assert counts is None or set(images.counts) == counts
    assert list(images.class_names) == sorted(images.class_names)
    assert all(
        file.split("/")[0] == images.class_names[label] for file, label in zip(images.files, images.labels, strict=True)
    )


def test_folder_and_zip_give_the_same_set(make_zip, make_folder):
    zipped, folder = open_images(make_zip(CLASSES)), open_images(make_folder(CLASSES))
    for images in (zipped, folder):
        assert images.class_names == ("ant", "bee") and images.counts == (3, 3)
        assert images.files == tuple(CLASSES)
    np.testing.assert_array_equal(zipped.arrays()[0], folder.arrays()[0])
    assert zipped.fingerprint == folder.fingerprint


def test_reading_one_image_equals_the_arrays(make_zip):
    images = open_images(make_zip(CLASSES))
    pixels, labels = images.arrays()
    assert pixels.dtype == np.uint8 and labels.dtype == np.int32
    for i in range(len(images)):
        one, label = images.read(i)
        np.testing.assert_array_equal(one, pixels[i])
        assert label == labels[i]


def test_sets_too_large_to_keep_are_read_from_their_files(make_zip, monkeypatch):
    kept = open_images(make_zip(CLASSES))
    monkeypatch.setattr(sources_module, "KEEP_BYTES", 100)
    read = open_images(make_zip(CLASSES))
    assert kept.decoded is not None and read.decoded is None
    np.testing.assert_array_equal(kept.arrays()[0], read.arrays()[0])


def test_class_table_lists_index_count_and_name(make_zip):
    head, *rows = open_images(make_zip(CLASSES | {"bee/9.png": picture(99)})).class_table().splitlines()
    assert "7 images, 8x8, colour; 2 classes, numbered in alphabetical order of the folder names" in head
    assert [row.split() for row in rows] == [["0", "3", "ant"], ["1", "4", "bee"]]


def test_flat_sets_have_one_class(make_zip):
    images = open_images(make_zip({"a.png": picture(0), "b.png": picture(1)}))
    assert images.class_names == ("all",) and "unconditional" in images.class_table()


def test_a_common_folder_is_no_class(make_zip):
    one = open_images(make_zip({"deep/photos/a.png": picture(0), "deep/photos/b.png": picture(1)}))
    assert one.class_names == ("all",) and "deep/photos/" in one.notes[0]
    two = open_images(make_zip({f"set/{name}": data for name, data in CLASSES.items()}))
    assert two.class_names == ("ant", "bee")


def test_deeper_folders_belong_to_the_first_level(make_zip):
    images = open_images(make_zip({"a/x/0.png": picture(0), "a/y/1.png": picture(1), "b/0.png": picture(2)}))
    assert dict(zip(images.files, images.labels.tolist(), strict=True)) == {
        "a/x/0.png": 0,
        "a/y/1.png": 0,
        "b/0.png": 1,
    }


def test_a_part_of_a_folder_can_be_named(make_folder):
    path = make_folder({f"{part}/{name}": data for part in ("train", "test") for name, data in CLASSES.items()})
    assert open_images(f"{path}:test").files[0] == "test/ant/0.png"
    assert len(open_images(f"{path}/test")) == len(CLASSES)


def test_resolution_is_the_common_size_or_a_power_of_two_that_enlarges_nothing(make_zip):
    assert open_images(make_zip({"a.png": picture(0, (28, 28))})).resolution == 28
    assert open_images(make_zip({"a.png": picture(0, (40, 30)), "b.png": picture(1, (35, 50))})).resolution == 16
    assert open_images(make_zip({"a.png": picture(0, (40, 30))}), resolution=20).arrays()[0].shape == (1, 20, 20, 3)


def test_channels_follow_the_files_unless_given(make_zip):
    grey = {"a.png": picture(0, mode="L"), "b.png": picture(1, mode="LA")}
    assert open_images(make_zip(grey)).channels == 1
    assert open_images(make_zip(grey | {"c.png": picture(2)})).channels == 3
    assert open_images(make_zip(grey | {"c.png": picture(2)}), channels=1).arrays()[0].shape[-1] == 1


def test_what_was_done_to_pictures_is_noted_with_numbers(make_zip):
    path = make_zip({"a.png": picture(0, (40, 30)), "b.png": picture(1, (16, 16)), "c.png": picture(2, mode="L")})
    notes = "\n".join(open_images(path, resolution=16, fit="pad").notes)
    assert "1 of 3 not square: padded to a square (a.png)" in notes
    assert "1 of 3 larger than 16x16: resized (a.png)" in notes
    assert "1 of 3 smaller than 16x16: resized (c.png)" in notes
    assert "1 of 3 grey: repeated to three channels (c.png)" in notes


def test_the_fingerprint_changes_with_bytes_labels_names_and_rules(make_zip):
    def mark(entries=CLASSES, **options):
        return open_images(make_zip(entries), **options).fingerprint

    first = mark()
    assert first == mark() == mark(resolution=8, channels=3)
    swapped = dict(CLASSES) | {"ant/0.png": CLASSES["bee/0.png"], "bee/0.png": CLASSES["ant/0.png"]}
    renamed = {name.replace("bee", "wasp"): data for name, data in CLASSES.items()}
    labelled = CLASSES | {"dataset.json": json.dumps({"labels": [[name, 0] for name in CLASSES]}).encode()}
    marks = [first, mark(CLASSES | {"ant/0.png": picture(77)}), mark(swapped), mark(renamed), mark(labelled)]
    marks += [
        mark(resolution=4),
        mark(channels=1),
        mark(fit="pad"),
        mark(background=5),
        mark(dict(list(CLASSES.items())[1:])),
    ]
    assert len(set(marks)) == len(marks)


def test_a_changed_byte_in_a_folder_changes_the_fingerprint(make_folder):
    before = open_images(make_folder(CLASSES)).fingerprint
    other = picture(0)
    # After the image's end: the pixels stay, the bytes do not.
    assert open_images(make_folder(CLASSES | {"ant/0.png": other + b"x"})).fingerprint != before


def test_headers_only_still_names_damage_when_it_is_met(make_folder):
    cut = picture(0, (64, 64))
    path = make_folder({"a.png": picture(1, (64, 64)), "cut.png": cut[: len(cut) // 2]})
    with pytest.raises(UserError, match=r"cut\.png"):
        open_images(path)
    images = open_images(path, check="headers")
    images.read(0)
    with pytest.raises(UserError, match=r"cut\.png.*truncated"):
        images.read(1)
    with pytest.raises(UserError, match=r"cut\.png.*truncated"):
        images.arrays()


def test_a_class_that_loses_every_image_to_damage_is_named(make_zip):
    with pytest.raises(UserError, match="class bee.*damaged"):
        open_images(make_zip({"ant/0.png": picture(0), "bee/0.png": b"no"}), on_corrupt="skip")


def test_a_set_of_damaged_files_only_is_refused_even_when_skipping(make_zip):
    for options in ({}, {"resolution": 8, "channels": 3}):
        with pytest.raises(UserError, match=r"0\.png"):
            open_images(make_zip({"0.png": b"no", "1.png": b""}), on_corrupt="skip", **options)


def labels_zip(make_zip, content) -> str:
    return make_zip({"0.png": picture(0), "1.png": picture(1), "dataset.json": json.dumps(content).encode()})


def test_dataset_json_may_name_its_classes(make_zip):
    rows = [["0.png", 1], ["1.png", 0]]
    images = open_images(labels_zip(make_zip, {"labels": rows, "class_names": ["cold", "warm"]}))
    assert images.class_names == ("cold", "warm") and images.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": [["0.png", 0], ["1.png", 2]], "class_names": ["a", "b"]}, r"1\.png has label 2.*0 to 1"),
        ({"labels": [["0.png", 0], ["1.png", 0]], "class_names": ["a", "b"]}, "class b"),
        ({"labels": [["0.png", 0], ["1.png", 0]], "class_names": ["a", "a"]}, "different strings"),
        ({"labels": [["0.png", 0], ["1.png", 10**12]]}, r"1\.png has label 1000000000000"),
        ({"labels": [["0.png", 0], ["0.png", 1], ["1.png", 0]]}, r"0\.png.*one label for each file"),
        ({"labels": [["0.png", 0.5], ["1.png", 0]]}, r"0\.png has label 0\.5.*integers"),
        ({"labels": [["0.png", True], ["1.png", 0]]}, r"0\.png has label True"),
        ({"labels": [["0.png"], ["1.png", 0]]}, "rows of a file name"),
        ({"labels": []}, "of this form"),
        ({"labels": {"0.png": 0}}, "of this form"),
        ([1, 2], "labels"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_by_name(make_zip, content, words):
    with pytest.raises(UserError, match=words):
        open_images(labels_zip(make_zip, content))


def test_a_dataset_json_below_other_folders_is_refused(make_zip):
    entries = CLASSES | {"ant/dataset.json": b'{"labels": null}'}
    with pytest.raises(UserError, match=r"ant/dataset\.json"):
        open_images(make_zip(entries))


def test_the_number_of_classes_can_be_demanded(make_zip):
    assert len(open_images(make_zip(CLASSES), classes=2)) == 6
    with pytest.raises(UserError, match=r"2 classes \(ant, bee\).*3 classes"):
        open_images(make_zip(CLASSES), classes=3)


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/a.png", "C:/a.png", "..\\a.png", "C:\\a.png"])
def test_names_that_leave_the_zip_are_refused(make_zip, name):
    with pytest.raises(UserError, match="stay inside"):
        open_images(make_zip({"ok.png": picture(0), name: picture(1)}))


def test_a_dot_dot_inside_a_name_is_no_danger(make_zip):
    assert len(open_images(make_zip({"a..b.png": picture(0), "...png": picture(1), "c.png": picture(2)}))) == 2


def test_windows_separators_are_read_as_slashes(make_zip):
    images = open_images(make_zip({name.replace("/", "\\"): data for name, data in CLASSES.items()}))
    assert images.class_names == ("ant", "bee") and "\\" in images.notes[0]


def test_links_in_zips_are_refused(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"link\.png.*symbolic link"):
        open_images(str(tmp_path / "x.zip"))


def test_encrypted_entries_are_refused(make_zip):
    path = Path(make_zip({"a.png": picture(0)}))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.png.*encrypted"):
        open_images(str(path))


def test_entries_that_unpack_to_too_much_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", picture(0))
        archive.writestr("zeros.png", bytes(3_000_000))
    with pytest.raises(UserError, match=r"zeros\.png.*at most.*3,000,000"):
        open_images(str(tmp_path / "x.zip"), max_pixels=10_000)


def test_links_in_folders_are_followed_but_not_in_circles(make_folder):
    path = Path(make_folder(CLASSES))
    os.symlink(path / "bee", path / "wasp")
    assert open_images(str(path)).class_names == ("ant", "bee", "wasp")
    os.symlink(path, path / "bee" / "up")
    with pytest.raises(UserError, match="bee/up"):
        open_images(str(path))


def test_broken_links_and_unreadable_files_are_named(make_folder):
    path = Path(make_folder(CLASSES))
    os.symlink(path / "nowhere", path / "bee" / "gone.png")
    with pytest.raises(UserError, match=r"bee/gone\.png.*cannot be read"):
        open_images(str(path))


def test_a_file_that_disappears_later_is_named(make_folder, monkeypatch):
    monkeypatch.setattr(sources_module, "KEEP_BYTES", 0)
    path = make_folder(CLASSES)
    images = open_images(path)
    Path(path, "bee/1.png").unlink()
    with pytest.raises(UserError, match=r"bee/1\.png.*cannot be read"):
        images.arrays()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"resolution": 0}, "data.resolution"),
        ({"channels": 2}, "data.channels"),
        ({"fit": "stretch"}, "data.fit"),
        ({"on_corrupt": "ignore"}, "data.on_corrupt"),
        ({"background": 256}, "data.background"),
        ({"max_pixels": 0}, "data.max_pixels"),
        ({"check": "nothing"}, "data.check"),
    ],
)
def test_options_out_of_range_are_refused_by_name(make_zip, options, field):
    with pytest.raises(UserError, match=field):
        open_images(make_zip(CLASSES), **options)


def test_a_missing_path_is_one_line_that_says_what_is_possible(tmp_path):
    with pytest.raises(UserError, match="a folder, a zip, tfds:NAME.*digits"):
        open_images(str(tmp_path / "nothing.zip"))


def test_exact_fit_names_the_first_file_of_another_size(make_zip):
    path = make_zip({"a.png": picture(0), "b.png": picture(1, (9, 8))})
    with pytest.raises(UserError, match=r"set\.zip: b\.png \(9x8\)"):
        open_images(path, resolution=8, fit="exact")


def test_subsets_keep_numbering_and_change_the_fingerprint(make_zip):
    images = open_images(make_zip(CLASSES))
    part = images.subset([5, 0])
    assert part.files == ("bee/2.png", "ant/0.png") and part.labels.tolist() == [1, 0]
    assert part.class_names == images.class_names
    np.testing.assert_array_equal(part.arrays()[0], images.arrays()[0][[5, 0]])
    np.testing.assert_array_equal(part.subset([1]).read(0)[0], images.read(0)[0])
    assert part.fingerprint != images.fingerprint
    for indices in ([], [6], [-1]):
        with pytest.raises(UserError):
            images.subset(indices)


def test_a_set_can_take_the_numbering_of_another(make_zip):
    images = open_images(make_zip(CLASSES))
    assert images.with_classes(["bee", "ant"]).labels.tolist() == [1, 1, 1, 0, 0, 0]
    only = images.with_classes(["bee"])
    assert only.files == ("bee/0.png", "bee/1.png", "bee/2.png") and set(only.labels) == {0}
    with pytest.raises(UserError, match="wasp"):
        images.with_classes(["wasp"])


def test_sets_survive_pickling_without_carrying_pixels(make_zip, make_folder):
    for path in (make_zip(CLASSES), make_folder(CLASSES)):
        images = open_images(path)
        copy = pickle.loads(pickle.dumps(images))
        assert copy.decoded is None and copy.fingerprint == images.fingerprint
        np.testing.assert_array_equal(copy.arrays()[0], images.arrays()[0])


def test_sets_cannot_be_changed_by_accident(make_zip):
    images = open_images(make_zip(CLASSES))
    with pytest.raises(ValueError):
        images.labels[0] = 1
    with pytest.raises(ValueError):
        images.read(0)[0][0] = 1
