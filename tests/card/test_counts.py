"""How often the host waits for a card, and how many kernels a posterior mean takes."""

import pytest
import torch

from consistune.core.estimators import OneSample
from consistune.core.noise import EDM
from consistune.core.objectives import LPIPS
from consistune.core.posterior.bank import make_bank
from consistune.core.posterior.mean import Reference, posterior
from consistune.training.loop import Trainer
from tests.card.pretended import Card
from tests.card.runs import DERIVATIVES, STEPS, consistency, trainer
from tests.core.test_trajectory import narrow
from tests.support.exact import posterior_exact

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
WAITS = 2
"""One to check the times that were drawn, one for the step's report."""


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_of_every_kind_is_finite_and_waits_twice_at_most(kind: str, card: Card) -> None:
    steps = STEPS[kind]().steps()
    next(steps)
    card.waits.clear()
    report = next(steps)
    assert report.finite
    assert sum(card.waits.values()) <= WAITS, dict(card.waits)


def kernels(made: Trainer, card: Card) -> int:
    """Of one step, the first one apart."""
    steps = made.steps()
    next(steps)
    card.kernels.clear()
    next(steps)
    return sum(card.kernels.values())


@pytest.mark.parametrize("network", ["song", "edm2", "adm"])
@pytest.mark.parametrize("objective", DERIVATIVES)
def test_a_step_with_a_forward_derivative_is_two_steps_of_ect_at_most(
    objective: str, network: str, card: Card
) -> None:
    base = kernels(trainer(consistency(OneSample()), network), card)
    assert kernels(DERIVATIVES[objective](network), card) <= 2.0 * base


def test_lpips_with_its_weights_on_the_card_takes_no_wait(card: Card) -> None:
    weights = narrow()
    distance = LPIPS({name: value.cuda() for name, value in weights.items()})
    a, b = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    on_card = a.cuda(), b.cuda()
    card.waits.clear()
    found = distance(*on_card)
    assert not card.waits
    torch.testing.assert_close(found.cpu(), LPIPS(weights)(a, b))


def asked(groups: int, queries: int = 128) -> tuple[Reference, torch.Tensor, torch.Tensor, torch.Tensor]:
    """50,000 references in equal groups, queries at all noise levels made from some of them, their groups."""
    n = 50_000
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    group = torch.randint(groups, (queries,), generator=generator)
    own = group * (n // groups) + torch.randint(n // groups, (queries,), generator=generator)
    t = torch.logspace(-2.5, 1.5, queries)
    noise = torch.randn(queries, 1, 4, 4, generator=generator)
    x_t = images[own].float() / 127.5 - 1 + t.view(-1, 1, 1, 1) * noise
    return Reference(images, tuple(range(0, n + 1, n // groups))), x_t, t, group


@pytest.mark.parametrize(("groups", "most"), [(1, 200), (10, 200), (1000, 600)])
def test_a_posterior_mean_takes_few_kernels_no_wait_and_is_exact(groups: int, most: int, card: Card) -> None:
    reference, x_t, t, group = asked(groups)
    bank, labels = make_bank(reference, "cuda", "device"), None if groups == 1 else group.cuda()
    queries = x_t.cuda(), t.cuda(), EDM(), bank, labels
    posterior(*queries)  # norms of the references, which are kept
    card.waits.clear()
    card.kernels.clear()
    mean = posterior(*queries).mean
    assert not card.waits
    assert sum(card.kernels.values()) <= most
    found = mean.cpu().double()
    for i in range(0, len(x_t), 9):
        images = reference.images[reference.offsets[group[i]] : reference.offsets[group[i] + 1]]
        exact = posterior_exact(
            x_t[i : i + 1], t[i : i + 1], EDM(), images if groups > 1 else reference.images
        )
        assert float((found[i] - exact).norm() / exact.norm()) < 1e-5, float(t[i])
