"""The models in the box: loaded by name, small, and what they draw is in colour and varied."""

import torch

from consistune.models import BOX, load, sample


def test_the_emoji_are_drawn_by_name_in_one_step() -> None:
    model = load("emoji64")
    assert not model.card.is_diffusion
    images = sample(model, range(8))
    assert images.shape == (8, 3, 64, 64)
    values = images.float()
    assert float((values.amax(1) - values.amin(1)).mean()) > 10  # colour
    apart = (values[:, None] - values[None]).square().mean((2, 3, 4)).sqrt()
    assert float(apart[~torch.eye(8, dtype=torch.bool)].min()) > 20  # eight different pictures
    assert float(values[:, :, 0, 0].mean()) > 200  # emoji stand on white


def test_mnist_is_drawn_by_its_labels() -> None:
    model = load("mnist10k")
    zeros, ones = (sample(model, range(16), condition=digit).float() for digit in (0, 1))
    assert zeros.shape == (16, 1, 32, 32)
    assert float(zeros.mean()) > 1.5 * float(ones.mean())  # a zero takes more ink
    assert float(zeros[:, :, 14:18, 14:18].mean()) < 0.3 * float(
        ones[:, :, 14:18, 14:18].mean()
    )  # its middle
    assert float(torch.cat([zeros, ones])[:, :, :2].mean()) < 10  # MNIST has a black edge


def test_the_box_is_small_and_says_where_it_comes_from() -> None:
    assert sum(path.stat().st_size for path in BOX.rglob("*") if path.is_file()) < 12e6
    for folder in BOX.glob("*/"):
        card = folder.with_suffix(".md").read_text(encoding="utf-8")
        for word in ("**Data**", "**Licence**", "**Commands**", "**Limits**"):
            assert word in card
