"""A small set of latents of the autoencoder "tiny"."""

from pathlib import Path
from typing import Any

from consistune.data.prepare.latents import LatentOptions, prepare_latents
from consistune.data.prepare.run import PrepareOptions
from consistune.data.prepare.split import Split
from consistune.data.prepared import Meta
from tests.support.autoencoders import SIDE
from tests.support.makers import edm_zip, pixels


def source(folder: Path, count: int = 24) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return edm_zip(folder / "pictures.zip", pixels(count, SIDE, SIDE, 3), [k % 3 for k in range(count)])


def latent_set(folder: Path, held_out: float = 0.25, **options: Any) -> tuple[Path, Meta]:
    """The prepared set folder/latents of 24 pictures in three classes."""
    dest = folder / "latents"
    settings = PrepareOptions(split=Split(held_out))
    return dest, prepare_latents(source(folder), dest, settings, LatentOptions("tiny", **options))
