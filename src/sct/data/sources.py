"""Image sets in other people's formats → uint8 arrays."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sct.errors import UserError


def read_edm_zip(path: Path | str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """EDM's layout (2206.00364): a ZIP of PNGs and `dataset.json` = {"labels": [[file, class], …], …}.

    Returns images uint8 [n, C, H, W] in the order of the labels, labels int64 [n] and the class names
    (`class_names` where the file has them, otherwise the numbers).
    Raises UserError for a file that is not such a ZIP, an image that is missing or of another size.
    """
    from PIL import Image

    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot be read as a ZIP ({error})", str(path), "give a ZIP in EDM's layout"
        ) from error
    with archive:
        try:
            table = json.loads(archive.read("dataset.json"))
            pairs = [(str(name), int(label)) for name, label in table["labels"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                "has no dataset.json with a list of [file, class] under 'labels'", str(path)
            ) from error
        images = []
        for name, _ in pairs:
            try:
                image = np.asarray(Image.open(io.BytesIO(archive.read(name))))
            except (KeyError, OSError) as error:
                raise UserError(f"the image {name} is missing or broken", str(path)) from error
            images.append(image[:, :, None] if image.ndim == 2 else image)
            if images[-1].shape != images[0].shape:
                raise UserError(f"{name} is {images[-1].shape}, the first image {images[0].shape}", str(path))
    labels = torch.tensor([label for _, label in pairs])
    known = table.get("class_names") or range(int(labels.max()) + 1)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, labels, tuple(str(name) for name in known)
