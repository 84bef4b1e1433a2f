"""What is done to an image, against closed forms and Pillow called directly."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from consistune.data.prepare.survey import ImageOptions
from consistune.data.prepare.transform import FILTERS, BadImage, Transform, has_frames, upright_size
from consistune.errors import UserError
from tests.support.makers import Pixels, encoded, pixels


def planar(image: Image.Image) -> Pixels:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def smooth(height: int, width: int) -> Pixels:
    """A picture whose every filter gives something else."""
    y, x = np.mgrid[:height, :width] / 20
    return np.stack([128 + 100 * np.sin(x + y), 128 + 90 * np.cos(3 * x), 255 * (y % 1)], 2).astype(np.uint8)


# --- crops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_dhariwal_of_a_power_of_two_is_a_box_average_each_time_rounded(halvings: int) -> None:
    expected = smooth(8 << halvings, 8 << halvings)
    raw = encoded(expected)
    for _ in range(halvings):
        blocks = expected.reshape(len(expected) // 2, 2, -1, 2, 3).astype(int)
        expected = ((blocks.sum((1, 3)) + 2) // 4).astype(np.uint8)
    found = Transform("rgb", size=8, crop="dhariwal")(raw).astype(int)
    # Pillow rounds after the rows and again after the columns, we here once.
    assert np.abs(found - expected.transpose(2, 0, 1)).max() <= halvings


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_dhariwal_undoes_the_doubling_of_pixels(halvings: int) -> None:
    array = pixels(1, 8, 8, 3)[0]
    raw = encoded(array.repeat(1 << halvings, 0).repeat(1 << halvings, 1))
    assert np.array_equal(Transform("rgb", size=8, crop="dhariwal")(raw), array.transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(37, 90), (90, 37), (64, 64), (17, 16), (129, 200)])
def test_dhariwal_is_adms_rule(height: int, width: int) -> None:
    image = Image.fromarray(smooth(height, width))
    while min(image.size) >= 32:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = 16 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    top, left = (image.height - 16) // 2, (image.width - 16) // 2
    expected = np.asarray(image)[top : top + 16, left : left + 16].transpose(2, 0, 1)
    found = Transform("rgb", size=16, crop="dhariwal")(encoded(smooth(height, width)))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("height", "width"), [(37, 90), (90, 37), (12, 9)])
def test_center_is_the_central_square_resized(name: str, height: int, width: int) -> None:
    array, short = smooth(height, width), min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = Image.fromarray(array[top : top + short, left : left + short])
    expected = planar(square.resize((16, 16), FILTERS[name]))
    found = Transform("rgb", size=16, crop="center", filter=name)(encoded(array))
    assert np.array_equal(found, expected)


def test_none_resizes_the_whole() -> None:
    expected = planar(Image.fromarray(smooth(30, 50)).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(Transform("rgb", 16, "none", "bicubic")(encoded(smooth(30, 50))), expected)


@given(height=st.integers(1, 16), width=st.integers(1, 16))
def test_pad_keeps_a_small_image_as_it_is_and_centres_it(height: int, width: int) -> None:
    array = pixels(1, height, width, 3)[0]
    found = Transform("rgb", size=16, crop="pad", background=(7, 8, 9))(encoded(array))
    top, left = (16 - height) // 2, (16 - width) // 2
    assert np.array_equal(found[:, top : top + height, left : left + width], array.transpose(2, 0, 1))
    outside = np.ones((16, 16), bool)
    outside[top : top + height, left : left + width] = False
    assert (found[:, outside] == np.array([[7], [8], [9]])).all()


def test_pad_makes_a_large_image_fit() -> None:
    found = Transform("rgb", size=16, crop="pad", background=(0, 0, 0))(
        encoded(np.full((64, 32, 3), 200, np.uint8))
    )
    assert (found[:, :, 4:12] == 200).all()
    assert (found[:, :, :4] == 0).all()
    assert (found[:, :, 12:] == 0).all()


@given(
    size=st.integers(1, 40),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop=st.sampled_from(["center", "dhariwal", "pad", "none"]),
    grey=st.booleans(),
)
def test_a_flat_image_stays_flat_and_gets_its_size(
    size: int, height: int, width: int, crop: Any, grey: bool
) -> None:
    raw = encoded(np.full((height, width) if grey else (height, width, 3), 77, np.uint8))
    found = Transform("grey" if grey else "rgb", size, crop, background=(77, 77, 77))(raw)
    assert found.shape == (1 if grey else 3, size, size)
    assert (found == 77).all()


# --- colours ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited(form: str) -> None:
    array = pixels(1, 8, 8, 4)[0]
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    background = np.array([10, 200, 60])
    share = array[:, :, 3:].astype(float) / 255
    expected = array[:, :, :3] * share + background * (1 - share)
    found = Transform("rgb", background=(10, 200, 60))(encoded(array, form, **options))
    assert np.abs(found.transpose(1, 2, 0) - expected).max() <= 1


def test_transparency_in_palettes_and_in_grey_is_seen() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    raw = encoded(palette, transparency=1)
    assert Transform("rgb", background=(1, 2, 3))(raw)[:, 0].T.tolist() == [[255, 0, 0], [1, 2, 3]]
    grey = Image.fromarray(np.array([[[50, 255], [50, 0]]], np.uint8), "LA")
    assert Transform("grey", background=(9, 9, 9))(encoded(grey)).tolist() == [[[50, 9]]]


def test_grey_and_colour_become_each_other() -> None:
    grey = pixels(1, 6, 6)[0]
    found = Transform("rgb")(encoded(grey))
    assert (found == grey).all()
    assert np.array_equal(Transform("grey")(encoded(grey)), grey[None])
    colour = pixels(1, 6, 6, 3)[0]
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(Transform("grey")(encoded(colour))[0] - luma).max() <= 1


def test_sixteen_bits_become_eight() -> None:
    values = np.array([[0, 257, 128 * 257, 65535, 128, 129]], np.uint16)
    expected = np.round(values / 257)
    assert np.array_equal(Transform("grey")(encoded(values))[0], expected)
    assert (Transform("rgb")(encoded(values)) == expected).all()


@pytest.mark.parametrize(("kind", "white"), [("int32", 2**31 - 1), ("uint32", 2**32 - 1), ("float32", 1.0)])
def test_wide_grey_values_are_scaled_by_their_type(kind: str, white: float) -> None:
    share = np.array([[0, 1, 0.25], [0.5, 0.75, 0.1]])
    values = (share * white).astype(kind)
    raw = tiff(values) if kind == "uint32" else encoded(Image.fromarray(values), "TIFF")
    expected = np.floor(share * 255 + 0.5)
    for transform in (Transform("grey"), Transform("rgb")):
        assert np.abs(transform(raw) - expected).max() <= 1
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind != "uint32":
        turned = encoded(Image.fromarray(np.ascontiguousarray(np.rot90(values))), "TIFF", exif=exif)
        assert np.abs(Transform("grey")(turned)[0] - expected).max() <= 1


@pytest.mark.parametrize(("form", "channels"), [(2, 3), (6, 4), (4, 2)])
@pytest.mark.parametrize("top", [255, 65535])
def test_a_colour_image_of_16_bits_that_would_be_black_is_bad(form: int, channels: int, top: int) -> None:
    """Pillow has dropped the lower 8 bits; opacity does not make an image light."""
    values = pixels(1, 6, 6, channels)[0].astype(">u2") * (top // 255)
    values[..., -1] = 65535 if channels % 2 == 0 else values[..., -1]
    if top > 255:
        assert Transform("rgb")(png16(values, form)).max() > 200
        return
    with pytest.raises(BadImage, match="would be black: its colours of 16 bits"):
        Transform("rgb")(png16(values, form))


def png16(values: Any, form: int) -> bytes:
    """A PNG of 16 bits in colour, or grey with alpha, which Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, form, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def tiff(values: Any) -> bytes:
    """An uncompressed grey TIFF of unsigned 32-bit values, which Pillow reads but does not write."""
    height, width = values.shape
    tags = [
        (256, width), (257, height), (258, 32), (259, 1), (262, 1), (273, 8), (277, 1), (278, height),
        (279, values.nbytes), (339, 1),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    pixels = values.astype("<u4").tobytes()
    start = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    return start + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read() -> None:
    found = Transform("rgb")(encoded(np.full((8, 8, 3), 200, np.uint8), "AVIF"))
    assert np.abs(found.astype(int) - 200).max() <= 2


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "TIFF", "AVIF"])
def test_files_of_several_frames_are_known(form: str) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    frames = [Image.fromarray(image) for image in pixels(3, 8, 8, 3)]
    assert has_frames(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
    assert not has_frames(encoded(frames[0], form))


def test_cmyk_is_converted() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found = Transform("rgb")(encoded(image, "TIFF"))
    assert found[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(orientation: int) -> None:
    """EXIF 2.3, table 6: what row 0 and column 0 of the file are in the picture."""
    upright = pixels(1, 4, 6, 3)[0]
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(np.ascontiguousarray(stored), exif=exif)
    assert np.array_equal(Transform("rgb")(raw), upright.transpose(2, 0, 1))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(image) for image in pixels(3, 6, 6, 3)]
    for form in ("PNG", "WEBP"):
        options = {"lossless": True} if form == "WEBP" else {}
        raw = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(raw)).n_frames == 3  # type: ignore[attr-defined]
        assert np.array_equal(Transform("rgb")(raw), planar(frames[0]))


