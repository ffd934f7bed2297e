"""Every kind of image by its rule, damaged bytes by their name."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gantransfer.data.decode import CorruptImage, decode, looks_like_image, read_header
from gantransfer.errors import UserError

# A 3x2 picture whose six pixels are all different, so that every turn and every mistaken channel shows.
GREY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep_png(values: np.ndarray, transparent: bytes = b"") -> bytes:
    """A 16-bit PNG, by hand: 1 to 4 channels are grey, grey with alpha, RGB, RGBA."""
    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    key = chunk(b"tRNS", transparent) if transparent else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def as_is(data: bytes, channels: int | None = None, **options) -> np.ndarray:
    return decode(data, "x.png", resolution=None, channels=channels, **options)


def test_grey_stays_one_channel_or_is_repeated():
    data = encode(Image.fromarray(GREY))
    np.testing.assert_array_equal(as_is(data), GREY[..., None])
    np.testing.assert_array_equal(as_is(data, 3), np.repeat(GREY[..., None], 3, axis=2))


def test_colour_stays_three_channels_or_becomes_the_luma_of_itu_601():
    data = encode(Image.fromarray(RGB))
    np.testing.assert_array_equal(as_is(data), RGB)
    expected = RGB @ np.array([0.299, 0.587, 0.114])
    # Half a level, and Pillow's 16-bit weights.
    np.testing.assert_allclose(as_is(data, 1)[..., 0], expected, atol=0.51)


def test_one_bit_becomes_black_and_white():
    data = encode(Image.fromarray(GREY > 100))
    np.testing.assert_array_equal(as_is(data)[..., 0], np.where(GREY > 100, 255, 0))


def test_palette_is_looked_up():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    np.testing.assert_array_equal(as_is(encode(image)), [[[10, 20, 30], [40, 50, 60]]])


@pytest.mark.parametrize("background", [0, 255, 40])
def test_transparent_palette_entries_show_the_background(background):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    shown = as_is(encode(image, transparency=0), background=background)
    np.testing.assert_array_equal(shown, [[[background] * 3, [40, 50, 60]]])


@pytest.mark.parametrize("background", [0, 255])
@pytest.mark.parametrize("grey", [False, True])
def test_alpha_is_composited_and_hidden_colours_stay_hidden(background, grey):
    alpha = np.array([[0, 128, 255], [255, 64, 0]], np.uint8)
    colour = GREY[..., None] if grey else RGB
    stacked = np.concatenate([colour, alpha[..., None]], axis=2)
    shown = as_is(encode(Image.fromarray(stacked)), background=background)
    share = alpha[..., None] / 255
    np.testing.assert_allclose(shown, colour * share + background * (1 - share), atol=0.51)
    assert (shown[alpha == 0] == background).all()
    np.testing.assert_array_equal(shown[alpha == 255], colour[alpha == 255])


def test_a_colour_declared_transparent_shows_the_background():
    shown = as_is(encode(Image.fromarray(RGB), transparency=tuple(int(v) for v in RGB[0, 1])), background=9)
    assert (shown[0, 1] == 9).all()
    np.testing.assert_array_equal(shown[1], RGB[1])


DEEP = np.array([0, 128, 129, 257, 300, 32768, 40000, 65535], np.uint16)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_divided_by_257_and_never_clipped(channels):
    values = np.stack([np.roll(DEEP, k) for k in range(channels)], axis=-1)[None]
    shown = as_is(deep_png(values))
    np.testing.assert_array_equal(shown, np.rint(values / 257))
    assert shown.max() == 255 and (shown < 255).sum() == 7 * channels


@pytest.mark.parametrize("channels", [2, 4])
def test_sixteen_bits_with_alpha_are_divided_then_composited(channels):
    values = np.stack([np.roll(DEEP, k) for k in range(channels)], axis=-1)[None]
    eight = np.rint(values / 257)
    expected = eight[..., :-1] * eight[..., -1:] / 255
    np.testing.assert_allclose(as_is(deep_png(values)), expected, atol=0.51)


def test_sixteen_bit_transparency_keys_match_all_sixteen_bits():
    grey = np.array([[[300], [301]]], np.uint16)
    np.testing.assert_array_equal(as_is(deep_png(grey, struct.pack(">H", 300)), background=77)[0, :, 0], [77, 1])
    colour = np.array([[[300, 5, 9], [300, 5, 10]]], np.uint16)
    shown = as_is(deep_png(colour, struct.pack(">HHH", 300, 5, 9)), background=77)
    np.testing.assert_array_equal(shown, [[[77, 77, 77], [1, 0, 0]]])


def test_deep_pnm_is_scaled_like_other_sixteen_bit_images():
    data = b"P5 2 1 65535\n" + np.array([257 * 7, 65535], ">u2").tobytes()
    np.testing.assert_array_equal(as_is(data), [[[7], [255]]])


@pytest.mark.parametrize("mode", ["F", "I"])
def test_thirty_two_bit_images_are_named_as_unreadable(mode):
    with pytest.raises(CorruptImage, match=r"x\.png: holds (floating-point|32-bit) numbers"):
        as_is(encode(Image.new(mode, (2, 2)), "TIFF"))


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    np.testing.assert_allclose(as_is(encode(image, "JPEG", quality=100))[4, 4], [255, 0, 0], atol=3)


def test_only_the_first_frame_is_taken_and_the_header_says_so():
    frames = [Image.new("L", (4, 4), level) for level in (10, 200)]
    for kind in ("GIF", "PNG", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert (as_is(data, 1) == 10).all()
        assert any(note.startswith("animated") for note in read_header(data, "x").kinds)


# What has to be done to the stored picture to see it upright, from the EXIF standard (tag 274).
TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientations_are_applied(orientation, kind):
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[274] = orientation
    data = encode(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(as_is(data), TURNS[orientation](RGB))


def test_crop_takes_the_centre_of_the_long_edge():
    wide = np.repeat(np.arange(7, dtype=np.uint8)[None] * 30, 4, axis=0)
    data = encode(Image.fromarray(wide))
    np.testing.assert_array_equal(decode(data, "x", resolution=4, channels=1)[..., 0], wide[:, 1:5])
    data = encode(Image.fromarray(wide.T))
    np.testing.assert_array_equal(decode(data, "x", resolution=4, channels=1)[..., 0], wide.T[1:5])


def test_pad_centres_on_a_square_of_the_background():
    wide = np.full((2, 4), 200, np.uint8)
    shown = decode(encode(Image.fromarray(wide)), "x", resolution=4, channels=1, fit="pad", background=30)[..., 0]
    np.testing.assert_array_equal(shown, np.pad(wide, ((1, 1), (0, 0)), constant_values=30))


def test_exact_names_the_file_and_its_size():
    data = encode(Image.fromarray(RGB))
    with pytest.raises(UserError, match=r"a/b\.png \(3x2\).*images of 3x3") as caught:
        decode(data, "a/b.png", resolution=3, channels=None, fit="exact")
    assert "data.fit" in str(caught.value)


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    small = decode(encode(Image.fromarray(stripes)), "x", resolution=16, channels=1)
    np.testing.assert_allclose(small[2:-2, 2:-2], 127.5, atol=2)


def test_no_resizing_happens_at_the_right_size():
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(noise)), "x", resolution=9, channels=3), noise)


def test_headers_claiming_too_much_are_refused_before_decoding():
    data = encode(Image.new("L", (300, 300)))
    for read in (read_header, lambda *a, **k: decode(*a, resolution=None, channels=None, **k)):
        with pytest.raises(UserError, match=r"big\.png.*at most 89,999 pixels.*90,000"):
            read(data, "big.png", max_pixels=89_999)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the file is empty"),
        (b"hello, I am no image at all", "not an image by its content"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image by its content"),
        (encode(Image.fromarray(RGB))[:30], "damaged header"),
        (encode(Image.effect_noise((64, 64), 50))[:-900], "truncated"),
        (encode(Image.effect_noise((64, 64), 50), "JPEG")[:-900], "truncated"),
    ],
)
def test_damaged_files_are_named_with_a_reason(data, why):
    with pytest.raises(CorruptImage, match=why) as caught:
        as_is(data)
    assert caught.value.name == "x.png"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "JPEG2000", "AVIF"])
def test_first_bytes_tell_images(kind):
    assert looks_like_image(encode(Image.new("RGB", (32, 32)), kind)[:16])


def test_first_bytes_of_texts_are_no_image():
    for head in (b"", b"file,label\n", b"BM is a company", b"P6 is a chip", b'{"labels": []}'):
        assert not looks_like_image(head)


SEEDS = [
    encode(Image.fromarray(RGB)),
    encode(Image.effect_noise((40, 24), 60).convert("RGB"), "JPEG", exif=Image.Exif()),
    encode(Image.effect_noise((40, 24), 60), "GIF", save_all=True, append_images=[Image.new("L", (40, 24))]),
    encode(Image.effect_noise((20, 24), 60), "TIFF"),
    encode(Image.effect_noise((20, 24), 60).convert("RGBA"), "WEBP"),
    deep_png(np.arange(48, dtype=np.uint16).reshape(4, 4, 3) * 1300),
]


@settings(deadline=None, max_examples=120)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    st.integers(0, 400),
)
def test_damage_gives_an_image_or_a_named_error_and_nothing_else(data, changes, cut):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        pixels = decode(
            bytes(damaged[: len(damaged) - cut % len(damaged)]), "f", resolution=8, channels=3, max_pixels=10**6
        )
    except (CorruptImage, UserError) as error:
        assert "f" in str(error)
    else:
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
