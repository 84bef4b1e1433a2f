"""The same code on a card: run with -m gpu where there is one."""

import warnings

import pytest
import torch

from consistune.core.estimators import ScoreIdentity
from consistune.core.noise import EDM
from consistune.core.objectives import Consistency
from consistune.core.posterior.bank import make_bank
from consistune.core.posterior.integers import exact_products
from consistune.core.posterior.mean import Reference, posterior
from consistune.core.times import LogNormalPairs, SigmoidGap
from consistune.core.types import Batch
from tests.core.posterior.test_mean import noisy, pixels
from tests.support.exact import posterior_exact

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("ratio", [0.002, 0.05, 1.0, 10.0, 80.0])
def test_streaming_is_exact_on_the_card_with_and_without_tf32(ratio: float, tf32: bool) -> None:
    """A card that has TF32 multiplies bytes, which it does not touch."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        images = pixels(300, shape=(3, 32, 32))
        x_t, t = noisy(images, ratio)
        exact = posterior_exact(x_t, t, EDM(), images)
        found = posterior(
            x_t.cuda(), t.cuda(), EDM(), Reference.ungrouped(images.cuda()), block=64
        ).mean.cpu()
        error = (found.double() - exact).norm() / exact.norm()
        assert float(error) < 1e-5
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("where", ["device", "host"])
def test_a_target_waits_for_the_card_only_to_choose_classes_on_the_host(where: str) -> None:
    images = pixels(300, shape=(3, 32, 32))
    bank = make_bank(Reference(images, (0, 100, 100, 300)), "cuda", where)
    x_t, t = noisy(images, 1.0, n=8)
    x_t, t, group = x_t.cuda(), t.cuda(), torch.tensor([0, 2] * 4, device="cuda")
    posterior(x_t, t, EDM(), bank, group, block=64)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            posterior(x_t, t, EDM(), bank, group, block=64)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == (where == "host")


@pytest.mark.parametrize("shape", [(1, 5, 7), (20, 33, 9), (128, 3072, 100)])
def test_products_of_bytes_are_whole_numbers_on_the_card(shape: tuple[int, int, int]) -> None:
    b, k, m = shape
    q = torch.randint(-128, 128, (b, k)).to(torch.int8)
    x = torch.randint(-128, 128, (m, k)).to(torch.int8)
    for other in (x.cuda().T, x.T.contiguous().cuda()):
        assert torch.equal(exact_products(q.cuda(), other).cpu().long(), q.long() @ x.T.long())


def test_training_on_the_card_is_training_on_the_cpu() -> None:
    images = pixels(64, shape=(3, 8, 8))
    losses = []
    for device in ("cpu", "cuda"):
        bank = Reference.ungrouped(images.to(device))
        objective = Consistency(EDM(), LogNormalPairs(SigmoidGap()), ScoreIdentity(EDM(), bank))
        model = lambda x, t, c=None: x / (1 + t.view(-1, 1, 1, 1))
        batch = Batch(images[:32].to(device).float() / 127.5 - 1, None, torch.arange(32, device=device))
        losses.append(objective(model, model, batch, 6_400_000, torch.Generator().manual_seed(0)).cpu())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def test_a_query_that_cannot_be_answered_has_nan_and_harms_no_other() -> None:
    """On a card nobody waits to see values."""
    images = pixels(60, shape=(3, 8, 8))
    x_t, t = noisy(images, 1.0, n=6)
    x_t[1], t[2] = torch.inf, 0.0
    group = torch.tensor([0, 0, 0, 1, 2, 9])  # class 1 is empty, class 9 unknown
    for offsets in ((0, 20, 20, 60), (0, 1, 1, 2, 60)):  # the set under a mask; small classes apart
        bank = Reference(images.cuda(), offsets)
        mean = posterior(x_t.cuda(), t.cuda(), EDM(), bank, group.cuda()).mean.cpu()
        assert mean.flatten(1).isfinite().all(1).tolist() == [True, False, False, False, True, False]
