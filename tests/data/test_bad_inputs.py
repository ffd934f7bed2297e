"""The 44 bad and odd zips of the shared folder: what each is taken as, or what its refusal names."""

from pathlib import Path

import pytest

from gantransfer.data import open_images
from gantransfer.errors import UserError

# (classes with their counts, resolution, channels, words that the notes hold)
ACCEPTED = {
    "good_flat": ({"all": 4}, 32, 3, ""),
    "good_classes": ({"monster": 4, "weapon": 4}, 32, 3, ""),
    "depth16": ({"all": 3}, 32, 3, "2 of 3 16 bits per channel"),
    "modes": ({"all": 9}, 32, 3, "3 of 9 with transparency"),
    "exif_rotated": ({"all": 5}, 32, 3, "4 of 5 with an EXIF orientation"),
    "nonsquare": ({"all": 4}, 8, 3, "4 of 4 not square: cut to their centre square"),
    "mixed_sizes": ({"all": 4}, 16, 3, "3 of 4 larger than 16x16: resized"),
    "gray_and_rgb": ({"all": 3}, 32, 3, "1 of 3 grey: repeated to three channels (gray.png)"),
    "non_ascii": ({"emoji\U0001f600": 1, "quote'\"": 1, "кошка": 2, "ネコ": 1}, 32, 3, ""),
    "junk_files": ({"cat": 1, "dog": 1}, 32, 3, "file managers are passed over (5)"),
    "extensions": ({"all": 9}, 32, 3, "read by content (h_png_named.jpg)"),
    "animated": ({"all": 2}, 32, 3, "2 of 2 animated: the first frame is taken"),
    "duplicate_images": ({"all": 7}, 32, 3, "5 of 7 repeat the bytes of another file"),
    "numeric_class_order": ({"1": 1, "10": 1, "2": 1, "9": 1}, 32, 3, ""),
    "nvlabs_good": ({"0": 2, "1": 2}, 32, 3, "dataset.json decides the classes"),
    "nvlabs_labels_null": ({"all": 4}, 32, 3, ""),
    "nvlabs_extra_label": ({"0": 4}, 32, 3, "00000/img99999999.png"),
    "nvlabs_backslash_names": ({"0": 2, "1": 2}, 32, 3, "names with \\ in dataset.json"),
    "nvlabs_nested_json": ({"0": 2, "1": 2}, 32, 3, "taken from sub/"),
    "nvlabs_json_and_folders": ({"0": 1, "1": 1}, 32, 3, "dataset.json decides the classes; folders do not count"),
}

# Parts of the one line that refuses each; the zip's name is always there.
REFUSED = {
    "truncated_png": ("bad_half.png", "truncated", "bad_header_only.png", "data.on_corrupt=skip"),
    "text_as_png": ("notes.png", "not an image by its content"),
    "zero_bytes": ("empty.png", "the file is empty"),
    "one_pixel": ("px.png is 1x1", "data.resolution"),
    "empty_class": ("class ant", "at least one image"),
    "text_only_class": ("class zebra", "at least one image"),
    "zip_slip": ("../evil.png", "stay inside"),
    "nested": ("train, val", "nested.zip:train or", "nested.zip:val"),
    "flat_and_folders": ("0.png", "cat, dog"),
    "duplicate_names": ("0.png", "one entry for each name"),
    "case_collision": (": cat", "Cat"),
    "bomb_dims": ("bomb.png", "67,108,864", "3,600,000,000"),
    "no_images": ("at least one image file",),
    "empty": ("at least one image file",),
    "not_a_zip": ("not a zip file",),
    "truncated_zip": ("not a zip file",),
    "bad_crc": ("0.png", "Bad CRC-32"),
    "nvlabs_no_labels_key": ("dataset.json", '"labels" entry'),
    "nvlabs_missing_label": ("00000/img00000003.png", "a label in dataset.json for every image"),
    "nvlabs_broken_json": ("dataset.json", "does not parse"),
    "nvlabs_vector_labels": ("00000/img00000000.png", "vectors"),
    "nvlabs_gap_labels": ("class 1, 2, 3, 4", "at least one image"),
    "nvlabs_negative_label": ("00000/img00000000.png has label -1", "from 0 up"),
    "nvlabs_string_labels": ("00000/img00000000.png has label 'cat'", "integers"),
}


