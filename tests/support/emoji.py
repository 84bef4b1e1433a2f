"""Pictures from the emoji set that lies beside the repository."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def read_emoji(shared: Path, count: int) -> tuple[Tensor, list[str]]:
    """uint8 images [n, 3, 64, 64] and their names, spread over the whole file."""
    with zipfile.ZipFile(shared / "data" / "emoji64.zip") as archive:
        table = json.loads(archive.read("dataset.json"))
        chosen = range(0, len(table["labels"]), len(table["labels"]) // count)[:count]
        return _read(archive, table, chosen)


def named_emoji(shared: Path, names: set[str]) -> tuple[Tensor, list[str]]:
    """The images whose name is one of `names`."""
    with zipfile.ZipFile(shared / "data" / "emoji64.zip") as archive:
        table = json.loads(archive.read("dataset.json"))
        chosen = [i for i, name in enumerate(table["emoji_name"]) if str(name).lower() in names]
        return _read(archive, table, chosen)


def _read(archive: zipfile.ZipFile, table: dict, chosen) -> tuple[Tensor, list[str]]:
    pictures = [
        np.asarray(Image.open(io.BytesIO(archive.read(table["labels"][i][0]))).convert("RGB")) for i in chosen
    ]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return images, [str(table["emoji_name"][i]).lower() for i in chosen]
