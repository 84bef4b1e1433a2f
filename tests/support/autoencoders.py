"""A tiny autoencoder with random weights, known by the name "tiny"."""

import torch
from torch import nn

from consistune.nn.autoencoder.base import Pair
from consistune.nn.autoencoder.table import AUTOENCODERS

SIDE = 16


def tiny(seed: int = 0, channels: int = 6) -> Pair:
    """Factor 4, for pictures whose sides are multiples of 4."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Conv2d(3, channels, 4, 4)
        decoder = nn.ConvTranspose2d(channels, 3, 4, 4)
    return Pair(encoder, decoder, probe=SIDE)


AUTOENCODERS["tiny"] = tiny