@pytest.fixture(scope="module")
def folder(shared) -> Path:
    return shared / "data" / "bad_inputs"


def test_every_zip_has_an_outcome(folder):
    assert {path.stem for path in folder.glob("*.zip")} == ACCEPTED.keys() | REFUSED.keys()
    assert not ACCEPTED.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_as(folder, name):
    counts, resolution, channels, note = ACCEPTED[name]
    images = open_images(str(folder / f"{name}.zip"))
    assert dict(zip(images.class_names, images.counts, strict=True)) == counts
    assert list(images.class_names) == list(counts)
    assert (images.resolution, images.channels) == (resolution, channels)
    assert note in "\n".join(images.notes)
    assert note or not images.notes, "an ordinary set should have nothing to say"
    pixels, labels = images.arrays()
    assert pixels.shape == (len(images), resolution, resolution, channels)
    assert labels.shape == (len(images),)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(folder, name):
    with pytest.raises(UserError) as caught:
        open_images(str(folder / f"{name}.zip"))
    message = str(caught.value)
    assert "\n" not in message
    for part in (f"{name}.zip", *REFUSED[name]):
        assert part in message


@pytest.mark.parametrize(
    ("name", "kept"), [("truncated_png", 4), ("text_as_png", 4), ("zero_bytes", 4), ("bad_crc", 3)]
)
def test_damaged_files_can_be_skipped_and_are_named_once(folder, name, kept, caplog):
    images = open_images(str(folder / f"{name}.zip"), on_corrupt="skip")
    assert len(images) == kept == len(images.arrays()[0])
    assert images.skipped and not {file for file, _ in images.skipped} & set(images.files)
    (record,) = caplog.records
    for file, why in images.skipped:
        assert record.getMessage().count(f"{file} ({why})") == 1


@pytest.mark.parametrize("name", ["bomb_dims", "zip_slip", "duplicate_names"])
def test_skipping_does_not_let_dangerous_zips_in(folder, name):
    with pytest.raises(UserError):
        open_images(str(folder / f"{name}.zip"), on_corrupt="skip")


def test_nothing_is_unpacked(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("zip_slip", "good_classes"):
        try:
            open_images(str(folder / f"{name}.zip"))
        except UserError:
            pass
    assert not list(tmp_path.iterdir())


def test_a_split_of_a_nested_zip_can_be_named(folder):
    train = open_images(f"{folder / 'nested.zip'}:train")
    assert train.class_names == ("cat", "dog") and train.counts == (2, 1)
    assert train.files == ("root/train/cat/a/0.png", "root/train/cat/b/0.png", "root/train/dog/0.png")
    with pytest.raises(UserError, match=r"nested\.zip:tset.*root/train"):
        open_images(f"{folder / 'nested.zip'}:tset")


def test_one_pixel_is_enlarged_when_a_size_is_given_and_said_so(folder):
    images = open_images(str(folder / "one_pixel.zip"), resolution=8)
    assert "smaller than 8x8: resized (px.png)" in images.notes[0]
    pixels = images.arrays()[0]
    assert pixels.shape == (1, 8, 8, 3) and (pixels == pixels[0, 0, 0]).all()


def test_stored_orientations_are_applied(folder):
    images = open_images(str(folder / "exif_rotated.zip"))
    pixels = dict(zip(images.files, images.arrays()[0].astype(int), strict=True))
    # All four hold the same stored picture, with a red bar at its top; the tag says where that top belongs.
    middles = {"top": (1, 16), "right": (16, -2), "bottom": (-2, 16), "left": (16, 1)}
    for number, side in ((1, "top"), (3, "bottom"), (6, "right"), (8, "left")):
        red = pixels[f"orientation{number}.jpg"][middles[side]]
        assert red[0] > 200 and red[1:].max() < 50


def test_sixteen_bit_grey_is_not_clipped_to_white(folder):
    images = open_images(str(folder / "depth16.zip"))
    grey = images.arrays()[0][images.files.index("gray16.png")]
    assert (grey == 255).mean() < 0.1 and grey.std() > 20


def test_labels_of_dataset_json_win_over_folders(folder):
    images = open_images(str(folder / "nvlabs_json_and_folders.zip"))
    assert dict(zip(images.files, images.labels.tolist(), strict=True)) == {"cat/0.png": 1, "dog/0.png": 0}
