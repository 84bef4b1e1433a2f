"""Options of `consistune data prepare` that are longer than a line."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

Source = Annotated[
    Path,
    Argument(
        help="CIFAR's archive or folder; ImageNet's tree or downsampled batches; a folder, ZIP, tar, npz or "
        "parquet shards of images."
    ),
]
Size = Annotated[int | None, Option(help="Side of the square images in pixels; default: unchanged.")]
Filter = Annotated[
    str | None, Option(help="With --size: lanczos (default), box, bicubic, bilinear, hamming, nearest.")
]
HeldOut = Annotated[float, Option(help="Share of images to hold out, if the source has no test set.")]
SplitBy = Annotated[
    str | None, Option(help="With --held-out: image (default), or group: keep groups of dataset.json whole.")
]
Labels = Annotated[
    str | None, Option(help="A CSV or JSON file; fine or coarse (CIFAR-100); a column (parquet).")
]
Format = Annotated[
    str | None, Option(help="cifar, imagenet-batches, folder, zip, tar, npz, parquet; default: detected.")
]
AllowMissing = Annotated[int, Option(help="Images that may be left out because they cannot be used.")]
FollowLinks = Annotated[bool, Option("--follow-links", help="Follow links in a folder.")]
Autoencoder = Annotated[
    str | None,
    Option(help="Encode the images: taef2, a folder of diffusers, or a model of latents (as its data were)."),
]
