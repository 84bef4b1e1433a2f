"""uint8 images as PNG files and grids."""

import io
import math
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from consistune.system.files import write_atomically
from consistune.system.own import MARK

SMALLEST_SIDE = 48
"""Images of a grid are enlarged to about this many pixels, so that small ones can be seen."""


def to_pil(image: Tensor, scale: int = 1) -> Image.Image:
    """uint8 [C, H, W] (C = 1 or 3) → a picture, each pixel drawn as scale × scale.

    Raises ValueError for another number of channels.
    """
    image = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    if image.shape[0] == 1:
        return Image.fromarray(image[0].numpy(), "L")
    if image.shape[0] == 3:
        return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy(), "RGB")
    raise ValueError(f"a picture has 1 or 3 channels, got {image.shape[0]}")


def grid(images: Tensor, columns: int | None = None, gap: int = 1) -> Tensor:
    """uint8 images [N, C, H, W] → one picture [C, height, width], row by row, with mid-grey between.

    Without `columns` the grid is about square.
    """
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = torch.full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 128, dtype=torch.uint8
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def in_pairs(above: Tensor, below: Tensor, columns: int) -> Tensor:
    """The images of a `grid` in which each row of `above` stands over the same row of `below`.

    Both are uint8 [N, C, H, W]; the last rows are filled up with mid-grey.
    """
    blank = above.new_full((-len(above) % columns, *above.shape[1:]), 128)
    both = [torch.cat([images, blank]) for images in (above, below)]
    rows = range(0, len(both[0]), columns)
    return torch.cat([images[first : first + columns] for first in rows for images in both])


def png_bytes(image: Tensor, scale: int = 1) -> bytes:
    """A uint8 picture [C, H, W] as PNG."""
    buffer, text = io.BytesIO(), PngInfo()
    text.add_text("Software", MARK)
    to_pil(image, scale).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def grid_png(images: Tensor, columns: int | None = None) -> bytes:
    """The `grid` of uint8 images [N, C, H, W] as PNG, images below SMALLEST_SIDE enlarged."""
    return png_bytes(grid(images, columns), max(1, SMALLEST_SIDE // images.shape[-1]))


def save_png(path: Path, image: Tensor) -> None:
    """Write a uint8 picture [C, H, W] as a PNG file."""
    write_atomically(path, png_bytes(image))


def save_grid(path: Path, images: Tensor) -> None:
    """Write the `grid_png` of uint8 images [N, C, H, W]."""
    write_atomically(path, grid_png(images))