def test_rows_of_arrays_are_converted_like_files() -> None:
    array = smooth(40, 30)
    for transform in (Transform("rgb", 16, "dhariwal"), Transform("grey"), Transform("rgb")):
        assert np.array_equal(transform(array), transform(encoded(array)))


# --- what is bad -----------------------------------------------------------------------------------------


def giant() -> bytes:
    """A PNG of 77 kB that announces 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(75_000_000), 9))
        + chunk(b"IEND", b"")
    )


BAD = {
    "no image": (b"hello", "not an image"),
    "nothing": (b"", "not an image"),
    "cut off": (encoded(pixels(1, 64, 64, 3)[0])[:3000], "truncated"),
    "cut off JPEG": (encoded(pixels(1, 64, 64, 3)[0], "JPEG")[:2000], "truncated"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    "a bomb": (giant(), "decompression bomb"),
    "floats to 255": (encoded(Image.fromarray(np.full((4, 4), 255, np.float32)), "TIFF"), "where white is 1"),
    "floats below 0": (encoded(Image.fromarray(np.full((4, 4), -0.5, np.float32)), "TIFF"), "from -0.5"),
    "no numbers": (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "nan"),
    "small numbers of 32 bits": (encoded(Image.fromarray(np.full((4, 4), 255, np.int32)), "TIFF"), "black"),
    "small numbers of 16 bits": (encoded(np.full((4, 4), 100, np.uint16)), "black"),
}


@pytest.mark.parametrize("label", BAD)
def test_a_bad_image_is_named(label: str) -> None:
    raw, words = BAD[label]
    with pytest.raises(BadImage, match=words) as caught:
        Transform("rgb", 16, "center")(raw)
    assert str(caught.value).isprintable()


@given(
    cut=st.integers(0, 10**6), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), max_size=4)
)
def test_a_damaged_image_is_read_or_bad_and_nothing_else(cut: int, flips: list[tuple[int, int]]) -> None:
    for form in ("PNG", "JPEG", "GIF", "WEBP"):
        data = bytearray(encoded(smooth(20, 20), form))
        for place, bit in flips:
            data[place % len(data)] ^= 1 << bit
        try:
            found = Transform("rgb", 8, "center")(bytes(data[: cut % len(data) + 1]))
        except BadImage:
            continue
        assert found.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "--size"),
        ({"size": 8, "crop": "middle"}, "--crop"),
        ({"size": 8, "filter": "sinc"}, "--filter"),
        ({"crop": "center"}, "--size"),
        ({"filter": "box"}, "--size"),
        ({"size": 8, "crop": "dhariwal", "filter": "box"}, "--crop dhariwal"),
        ({"mode": "rgba"}, "--mode"),
        ({"background": "a colour"}, "--background"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ImageOptions(**options).transform(grey=False)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_before_loading_is_that_of_the_upright_picture(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(pixels(1, 40, 20, 3)[0], form, exif=exif)
    _, height, width = Transform("rgb")(raw).shape
    with Image.open(io.BytesIO(raw)) as image:
        assert upright_size(image) == (width, height)
