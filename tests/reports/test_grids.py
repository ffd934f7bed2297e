"""Grids, strips and films: every image where it belongs, pixel for pixel."""

import sys

import numpy as np
import pytest
from PIL import Image

from gantransfer.errors import UserError
from gantransfer.reports.grids import PAPER, by_class, grid, save_grid, save_video, strip, write_whole


def pictures(n=5, h=8, w=8, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_in_its_cell_and_the_rest_is_paper(channels):
    images = pictures(c=channels)
    sheet = np.asarray(grid(images, columns=3, scale=2, gap=1)).reshape(35, 52, -1)
    assert sheet.shape == (2 * 17 + 1, 3 * 17 + 1, channels)
    for i, image in enumerate(images):
        top, left = i // 3 * 17 + 1, i % 3 * 17 + 1
        cell = sheet[top : top + 16, left : left + 16]
        np.testing.assert_array_equal(cell[::2, ::2], image)
        np.testing.assert_array_equal(cell[1::2, 1::2], image)
    assert (sheet[18:, 35:] == PAPER).all() and (sheet[17] == PAPER).all()


@pytest.mark.parametrize(("side", "cell"), [(8, 32), (28, 56), (32, 32), (33, 33), (64, 64)])
def test_small_images_are_enlarged_by_a_whole_number_to_at_least_32_pixels(side, cell):
    assert grid(pictures(1, side, side), columns=1, gap=0).size == (cell, cell)


def test_titles_stand_beside_the_cells_and_leave_them_as_they_are():
    images = pictures(4)
    plain = np.asarray(grid(images, columns=2))
    titled = np.asarray(grid(images, columns=2, row_titles=["cat", "a longer name"], column_titles=["z1", "z2"]))
    top, left = titled.shape[0] - plain.shape[0], titled.shape[1] - plain.shape[1]
    assert top > 10 and left > 40
    np.testing.assert_array_equal(titled[top:, left:], plain)
    assert (titled[:top] < 128).any() and (titled[top:, :left] < 128).any()


def test_a_grid_with_one_class_to_a_row_keeps_labels_apart(tmp_path):
    labels = np.array([2, 0, 2, 0, 2])
    images = np.full((5, 32, 32, 1), 10, np.uint8) * (labels + 1).astype(np.uint8)[:, None, None, None]
    cells, titles = by_class(images, labels, 3, ["a", "b", "c"])
    assert titles == ["a", "c"]
    assert [int(cell.mean()) for cell in cells] == [10, 10, PAPER, 30, 30, 30]
    path = save_grid(tmp_path / "new" / "grid.png", images, labels=labels, class_names=["a", "b", "c"])
    with Image.open(path) as picture:
        saved = np.asarray(picture)
    assert saved.ndim == 2 and saved.shape[0] == 2 * 34 + 2
    assert list(path.parent.iterdir()) == [path]


def test_names_in_other_scripts_are_titled_by_number_and_accents_stay_readable():
    titles = by_class(pictures(3), np.arange(3), 1, ["café", "日本", "why?"])[1]
    assert titles == ["café", "class 1", "why?"]
    grid(pictures(3), columns=1, row_titles=titles)


def test_a_strip_is_one_row_without_gaps():
    images = pictures(7, 32, 32)
    np.testing.assert_array_equal(np.asarray(strip(images)), np.concatenate(list(images), axis=1))


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("columns", lambda: grid(pictures(), columns=0)),
        ("scale", lambda: grid(pictures(), columns=1, scale=0)),
        ("channels", lambda: grid(pictures(c=2), columns=1)),
        ("no images", lambda: grid(pictures(0), columns=1)),
        ("row_titles", lambda: grid(pictures(), columns=2, row_titles=["one"])),
        ("labels", lambda: by_class(pictures(), np.arange(4), 2)),
        ("class name", lambda: by_class(pictures(), np.arange(5), 2, ["only"])),
    ],
)
def test_what_cannot_be_laid_out_is_refused_by_name(field, call):
    with pytest.raises(UserError, match=field):
        call()


def test_a_gif_has_every_frame_at_its_rate(tmp_path):
    frames = np.stack([np.full((9, 12, 1), level, np.uint8) for level in (0, 100, 200, 255)])
    with Image.open(save_video(tmp_path / "a.gif", frames, fps=12.5)) as film:
        assert film.n_frames == 4 and film.info["duration"] == 80 and film.info["loop"] == 0
        for i, level in enumerate((0, 100, 200, 255)):
            film.seek(i)
            assert film.convert("L").getpixel((5, 5)) == level


def test_an_mp4_plays_the_frames_with_odd_sides_made_even(tmp_path):
    imageio = pytest.importorskip("imageio.v3")
    pytest.importorskip("av")
    frames = np.stack([np.full((33, 47, 3), level, np.uint8) for level in (20, 120, 220)])
    path = save_video(tmp_path / "a.mp4", frames, fps=10)
    back = imageio.imread(path, plugin="pyav")
    assert back.shape == (3, 34, 48, 3)
    np.testing.assert_allclose(back.mean((1, 2, 3)), [20, 120, 220], atol=4)
    assert imageio.immeta(path, plugin="pyav")["fps"] == 10


def test_without_the_extra_an_mp4_is_refused_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"gantransfer\[video\]"):
        save_video(tmp_path / "a.mp4", pictures(), fps=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "fps"), [("a.avi", 10), ("a.gif", 0)])
def test_other_films_are_refused(tmp_path, name, fps):
    with pytest.raises(UserError):
        save_video(tmp_path / name, pictures(), fps=fps)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a.txt", b"old")

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
