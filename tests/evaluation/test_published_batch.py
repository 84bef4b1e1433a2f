"""A published reference batch: its moments serve the Fréchet distance, its images precision and recall."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consistune.data.images import digits
from consistune.evaluation import setup
from consistune.evaluation.request import Request
from consistune.metrics.frechet import frechet
from consistune.metrics.metric import Setup
from consistune.metrics.moments import moments
from consistune.metrics.suite import Suite
from tests.support.metrics import EXTRACTOR


class Listening:
    def __init__(self) -> None:
        self.said = ""

    def say(self, text: str) -> None:
        self.said += text

    def bar(self, *_: object) -> Any:
        return nullcontext()


@pytest.mark.parametrize("option", ["data", "reference", "both"])
def test_a_published_batch_serves_moments_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """ADM's layout: mu and sigma of the whole set, arr_0 a part of it."""
    monkeypatch.setenv("CONSISTUNE_CACHE", str(tmp_path / "cache"))
    images = digits().train.images
    whole, samples = images[:800], images[900:1000]
    mean, covariance = moments(EXTRACTOR(whole))
    batch = tmp_path / "batch.npz"
    pixels = whole[:60].permute(0, 2, 3, 1).numpy()
    mu, sigma = mean.numpy(), covariance.numpy()
    np.savez(batch, arr_0=pixels, mu=mu, sigma=sigma, mu_s=mu[:7], sigma_s=sigma[:7, :7])
    request = Request(
        tmp_path / "samples.npz",
        tmp_path / "out",
        data=None if option == "reference" else str(batch),
        reference=None if option == "data" else batch,
        metrics=("fd", "pr"),
    )
    screen = Listening()
    data = setup.read_data(request.data or setup.images_in(request.reference))
    reference = setup._reference(request, data, EXTRACTOR, screen)
    assert "its mu and sigma are the reference of the Fréchet distance; the 60 images" in screen.said
    found = Suite(Setup(EXTRACTOR, reference, data, labelled=False), ("fd", "pr")).measure(samples).values
    expected = frechet(*moments(EXTRACTOR(samples)), mean, covariance)
    assert found[next(name for name in found if name.startswith("fd"))] == pytest.approx(expected, rel=1e-6)
    real, own = EXTRACTOR(whole[:60]).double(), EXTRACTOR(samples).double()
    radius = torch.cdist(real, real).sort().values[:, 3]  # the third neighbour, oneself not counted
    assert found["precision"] == pytest.approx(
        float((torch.cdist(own, real) <= radius).any(1).double().mean()), abs=0.02
    )


def test_a_batch_of_images_alone_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSISTUNE_CACHE", str(tmp_path / "cache"))
    part = digits().train.images[:60]
    np.savez(tmp_path / "batch.npz", arr_0=part.permute(0, 2, 3, 1).numpy())
    request = Request(tmp_path / "samples.npz", tmp_path / "out", data=str(tmp_path / "batch.npz"))
    reference = setup._reference(request, setup.read_data(request.data), EXTRACTOR, Listening())
    assert torch.allclose(reference.mean, moments(EXTRACTOR(part))[0])
