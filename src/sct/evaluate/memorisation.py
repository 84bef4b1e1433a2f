"""Does a generator repeat its training images?"""

import torch
from torch import Tensor

CANDIDATES = 4
"""Rows that the fp32 search hands to the exact comparison."""


def nearest_distances(
    queries: Tensor, images: Tensor, block: int = 1024, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Euclidean distance of each query to its nearest image, and that image's row.

    A search in fp32 by blocks, by which the memory is bounded, picks 4 candidates; between them the
    differences themselves decide, in float64, so that a copy has the distance 0 exactly.
    queries [n, ...], images [m, ...], any dtype, pixel units → distances [n] (float64), rows [n].
    """
    flat_images = images.flatten(1)
    distances, rows = [], []
    for part in torch.split(queries.flatten(1), block):
        candidates = _candidates(part, flat_images, block, device)
        apart = torch.stack(
            [
                (part.double() - flat_images[candidates[:, i]].double()).square().sum(1)
                for i in range(candidates.shape[1])
            ],
            1,
        )
        value, place = apart.min(1)
        distances.append(value.sqrt())
        rows.append(candidates.gather(1, place[:, None])[:, 0])
    return torch.cat(distances), torch.cat(rows)


def _candidates(queries: Tensor, images: Tensor, block: int, device: torch.device | str) -> Tensor:
    """Rows [n, 4] of the images nearest to queries [n, d] as fp32 sees them."""
    q = queries.to(device).float()
    centre = q.mean()  # without it the norms drown small differences
    q = q - centre
    best_values = torch.empty(len(q), 0, device=device)
    best_rows = torch.empty(len(q), 0, dtype=torch.long, device=device)
    for start in range(0, len(images), block):
        x = images[start : start + block].to(device).float() - centre
        near = torch.addmm(x.square().sum(1), q, x.T, alpha=-2)
        values, rows = near.topk(min(CANDIDATES, near.shape[1]), 1, largest=False)
        values = torch.cat([best_values, values], 1)
        rows = torch.cat([best_rows, rows + start], 1)
        best_values, place = values.topk(min(CANDIDATES, values.shape[1]), 1, largest=False)
        best_rows = rows.gather(1, place)
    return best_rows.sort(1).values.cpu()  # of equally near images the first counts


def memorisation_ratio(samples: Tensor, training: Tensor, held_out: Tensor) -> float:
    """Mean nearest-neighbour distance to the training images, of samples over that of held-out images.

    About 1: samples are as new as real images. Towards 0: they are copies. Images [·, C, H, W], any dtype.
    """
    sampled = nearest_distances(samples, training)[0].mean()
    real = nearest_distances(held_out, training)[0].mean()
    return float(sampled / real)
