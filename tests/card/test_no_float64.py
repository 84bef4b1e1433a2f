"""A device without float64, as Apple's and some of Intel's: the pretended card refuses it."""

import pytest
import torch

from consistune.core import types
from consistune.core.guidance import Guided
from consistune.core.noise import EDM, VP, NoiseSchedule, RectifiedFlow, TrigFlow, rescheduled
from consistune.core.rng import ImageNoise
from consistune.core.sampling import ODE, Multistep, PhasedSteps
from tests.card.pretended import Card
from tests.card.runs import CLASSES, SHAPE, STEPS, model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def refusing(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(types, "NO_FLOAT64", ("cuda",))
    monkeypatch.setattr(Card, "refused", (torch.float64,))


def test_the_device_refuses() -> None:
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(2, device="cuda").double()


@pytest.mark.parametrize("kind", sorted(set(STEPS) - {"adm", "edm2", "all options"}))
def test_a_step_of_every_kind_needs_no_float64(kind: str) -> None:
    assert next(STEPS[kind]().steps()).finite


@pytest.mark.parametrize("sampler", [Multistep((1.0,)), PhasedSteps((1.0,)), ODE(3), ODE(3, churn=5.0)])
def test_samplers_need_no_float64_and_draw_the_same(sampler) -> None:
    network = model("mlp").eval()
    with torch.no_grad():
        here = sampler(network, EDM(), ImageNoise([0, 1]), SHAPE)
        there = sampler(network.to("cuda"), EDM(), ImageNoise([0, 1], "cuda"), SHAPE)
    assert there.dtype == torch.float32
    torch.testing.assert_close(there.cpu().double(), here, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "schedule", [EDM(), VP(), RectifiedFlow(), TrigFlow()], ids=lambda one: type(one).__name__
)
def test_guided_two_time_models_need_no_float64_and_draw_the_same(schedule: NoiseSchedule) -> None:
    network = model("mlp", CLASSES, second_time=True).eval()
    sampler, labels = PhasedSteps((schedule.t_max / 2,)), torch.tensor([0, 3])

    def draw(device: str) -> torch.Tensor:
        guided = Guided(rescheduled(network.to(device), schedule), None, 1.5, 0.01, schedule.t_max)
        with torch.no_grad():
            return sampler(guided, schedule, ImageNoise([0, 1], device), SHAPE, labels.to(device))

    here, there = draw("cpu"), draw("cuda")
    assert there.dtype == torch.float32
    torch.testing.assert_close(there.cpu().double(), here, rtol=1e-3, atol=1e-3)
