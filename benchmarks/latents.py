"""What the autoencoder taef2 keeps of held-out pictures: PSNR and distance after encoding and decoding.

    consistune data prepare emoji64.zip FOLDER/emoji64 --held-out 0.1 --split-by group
    consistune data prepare tiny-imagenet-20.tar.xz FOLDER/tiny-imagenet-20
    consistune data prepare cifar10-jpeg-train.tar.xz FOLDER/cifar10-jpeg --held-out 0.1
    python benchmarks/latents.py --sets FOLDER [--only emoji64 …]     two minutes of one core

Twice HALF held-out pictures of each set are cut into two halves. One half is encoded, and decoded from the
latents as they are (float32) and as `data prepare --latents` stores them (float16, uint8), normalised by as
many training pictures. Distances are Fréchet's of EfficientNet-Lite0's features at 64 px, in % of their
variance, from the half to its decoded pictures; the floor is the distance from the half to the other half,
real pictures. Pictures of 32×32 are encoded as they are and enlarged to 64×64 (bicubic); these are measured
at 32×32 again.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from consistune.core.posterior.mean import restored
from consistune.data.images import ImageSet, load_data
from consistune.metrics.features import load_extractor
from consistune.metrics.frechet import frechet
from consistune.metrics.moments import moments
from consistune.nn.autoencoder.record import Latents
from consistune.nn.autoencoder.space import LatentSpace, encode, psnr
from consistune.nn.autoencoder.table import open_autoencoder
from consistune.system.host import machine
from harness import Benchmark, Record
from tables import markdown

HALF, FEW = 300, 8
PARTS = {
    "emoji64": ("emoji64", 64),
    "tiny-imagenet-20": ("tiny-imagenet-20", 64),
    "cifar10-jpeg": ("cifar10-jpeg", 32),
    "cifar10-jpeg, enlarged": ("cifar10-jpeg", 64),
}
"""Part → its set, and the side at which its pictures are encoded."""
STORED = ("float32", "float16", "uint8")
SHOWN = {"psnr": 2, "distance": 1}
"""Measure → its digits in the table."""
benchmark = Benchmark(__doc__)
benchmark.parser.add_argument("--sets", type=Path, help="the folder of the prepared sets")


def spread(images: ImageSet, count: int) -> Tensor:
    """Evenly spread pictures, uint8 [count, 3, H, W]."""
    return images.images[torch.linspace(0, len(images) - 1, count).long()]


def resized(pictures: Tensor, side: int) -> Tensor:
    """uint8 pictures [N, 3, side, side]: bicubic, antialiased; as they are where they have that side."""
    if pictures.shape[-1] == side:
        return pictures
    scaled = interpolate(pictures.float(), (side, side), mode="bicubic", antialias=True)
    return scaled.round().clamp(0, 255).byte()


def space_of(training: Tensor) -> LatentSpace:
    """taef2, normalised by training pictures."""
    autoencoder = open_autoencoder("taef2")
    raw = encode(autoencoder, training).transpose(0, 1).flatten(1)
    mean, deviation = (tuple(values.tolist()) for values in (raw.mean(1), raw.std(1, correction=0)))
    _, height, width = training[0].shape
    return LatentSpace(
        Latents("taef2", autoencoder.identity, 8, (3, height, width), mean, deviation), autoencoder
    )


def decoded(space: LatentSpace, z: Tensor, stored: str) -> Tensor:
    """Pictures from latents z in one of the forms STORED."""
    if stored == "float32":
        return space.decode(z)
    kept = LatentSpace(replace(space.record, stored=stored), space.autoencoder)
    return kept.decode(restored(kept.stored(z), kept.record.scale))


def percent(pictures: Tensor, others: Tensor) -> float:
    """Fréchet distance from pictures to others, in % of the variance of the pictures' features."""
    extractor = load_extractor("efficientnet-64", torch.device("cpu"), None)
    (mean, covariance), other = (moments(extractor(images)) for images in (pictures, others))
    return 100 * frechet(*other, mean, covariance) / float(covariance.trace())


def reconstruction_table(record: Record) -> str:
    rows = []
    for name, each in record.items():
        forms = [[f"{each[word][form]:.{digits}f}" for form in STORED] for word, digits in SHOWN.items()]
        shape = "×".join(map(str, each["latents"]))
        rows.append([name, shape, *map(", ".join, forms), f"{each['floor']:.1f}"])
    head = [
        "held-out pictures",
        "latents",
        *(f"{word}: {', '.join(STORED)}" for word in ("PSNR, dB", "distance, %")),
    ]
    return markdown([*head, "of other real ones, %"], rows)


@benchmark.section(
    "reconstruction.json", PARTS, tables={("latents.md", "reconstruction"): reconstruction_table}
)
def reconstruction(given: Namespace, part: str) -> Record:
    (name, side), count = PARTS[part], FEW if given.quick else HALF
    data = load_data(str(given.sets / name))
    pictures = spread(data.need_held_out(part), 2 * count)
    half, other = pictures[::2], pictures[1::2]
    space = space_of(resized(spread(data.train, count), side))
    z = space.encode(resized(half, side))
    back = {form: resized(decoded(space, z, form), half.shape[-1]) for form in STORED}
    return {
        part: {
            "pictures": count,
            "latents": list(z.shape[1:]),
            "psnr": {form: psnr(half, images) for form, images in back.items()},
            "distance": {form: percent(half, images) for form, images in back.items()},
            "floor": percent(half, other),
            "machine": machine(),
        }
    }


if __name__ == "__main__":
    benchmark.main()
