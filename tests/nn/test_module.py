"""Networks that are not ours: preconditioning around them, labels, storing, and what is refused."""

import copy
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.adapt import adapt
from consistune.nn.module import class_indices, wrap

SHAPE = (1, 4, 4)


class Scale(nn.Module):
    """F = gain·x + c_noise (+ label): every argument is seen in the result."""

    def __init__(self, gain: float = 2.0, labels: bool = False) -> None:
        super().__init__()
        self.config = {"gain": gain, "labels": labels}
        self.gain, self.labels = nn.Parameter(torch.tensor(gain)), labels

    def forward(self, x: Tensor, c: Tensor, *labels: Tensor) -> Any:
        assert len(labels) == self.labels
        shift = c + (labels[0].argmax(1) if labels else 0)
        return SimpleNamespace(sample=self.gain * x + shift[:, None, None, None])


class Index(nn.Module):
    """A network that takes class indices, as its class_embedding says."""

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Embedding(4, 1)

    def forward(self, x: Tensor, c: Tensor, index: Tensor) -> Tensor:
        return x + self.class_embedding(index)[:, :, None, None]


class Identity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma[:, None, None, None] ** 2) + self.none


def test_a_network_is_put_into_edms_preconditioning() -> None:
    model = wrap(Scale(2.0), SHAPE)
    x, sigma = (
        torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.1, 1.0, 9.0]),
    )
    s, d = sigma[:, None, None, None], 0.5
    raw = 2 * x / (s**2 + d**2).sqrt() + s.log() / 4
    expected = d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2).sqrt() * raw
    assert torch.allclose(model(x, sigma), expected, atol=1e-6)


def test_a_denoiser_is_taken_as_it_is() -> None:
    model = wrap(Identity(), SHAPE, form="denoiser")
    x = torch.ones(2, *SHAPE)
    assert torch.allclose(model(x, torch.tensor([0.0, 3.0]))[:, 0, 0, 0], torch.tensor([1.0, 0.1]))


def test_classes_come_as_indices_where_the_network_embeds_them() -> None:
    network = Index()
    model = wrap(network, SHAPE, 3)
    x = torch.zeros(3, *SHAPE)
    seen = model(x, 1.0, torch.tensor([2, 0, 1]))[:, 0, 0, 0]
    expected = network.class_embedding.weight[[2, 0, 1], 0]
    assert torch.allclose(seen / seen[0], expected / expected[0], atol=1e-5)
    assert class_indices(torch.zeros(1, 3)).tolist() == [3]


def test_a_stored_network_is_made_again_from_its_class(tmp_path: Path) -> None:
    model = wrap(Scale(3.0, labels=True), SHAPE, 2)
    store.save(model, tmp_path / "model")
    again = store.load(tmp_path / "model")
    x = torch.ones(2, *SHAPE)
    assert torch.equal(again(x, 1.0, torch.tensor([0, 1])), model(x, 1.0, torch.tensor([0, 1])))


