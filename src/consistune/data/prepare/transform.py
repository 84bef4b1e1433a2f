"""From an encoded image or pixels to uint8 [C, H, W]. Every choice is an option that is recorded.

Order: decode (first frame) → EXIF orientation → alpha onto the background → colour or grey → crop and resize.
No torch here: worker processes import it.
"""

import io
import warnings
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from consistune.data.sources.base import Raw, Unreadable

Crop = Literal["center", "dhariwal", "pad", "none"]
Mode = Literal["rgb", "grey"]
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "DIB",
    "GIF",
    "TIFF",
    "PPM",
    *(("AVIF",) if features.check("avif") else ()),
)
"""The formats that Pillow may detect. None of them calls another program, as EPS does."""
GREY = ("1", "L", "LA", "La", "I", "F")

DARK = 8
"""Of 255. A wide grey image without a lighter pixel does not fill its type."""
WIDE = ";16"
"""In Pillow's name of how pixels are stored, such as RGB;16B."""
BITS, SAMPLE_FORMAT = 258, 339
"""Tags of a TIFF."""


class BadImage(Exception):
    """An image cannot be used; str() is the reason."""


@dataclass(frozen=True)
class Transform:
    """What is done to every image.

    Attributes:
        mode: "rgb" or "grey"; grey from colour is ITU-R 601 luma.
        size: side of the square result; None keeps the images' own size.
        crop: how a rectangle becomes a square:
            center: the central square, then resized (EDM's `center-crop`, with filter lanczos);
            dhariwal: ADM's rule (2105.05233): halved with a box filter while the short side is at least twice
                `size`, resized with bicubic until the short side is `size`, central square;
            pad: made smaller if it is too large, never made larger, and centred on the background;
            none: resized to the square, which changes the aspect ratio.
        filter: for resizing; dhariwal has its own.
        background: RGB, under transparent pixels and around padded images.
        strict_grey: a colour image is bad, because the set was found to be grey.
    """

    mode: Mode
    size: int | None = None
    crop: Crop = "none"
    filter: str = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)
    strict_grey: bool = False

    @property
    def channels(self) -> int:
        return 3 if self.mode == "rgb" else 1

    def described(self) -> dict[str, Any]:
        """For meta.json: only the options that had an effect."""
        options = asdict(self)
        del options["strict_grey"]
        if self.size is None:
            options.update(crop=None, filter=None)
        elif self.crop == "dhariwal":
            options["filter"] = "box, bicubic"
        return options | {"background": list(self.background)}

    def __call__(self, raw: Raw) -> NDArray[np.uint8]:
        """uint8 [C, H, W]. Raises BadImage."""
        if isinstance(raw, Unreadable):
            raise BadImage(raw.reason)
        if isinstance(raw, np.ndarray) and self.size is None and raw.shape[2] == self.channels:
            return raw.transpose(2, 0, 1)
        image = open_image(raw) if isinstance(raw, bytes) else _from_pixels(raw)
        if self.strict_grey and not is_grey(image):
            raise BadImage(f"is in colour ({image.mode}) in a set found to be grey")
        try:
            pixels = np.asarray(self._resize(self.convert(image)))
        except Exception as error:  # Pillow's decoders raise many kinds of errors for a broken file
            raise BadImage(reason(error)) from error
        return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)).astype(np.uint8, copy=False)

    def to_shape(self, raw: Raw, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """The same. Raises BadImage also for a result of another shape."""
        pixels = self(raw)
        if pixels.shape != shape:
            _, height, width = pixels.shape
            raise BadImage(f"is {width}×{height}, the set {shape[2]}×{shape[1]}")
        return pixels

    def convert(self, image: Image.Image) -> Image.Image:
        """Upright, opaque, and in the mode "RGB" or "L"."""
        wide = any(WIDE in str(tile[3]) for tile in getattr(image, "tile", ()))
        with strictly():
            image.load()
        if wide and not is_grey(image):
            _check_light(image)
        white = _white(image)
        image = ImageOps.exif_transpose(image)
        if image.mode == "F" or image.mode.startswith("I"):
            image = _eight_bits(image, white)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*self.background, 255)), image)
        return image.convert("RGB" if self.mode == "rgb" else "L")

    def _resize(self, image: Image.Image) -> Image.Image:
        """Cropped, padded and resized. An image that has the right size is not resampled."""
        if self.size is None:
            return image
        width, height = image.size
        target, kind = self.size, FILTERS[self.filter]
        if self.crop == "dhariwal":
            return _dhariwal(image, target)
        if self.crop == "center":
            image = _central_square(image, min(image.size))
        if self.crop == "pad":
            scale = min(1.0, target / max(image.size))
            inner = (max(1, round(width * scale)), max(1, round(height * scale)))
            image = _resized(image, inner, kind)
            canvas = Image.new("RGB", (target, target), self.background).convert(image.mode)
            canvas.paste(image, ((target - inner[0]) // 2, (target - inner[1]) // 2))
            return canvas
        return _resized(image, (target, target), kind)


def _resized(image: Image.Image, size: tuple[int, int], kind: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, kind)


def _central_square(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _dhariwal(image: Image.Image, target: int) -> Image.Image:
    while min(image.size) >= 2 * target:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = target / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = _resized(image, size, Image.Resampling.BICUBIC)
    return _central_square(image, target)


def open_image(data: bytes) -> Image.Image:
    """Read a file's header; its content decides the format. Raises BadImage, also for too many pixels."""
    try:
        with strictly():
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise BadImage(reason(error)) from error


def _from_pixels(raw: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(raw[:, :, 0] if raw.shape[2] == 1 else raw))


class strictly(warnings.catch_warnings):
    """Pillow's warning of a decompression bomb is an error; its other warnings stay silent."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)


def is_grey(image: Image.Image) -> bool:
    return image.mode in GREY or image.mode.startswith("I;16")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after EXIF's orientation; 5 to 8 exchange them."""
    try:
        exif = image.getexif()
        turned = exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        stored = exif.get(ExifTags.Base.ImageWidth), exif.get(ExifTags.Base.ImageLength)
        if turned and image.format == "TIFF" and image.size == stored[::-1]:
            return image.size  # Pillow has turned it already
    except Exception as error:  # as Pillow's decoders
        raise BadImage(reason(error)) from error
    return (image.height, image.width) if turned else image.size


def has_frames(raw: Raw) -> bool:
    """Whether an encoded image has more than one frame."""
    if not isinstance(raw, bytes):
        return False
    if raw.startswith(b"\x89PNG"):
        return raw.find(b"acTL", 0, max(0, raw.find(b"IDAT"))) >= 0
    if raw[:4] == b"RIFF" and raw[8:16] == b"WEBPVP8X":
        return bool(raw[20] & 2)
    if raw.startswith((b"GIF", b"II*", b"MM\0*")):
        try:
            return bool(getattr(open_image(raw), "is_animated", False))
        except Exception:  # a damaged second frame; the first one has been read
            return False
    return raw[4:12] == b"ftypavis"


def _eight_bits(image: Image.Image, white: float) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats → 8 bits: `white`, the type's largest value or 1.0, is 255.

    Raises BadImage for values beyond that, and where an image would be black although its values are not 0.
    """
    values = np.asarray(image)
    if image.mode != "F":
        values = values.astype(np.int64) & 0xFFFF_FFFF if white == 0xFFFF_FFFF else values.astype(np.int64)
    low, high = values.min(initial=0), values.max(initial=0)
    if not (low >= 0 and high <= white):  # or not a number
        raise BadImage(f"has grey values from {low:g} to {high:g}, where white is {white:g}")
    scaled = (values + 128) // 257 if white == 0xFFFF else np.floor(values * (255 / white) + 0.5)
    if high > 0 and scaled.max() < DARK:
        raise BadImage(f"would be black: its grey values end at {high:g}, where white is {white:g}")
    return Image.fromarray(scaled.astype(np.uint8))


def _check_light(image: Image.Image) -> None:
    """Raises BadImage where no colour of an image, of which Pillow dropped 8 of 16 bits, is light."""
    high = int(np.asarray(image)[..., :3].max(initial=0))
    if high < DARK:
        raise BadImage(f"would be black: its colours of 16 bits end below {high + 1}/256 of white")


def _white(image: Image.Image) -> float:
    """The largest value of an image's type; 1.0 of floats."""
    if image.mode == "F":
        return 1.0
    tags = getattr(image, "tag_v2", {}) if image.mode == "I" else {}
    bits = int(tags.get(BITS, (16,))[0])
    signed = int(tags.get(SAMPLE_FORMAT, (1,))[0]) == 2
    return float(2 ** (bits - signed) - 1)


def reason(error: Exception) -> str:
    """Pillow's error as one printable line."""
    if isinstance(error, BadImage):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that can be read"
    text = " ".join(str(error).split())[:120]
    return f"{type(error).__name__}: {text}".encode("ascii", "backslashreplace").decode()
