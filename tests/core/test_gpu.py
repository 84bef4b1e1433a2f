"""The same code on a card: run with -m gpu where there is one."""

import pytest
import torch

from sct.core.estimators import ScoreIdentity
from sct.core.noise import EDM
from sct.core.objectives import Consistency
from sct.core.posterior import Reference, posterior, posterior_exact
from sct.core.times import LogNormalPairs, SigmoidGap
from sct.core.types import Batch
from tests.core.test_posterior import noisy, pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("ratio", [0.002, 0.05, 1.0, 10.0, 80.0])
def test_streaming_is_exact_on_the_card_with_and_without_tf32(ratio: float, tf32: bool) -> None:
    """Digits are whole numbers that TF32 holds; the weighted sum keeps TF32's three digits at the least."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        images = pixels(300, shape=(3, 32, 32))
        x_t, t = noisy(images, ratio)
        exact = posterior_exact(x_t, t, EDM(), images)
        found = posterior(x_t.cuda(), t.cuda(), EDM(), Reference.whole(images.cuda()), block=64).mean.cpu()
        error = (found.double() - exact).norm() / exact.norm()
        assert float(error) < (1e-3 if tf32 else 1e-5)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_training_on_the_card_is_training_on_the_cpu() -> None:
    images = pixels(64, shape=(3, 8, 8))
    losses = []
    for device in ("cpu", "cuda"):
        bank = Reference.whole(images.to(device))
        objective = Consistency(EDM(), LogNormalPairs(SigmoidGap()), ScoreIdentity(EDM(), bank, size=16))
        model = lambda x, t, c=None: x / (1 + t.view(-1, 1, 1, 1))
        batch = Batch(images[:32].to(device).float() / 127.5 - 1, None, torch.arange(32, device=device))
        losses.append(objective(model, model, batch, 6_400_000, torch.Generator().manual_seed(0)).cpu())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
