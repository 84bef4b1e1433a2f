"""Does a generator repeat its training images?"""

import torch
from torch import Tensor


def nearest_distances(queries: Tensor, images: Tensor, block: int = 1024) -> tuple[Tensor, Tensor]:
    """Euclidean distance of each query to its nearest image, and that image's row.

    queries [n, ...], images [m, ...], any dtype, pixel units → distances [n] (float64), rows [n].
    """
    x = images.flatten(1).double()
    squares = x.square().sum(1)
    distances, rows = [], []
    for part in torch.split(queries.flatten(1).double(), block):
        d = (part.square().sum(1)[:, None] + squares - 2 * part @ x.T).clamp(min=0)
        value, row = d.min(1)
        distances.append(value.sqrt())
        rows.append(row)
    return torch.cat(distances), torch.cat(rows)


def memorisation_ratio(samples: Tensor, training: Tensor, held_out: Tensor) -> float:
    """Mean nearest-neighbour distance to the training images, of samples over that of held-out images.

    About 1: samples are as new as real images. Towards 0: they are copies. Images [·, C, H, W], any dtype.
    """
    sampled = nearest_distances(samples, training)[0].mean()
    real = nearest_distances(held_out, training)[0].mean()
    return float(sampled / real)
