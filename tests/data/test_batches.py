"""Batches: the device path and the streamed path show the same images, across epochs, resumes, workers and hosts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.data import open_images
from gantransfer.data.batches import (
    DeviceImages,
    device_images,
    fits_on_device,
    gather,
    positions_to_draws,
    stream,
    to_float,
)
from gantransfer.errors import UserError
from tests.data.conftest import picture

BATCH = 6


@pytest.fixture
def images(make_zip, monkeypatch):
    """Ten pictures of two classes, read from their file every time, as those of a large set are."""
    monkeypatch.setattr("gantransfer.data.sources.KEEP_BYTES", 0)
    entries = {f"{'ab'[i % 2]}/{i}.png": picture(i, (5, 5)) for i in range(10)}
    return open_images(make_zip(entries))


@pytest.fixture(scope="module")
def on_device():
    """One compiled step per setting: the batch at a traced position, under a traced seed."""

    @jax.jit
    def mirrored(held, seed, first):
        positions = first + jnp.arange(BATCH, dtype=jnp.int32)
        return gather(held, *positions_to_draws(seed, positions, held.images.shape[0], mirror=True, xp=jnp))

    @jax.jit
    def plain(held, seed, first):
        positions = first + jnp.arange(BATCH, dtype=jnp.int32)
        return gather(held, *positions_to_draws(seed, positions, held.images.shape[0], mirror=False, xp=jnp))

    return {True: mirrored, False: plain}


def assert_same(streamed, held, step, seed, first):
    pixels, labels = streamed
    assert pixels.dtype == np.uint8 and labels.dtype == np.int32
    expected_pixels, expected_labels = step(held, np.uint32(seed), np.int32(first))
    np.testing.assert_array_equal(jax.jit(to_float)(pixels), expected_pixels)
    np.testing.assert_array_equal(labels, expected_labels)


@pytest.mark.parametrize("mirror", [False, True])
def test_streamed_and_device_batches_are_bit_equal_across_epochs(images, on_device, mirror):
    held = device_images(images)
    batches = stream(images, seed=3, batch=BATCH, mirror=mirror)
    for number in range(6):
        assert_same(next(batches), held, on_device[mirror], 3, number * BATCH)
    batches.close()


def test_a_batch_larger_than_the_set_spans_epochs(images):
    batches = stream(images, seed=0, batch=25)
    _, labels = next(batches)
    batches.close()
    assert len(labels) == 25
    seen = positions_to_draws(0, np.arange(25), 10, mirror=False, xp=np)[0]
    np.testing.assert_array_equal(labels, images.labels[seen])


def test_a_stream_goes_on_from_any_position(images):
    whole = stream(images, seed=1, batch=BATCH, mirror=True)
    expected = [next(whole) for _ in range(5)]
    assert whole.get_state() == 5 * BATCH
    whole.set_state(2 * BATCH)
    late = stream(images, seed=1, batch=BATCH, mirror=True, first=2 * BATCH)
    for wanted in expected[2:]:
        for got in (next(whole), next(late)):
            np.testing.assert_array_equal(got[0], wanted[0])
            np.testing.assert_array_equal(got[1], wanted[1])
    assert whole.get_state() == late.get_state() == 5 * BATCH
    whole.close()
    late.close()


def test_the_hosts_shares_make_up_the_global_batch(images):
    whole = stream(images, seed=2, batch=BATCH, mirror=True)
    parts = [stream(images, seed=2, batch=BATCH, mirror=True, process_index=i, process_count=3) for i in range(3)]
    for _ in range(3):
        pixels, labels = next(whole)
        shares = [next(part) for part in parts]
        np.testing.assert_array_equal(np.concatenate([share[0] for share in shares]), pixels)
        np.testing.assert_array_equal(np.concatenate([share[1] for share in shares]), labels)
    for batches in (whole, *parts):
        batches.close()


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_and_resume_with_another_number(images):
    serial = stream(images, seed=5, batch=BATCH, mirror=True)
    expected = [next(serial) for _ in range(7)]
    serial.close()
    batches = stream(images, seed=5, batch=BATCH, mirror=True, workers=2)
    got = [next(batches) for _ in range(4)]
    state = batches.get_state()
    batches.close()
    assert state == 4 * BATCH
    batches = stream(images, seed=5, batch=BATCH, mirror=True, workers=1, first=state)
    got += [next(batches) for _ in range(3)]
    batches.close()
    for (pixels, labels), (wanted_pixels, wanted_labels) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(pixels, wanted_pixels)
        np.testing.assert_array_equal(labels, wanted_labels)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_that_goes_bad_is_named_by_the_stream(make_folder, monkeypatch, workers):
    monkeypatch.setattr("gantransfer.data.sources.KEEP_BYTES", 0)
    path = make_folder({f"{i}.png": picture(i) for i in range(4)})
    images = open_images(path)
    make_folder({"2.png": picture(2)[:60]})
    batches = stream(images, seed=0, batch=4, workers=workers)
    with pytest.raises(UserError, match=r"2\.png"):
        next(batches)
    batches.close()


def test_mirroring_turns_left_to_right_and_nothing_else():
    pixels = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    held = DeviceImages(pixels, np.array([4, 7], np.int32))
    shown, labels = gather(held, np.array([1, 0, 1], np.int32), np.array([False, True, True]))
    expected = np.stack([pixels[1], pixels[0, :, ::-1], pixels[1, :, ::-1]])
    np.testing.assert_array_equal(shown, to_float(expected))
    np.testing.assert_array_equal(labels, [7, 4, 7])


def test_pixels_go_to_minus_one_to_one_with_the_same_bits_in_and_out_of_jit():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    shown = np.asarray(jax.jit(to_float)(levels)).ravel()
    assert shown.dtype == np.float32 and shown[0] == -1 and shown[255] == 1
    np.testing.assert_array_equal(shown, np.asarray(to_float(levels)).ravel())
    # Rounding 1 / 255 and the product: one unit in the last place of 1.
    np.testing.assert_allclose(shown, np.arange(256) / 127.5 - 1, atol=1.2e-7)
    np.testing.assert_array_equal(shown, -shown[::-1])


def test_the_size_limit_counts_pixels_and_labels(images):
    size = 10 * (5 * 5 * 3 + 4)
    assert fits_on_device(images, size) and not fits_on_device(images, size - 1)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"batch": 0}, "batch"),
        ({"batch": 7, "process_count": 2}, "batch"),
        ({"workers": -1}, "data.workers"),
        ({"process_index": 1}, "process_index"),
        ({"first": -1}, "images_seen"),
        ({"first": 2**32 - 1}, "images_seen"),
    ],
)
def test_streams_out_of_range_are_refused_by_name(images, options, field):
    with pytest.raises(UserError, match=field):
        stream(images, **{"seed": 0, "batch": BATCH} | options)