class Pair(nn.Module):
    """Two parameters, of which the first may come without a gradient."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.config = {"fixed": fixed}
        self.first, self.second = (nn.Parameter(torch.ones(1)) for _ in range(2))
        self.first.requires_grad_(not fixed)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        del c
        return self.first * x + self.second


@pytest.mark.parametrize("by_its_class", [True, False])
def test_parameters_without_gradient_stay_known(by_its_class: bool, tmp_path: Path) -> None:
    """Through a copy, without any gradient as trained models are, in another form, and stored."""
    module = Pair(fixed=by_its_class)
    module.first.requires_grad_(False)
    model = wrap(module, SHAPE)
    assert model.frozen == {"model.module.first"} <= dict(model.named_parameters()).keys()
    trained = copy.deepcopy(model).requires_grad_(False)
    store.save(trained, tmp_path / "model")
    again = store.load(tmp_path / "model")
    for other in (trained, adapt(trained, {"kind": "cm"}).model, again, copy.deepcopy(again)):
        assert other.frozen == model.frozen
    assert wrap(Pair(), SHAPE).frozen == frozenset()


class Values(Pair):
    """Its constructor reads values, as the usual rates of dropped paths do."""

    def __init__(self, fixed: bool = False, depth: int = 2) -> None:
        super().__init__(fixed)
        self.config |= {"depth": depth}
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, depth)]
        self.rest = torch.linspace(0, 0.1, depth).numpy().tolist()
        if depth > 2:
            raise RuntimeError(f"{depth} is too deep")


def test_a_constructor_may_read_values(tmp_path: Path) -> None:
    store.save(wrap(Values(), SHAPE), tmp_path / "model")
    assert store.load(tmp_path / "model").network.module.rates == pytest.approx([0, 0.1])
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"depth": 2', '"depth": 3'))
    with pytest.raises(UserError, match=r"from its arguments \(RuntimeError: 3 is too deep\)"):
        store.load(tmp_path / "model")


def test_a_compiled_network_is_stored_as_the_network(tmp_path: Path) -> None:
    def compiled() -> nn.Module:
        return torch.compile(Scale(3.0), backend="eager")

    with pytest.warns(UserWarning, match="without its torch.compile"):
        whole = wrap(compiled(), SHAPE)
    inside = wrap(Scale(3.0), SHAPE)
    inside.network.module = compiled()
    assert "model.module.gain" in whole.state_dict()
    for number, model in enumerate((whole, inside)):
        store.save(model, tmp_path / str(number))
        for factory in (None, compiled):
            again = store.load(tmp_path / str(number), network=factory)
            assert torch.equal(again(torch.ones(2, *SHAPE), 1.0), model(torch.ones(2, *SHAPE), 1.0))


@pytest.mark.parametrize(
    ("target", "config", "said"),
    [
        ("os:system", {"command": "echo"}, "os:system, which is not imported"),
        ("not_there_at_all:Net", {}, "import it before"),
        (f"{__name__}:Scale", None, "were not stored"),
        ("torch.nn:functional", {}, "not imported"),
    ],
)
def test_a_folder_runs_nothing_that_it_names(
    target: str, config: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(wrap(Scale(), SHAPE), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    stored = json.loads(path.read_text())
    stored["network"] |= {"target": target, "config": config}
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=said):
        store.load(tmp_path / "model")
    assert "not_there_at_all" not in sys.modules
    assert store.load(tmp_path / "model", network=Scale).network.module.gain == 2.0


def test_a_factory_is_refused_where_the_network_is_ours(tmp_path: Path) -> None:
    network = {"kind": "mlp", "image_shape": SHAPE, "width": 8, "blocks": 1}
    store.save(store.build({"network": network, "precond": {"kind": "edm"}}), tmp_path / "model")
    with pytest.raises(UserError, match="one of ours"):
        store.load(tmp_path / "model", network=Scale)


@pytest.mark.parametrize(
    ("module", "classes", "said"),
    [
        (nn.Conv2d(1, 1, 1), 0, "fails on images"),
        (Scale(), 3, r"Scale\(x, c_noise, labels\) fails"),
        (nn.Identity(), 0, "no parameters"),
        (wrap(Scale(), SHAPE), 0, "has a preconditioning already"),
        (torch.compile(wrap(Scale(), SHAPE), backend="eager"), 0, "has a preconditioning already"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(module: nn.Module, classes: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        wrap(module, SHAPE, classes)


class Tupled(Scale):
    def forward(self, x: Tensor, c: Tensor, *labels: Tensor) -> Any:
        return super().forward(x, c, *labels).sample, c


class Needy(Pair):
    def forward(self, x: Tensor, c: Tensor, labels: Tensor) -> Tensor:
        return super().forward(x, c) + nn.functional.embedding(labels, self.second[:, None])


@pytest.mark.parametrize(
    ("module", "classes", "remedy"),
    [
        (Pair(), 3, "give it a third argument for labels, or conditional=False"),
        (Needy(), 3, r"labels are one-hot floats \[N, K\]"),
        (Needy(), 0, "give its further arguments defaults"),
        (nn.Conv2d(1, 1, 1), 0, "give it x and c_noise"),
        *((nn.Conv2d(1, 1, 1).to(dtype), 0, "fp32 weights") for dtype in (torch.bfloat16, torch.float16)),
        (Tupled(), 0, "Tupled gives tuple, .*; return the tensor alone"),
    ],
)
def test_a_refusal_says_what_to_change(module: nn.Module, classes: int, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        wrap(module, SHAPE, classes)


def test_each_part_keeps_its_mode() -> None:
    module = nn.ModuleList([Pair(), Pair().eval()])
    module.forward = lambda x, c: module[1](module[0](x, c), c)  # type: ignore[method-assign]
    wrap(module, SHAPE)
    assert [part.training for part in module.modules()] == [True, True, False]


def test_a_result_of_another_shape_is_refused() -> None:
    class Flat(Scale):
        def forward(self, x: Tensor, c: Tensor, *labels: Tensor) -> Tensor:
            return x.flatten(1)

    with pytest.raises(UserError, match=r"Flat gives \[2, 16\], expected images \[2, 1, 4, 4\]"):
        wrap(Flat(), SHAPE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "Denoiser"}, "form: 'Denoiser' is not known; did you mean denoiser"),
        *(
            ({"sigma_data": value}, "sigma_data: .* is no deviation")
            for value in (0.0, -1.0, math.nan, math.inf)
        ),
    ],
)
def test_a_form_or_a_deviation_that_is_none_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        wrap(Scale(), SHAPE, **options)
