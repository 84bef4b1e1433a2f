"""Does a generator repeat its training images?"""

from functools import cached_property

import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.gather import gathered
from consistune.metrics.metric import Block, Metric, Result, SampleBatch
from consistune.metrics.neighbours import NEIGHBOURS
from consistune.metrics.statistics import KEPT_ROWS, random_rows

CANDIDATES = 4
"""Rows that the fp32 search passes to the exact comparison."""
EXACT_ROWS = 64
"""Queries of one exact comparison: float64 differences of 64 × 4 images of 32×32×3 are 6 MB."""


def nearest_distances(
    queries: Tensor, images: Tensor, block: int = 1024, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Euclidean distance of each query to its nearest image, and that image's row.

    A search in fp32, by blocks that bound the memory, picks 4 candidates. The nearest of them is found from
    the differences in float64, so that the distance of a copy is exactly 0.
    queries [n, ...], images [m, ...], any dtype, pixel units → distances [n] (float64), rows [n].
    """
    flat_queries, flat_images = queries.flatten(1), images.flatten(1)
    count = len(flat_queries)
    # The results are allocated before the loop: small tensors that are kept between blocks pin the heap.
    distances, rows = torch.empty(count, dtype=torch.float64), torch.empty(count, dtype=torch.long)
    for start in range(0, count, block):
        candidates = _candidates(flat_queries[start : start + block], flat_images, block, device)
        for first in range(0, len(candidates), EXACT_ROWS):
            chosen = candidates[first : first + EXACT_ROWS]
            target = slice(start + first, start + first + len(chosen))
            apart = flat_images[chosen].double().sub_(flat_queries[target, None]).square_().sum(2)
            value, position = apart.min(1)
            distances[target] = value.sqrt_()
            rows[target] = chosen.gather(1, position[:, None])[:, 0]
    return distances, rows


def _candidates(queries: Tensor, images: Tensor, block: int, device: torch.device | str) -> Tensor:
    """Rows [n, 4] of the images nearest to queries [n, d], computed in fp32, in ascending order."""
    q = queries.to(device).float()
    centre = q.mean()  # far from 0 the squared norms would cost digits
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
        values, position = near.topk(kept, 1, largest=False)
        rows = here.gather(1, position)
    return rows.sort(1).values.cpu()  # of equally near images the first is taken


class Memorisation(Metric):
    """Nearest-neighbour distances of the first 10 000 samples to the training images.

    Values, in pixels: "copies", the share of samples at distance 0; and where there are held-out images
    "novelty", the mean distance over that of held-out images (about 1: samples are as new as real images;
    towards 0: they are copies), and "near_copies", the share of samples nearer than 99 % of held-out images.
    "novelty_features" is the novelty in features, where the reference has them.
    """

    @property
    def stores_features(self) -> bool:
        return self.setup.reference.features is not None

    def check(self) -> None:
        if self.setup.data is None:
            raise UserError("needs training images", "--metrics memorisation", "give --data")

    def start(self, block: Block) -> None:
        super().start(block)
        self.filled = 0
        self.images: Tensor | None = None

    def accumulate(self, batch: SampleBatch) -> None:
        if self.images is None:
            kept = len(self.block.indices(KEPT_ROWS))
            # Allocated once: batches that are kept one by one pin the heap.
            self.images = torch.empty(kept, *batch.images.shape[1:], dtype=torch.uint8)
        free = self.images[self.filled : self.filled + len(batch.images)]
        free.copy_(batch.images[: len(free)])
        self.filled += len(free)

    def result(self) -> Result:
        if self.images is None:
            raise ValueError("no samples were measured")
        values = {}
        real_features = self._held_out_feature_distance
        if real_features is not None:
            near = self.block.neighbourhoods
            values["novelty_features"] = float(near.distances.double().mean()) / real_features
        count = min(self.block.total, KEPT_ROWS)
        distances, rows = (gathered(u, count, self.block.world) for u in self._nearest(self.images))
        values["copies"] = float((distances == 0).double().mean())
        real = self._held_out_distances
        if real is not None:
            values["novelty"] = float(distances.mean() / real.mean())
            values["near_copies"] = float((distances < real.quantile(0.01)).double().mean())
        return Result(
            values,
            worst=self.block.feature_extremes(largest=True) if self.stores_features else [],
            memorised=self.block.extremes(distances, rows, largest=False),
        )

    def _nearest(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`nearest_distances` to the training images."""
        if self.setup.data is None:
            raise ValueError("there are no training images")
        return nearest_distances(images, self.setup.data.train.images, device=self.setup.extractor.device)

    @property
    def _held_out(self) -> Tensor | None:
        """At most KEPT_ROWS of the held-out images."""
        held_out = None if self.setup.data is None else self.setup.data.held_out
        return None if held_out is None else held_out.images[random_rows(len(held_out))]

    @cached_property
    def _held_out_distances(self) -> Tensor | None:
        """Pixel distances of held-out images to their nearest training images [m], float64."""
        return None if self._held_out is None else self._nearest(self._held_out)[0]

    @cached_property
    def _held_out_feature_distance(self) -> float | None:
        """Mean distance of held-out images' features to the nearest training features."""
        if self._held_out is None or self.setup.reference.features is None:
            return None
        if len(self._held_out) <= NEIGHBOURS:  # too few for a neighbourhood
            return None
        return float(self.setup.neighbourhoods(self.setup.extractor(self._held_out)).distances.mean())
