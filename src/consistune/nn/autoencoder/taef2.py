"""taef2: the tiny autoencoder for FLUX.2 (github.com/madebyollin/taesd, MIT: LICENSE-taef2).

1.3 million parameters a side; 64×64 pictures become 32×8×8. Numbers in names are positions in the published
sequence, from which the weights were converted without change (float16).
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import relu

from consistune.errors import UserError
from consistune.nn.autoencoder.base import Autoencoder

WEIGHTS = Path(__file__).parent / "taef2.safetensors"
WIDTH, LATENT = 64, 32
SHA256 = "010026f5d5d14e7a814afdce92adaba3c90f3d40a19c0d672de7d842fe462e45"
"""The identity of the published weights."""


def conv(inside: int, outside: int, stride: int = 1, bias: bool = True, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=bias)


class Block(nn.Module):
    """relu(conv(relu(conv(relu(conv(x))))) + x), where `pools` after x + conv(relu(GroupNorm(conv(x))))."""

    def __init__(self, pools: bool = False) -> None:
        super().__init__()
        inner = (conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH))
        self.conv = nn.Sequential(*inner)
        self.pool: nn.Module | None = None
        if pools:
            wide, narrow = (
                conv(*sides, bias=False, kernel=1) for sides in ((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))
            )
            self.pool = nn.Sequential(wide, nn.GroupNorm(4, 4 * WIDTH), nn.ReLU(), narrow)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return relu(self.conv(x) + x)


class SoftClip(nn.Module):
    """3·tanh(z/3)."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z / 3) * 3


def three_blocks(pools: bool = False) -> list[nn.Module]:
    return [Block(pools) for _ in range(3)]


class TAEF2(Autoencoder):
    factor, channels = 8, LATENT

    def __init__(self) -> None:
        super().__init__()
        down = [conv(WIDTH, WIDTH, stride=2, bias=False) for _ in range(3)]
        self.encoder = nn.Sequential(
            conv(3, WIDTH), Block(),
            down[0], *three_blocks(), down[1], *three_blocks(), down[2], *three_blocks(pools=True),
            conv(WIDTH, LATENT),
        )  # fmt: skip
        up = [(nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)) for _ in range(3)]
        self.decoder = nn.Sequential(
            SoftClip(), conv(LATENT, WIDTH), nn.ReLU(),
            *three_blocks(pools=True), *up[0], *three_blocks(), *up[1], *three_blocks(), *up[2],
            Block(), conv(WIDTH, 3),
        )  # fmt: skip

    def encode(self, pictures: Tensor) -> Tensor:
        return self.encoder(pictures / 2 + 0.5)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents) * 2 - 1


def taef2(weights: Path = WEIGHTS) -> TAEF2:
    """The autoencoder with its published weights, in fp32. Raises UserError for missing or changed ones."""
    model = TAEF2()
    try:
        model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        what = f"the weights of taef2 cannot be read ({' '.join(str(error).split())[:100]})"
        raise UserError(what, str(weights), "install consistune again") from error
    if model.identity != SHA256:
        raise UserError("are not the published weights of taef2", str(weights), "install consistune again")
    return model.eval().requires_grad_(False)
