"""Does a generator repeat its training images?"""

import torch
from torch import Tensor

CANDIDATES = 4
"""Rows that the fp32 search hands to the exact comparison."""
EXACT_ROWS = 64
"""Queries of one exact comparison: float64 differences of 64 × 4 images of 32×32×3 are 6 MB."""


def nearest_distances(
    queries: Tensor, images: Tensor, block: int = 1024, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Euclidean distance of each query to its nearest image, and that image's row.

    A search in fp32 by blocks, by which the memory is bounded, picks 4 candidates; between them the
    differences themselves decide, in float64, so that a copy has the distance 0 exactly.
    queries [n, ...], images [m, ...], any dtype, pixel units → distances [n] (float64), rows [n].
    """
    flat_queries, flat_images = queries.flatten(1), images.flatten(1)
    count = len(flat_queries)
    # Results and candidates have their places from the start: small tensors kept between blocks pin the heap.
    distances, rows = torch.empty(count, dtype=torch.float64), torch.empty(count, dtype=torch.long)
    for start in range(0, count, block):
        candidates = _candidates(flat_queries[start : start + block], flat_images, block, device)
        for first in range(0, len(candidates), EXACT_ROWS):
            chosen = candidates[first : first + EXACT_ROWS]
            here = slice(start + first, start + first + len(chosen))
            apart = flat_images[chosen].double().sub_(flat_queries[here, None]).square_().sum(2)
            value, place = apart.min(1)
            distances[here] = value.sqrt_()
            rows[here] = chosen.gather(1, place[:, None])[:, 0]
    return distances, rows


def _candidates(queries: Tensor, images: Tensor, block: int, device: torch.device | str) -> Tensor:
    """Rows [n, 4] of the images nearest to queries [n, d] as fp32 sees them, in ascending order."""
    q = queries.to(device).float()
    centre = q.mean()  # without it the norms drown small differences
    q -= centre
    kept = min(CANDIDATES, len(images))
    values = torch.full((len(q), kept), torch.inf, device=device)
    rows = torch.zeros(len(q), kept, dtype=torch.long, device=device)
    for start in range(0, len(images), block):
        x = images[start : start + block].to(device).float()
        x -= centre
        near, here = torch.addmm(x.square().sum(1), q, x.T, alpha=-2).topk(
            min(kept, len(x)), 1, largest=False
        )
        near, here = torch.cat([values, near], 1), torch.cat([rows, here + start], 1)
        values, place = near.topk(kept, 1, largest=False)
        rows = here.gather(1, place)
    return rows.sort(1).values.cpu()  # of equally near images the first counts


def memorisation_ratio(samples: Tensor, training: Tensor, held_out: Tensor) -> float:
    """Mean nearest-neighbour distance to the training images, of samples over that of held-out images.

    About 1: samples are as new as real images. Towards 0: they are copies. Images [·, C, H, W], any dtype.
    """
    sampled = nearest_distances(samples, training)[0].mean()
    real = nearest_distances(held_out, training)[0].mean()
    return float(sampled / real)
