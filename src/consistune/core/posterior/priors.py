"""Log-priors for the posterior mean: references are weighted or left out (METHOD §2)."""

import torch
from torch import Generator, Tensor

from consistune.core.posterior.mean import BLOCK, LogPrior, Reference


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖ from differences, not products, so that equal conditions are at 0 to the bit."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _check(bank: Tensor, conditions: Tensor) -> None:
    if not conditions.is_floating_point() or conditions.shape[1:] != bank.shape[1:]:
        raise ValueError(
            f"conditions must be floating point [B, {bank.shape[1]}], "
            f"got {conditions.dtype} {list(conditions.shape)}"
        )
    on_host = conditions.device.type == "cpu"  # elsewhere the look would wait; NaN then shows in the mean
    if on_host and not bool(torch.isfinite(conditions).all()):
        raise ValueError("conditions contain NaN or infinity")


def _smallest(bank: Tensor, conditions: Tensor, count: int) -> Tensor:
    """The `count` smallest distances of each condition, rising, [B, count]."""
    nearest = torch.empty(len(conditions), 0, dtype=torch.float64, device=bank.device)
    for block in torch.split(bank, BLOCK):
        both = torch.cat([nearest, _distances(conditions, block)], dim=1)
        nearest = both.topk(min(count, both.shape[1]), dim=1, largest=False).values
    return nearest


def kernel_prior(bank: Tensor, conditions: Tensor, bandwidth: float) -> LogPrior:
    """−(‖c − c_i‖² − min_j ‖c − c_j‖²)/2h²: a Gaussian kernel on conditions. bank [n, K], conditions [B, K].

    What is subtracted is the same for all references; so the nearest counts however small h is.
    """
    _check(bank, conditions)
    nearest = _smallest(bank, conditions, 1)

    def log_prior(queries: Tensor, first: int, last: int) -> Tensor:
        distances, least = _distances(conditions[queries], bank[first:last]), nearest[queries]
        return -(distances - least) / bandwidth * ((distances + least) / bandwidth) / 2

    return log_prior


def nearest_prior(bank: Tensor, conditions: Tensor, count: int) -> LogPrior:
    """0 for the `count` references of nearest condition (and ties), −∞ for the others."""
    _check(bank, conditions)
    radius = _smallest(bank, conditions, count).amax(1)

    def log_prior(queries: Tensor, first: int, last: int) -> Tensor:
        far = _distances(conditions[queries], bank[first:last]) > radius[queries, None]
        return torch.zeros(far.shape, dtype=torch.float64, device=far.device).masked_fill(far, -torch.inf)

    return log_prior


def label_prior(labels: Tensor) -> LogPrior:
    """0 for references of the query's label, −∞ for the others, where the references are the batch itself."""

    def log_prior(queries: Tensor, first: int, last: int) -> Tensor:
        other = labels[queries, None] != labels[first:last]
        return torch.zeros(other.shape, dtype=torch.float64, device=other.device).masked_fill(
            other, -torch.inf
        )

    return log_prior


def random_subset(
    reference: Reference, group: Tensor | None, index: Tensor, size: int, generator: Generator
) -> tuple[Reference, LogPrior]:
    """`size` references for each query: its own image, and others drawn without replacement from its group.

    The queries of a group share a random pool of `size` images; a query whose image is not in the pool has
    it in place of the pool's last. Each query's others are then a uniformly random subset. A group with no
    more than `size` images is taken whole.

    group [B] or None (one group), index [B] rows of `reference` → a smaller reference with the same group
    numbers, and the log-prior that leaves out the other queries' own images.
    Raises ValueError where a query's row is not in its group.
    """
    device = reference.device
    group = torch.zeros_like(index) if group is None else group
    if index.shape != group.shape:
        raise ValueError(f"index has shape {list(index.shape)}, the batch {list(group.shape)}")
    rows: list[Tensor] = []
    masks: list[Tensor] = []
    offsets = [0]
    for value in range(len(reference.offsets) - 1):
        queries = (group == value).nonzero()[:, 0]
        if len(queries) == 0:
            offsets.append(offsets[-1])
            continue
        start, stop = reference.offsets[value], reference.offsets[value + 1]
        own = index[queries]
        if not bool(((own >= start) & (own < stop)).all()):
            raise ValueError(f"images of group {value} have rows outside it in the reference")
        shuffled = torch.randperm(stop - start, generator=generator, device=generator.device)
        pool = shuffled[:size].to(device) + start
        pooled = torch.isin(own, pool)
        extra = torch.unique(own[~pooled])
        rows.append(torch.cat([pool, extra]))
        allowed = own[:, None] == rows[-1]
        allowed[:, : len(pool) - 1] = True
        allowed[:, len(pool) - 1] = pooled
        masks.append(torch.zeros(len(index), len(rows[-1]), dtype=torch.bool, device=device))
        masks[-1][queries] = allowed
        offsets.append(offsets[-1] + len(rows[-1]))
    prior = torch.cat(masks, dim=1).to(torch.float64).log()  # 0 where allowed, −∞ elsewhere

    def log_prior(queries: Tensor, first: int, last: int) -> Tensor:
        return prior[queries, first:last]

    return Reference(reference.take(torch.cat(rows)), tuple(offsets), scale=reference.scale), log_prior
