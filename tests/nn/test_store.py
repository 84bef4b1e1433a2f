"""Model folders: what is saved comes back, and nothing else passes for one."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import consistune
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.system import files


def make() -> EDMPrecond:
    torch.manual_seed(1)
    network = ResidualMLP((1, 4, 4), num_classes=3, width=8, blocks=2, dropout=0.3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    model = EDMPrecond(network, sigma_data=0.7)
    model.card = ModelCard(class_names=("a", "b", "c"))
    return model.eval()


def test_a_saved_model_comes_back_the_same(tmp_path: Path) -> None:
    model = make()
    store.save(model, tmp_path / "model")
    back = consistune.load(tmp_path / "model")
    x, sigma, labels = torch.randn(5, 1, 4, 4), torch.logspace(-2, 2, 5), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(back(x, sigma, labels), model(x, sigma, labels))
    assert store.describe(back) == store.describe(model)
    assert not back.training
    assert not consistune.load(tmp_path).training  # a run's folder holds its model under model/


def test_saving_replaces_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    model = make()
    store.save(model, tmp_path / "model")
    with torch.no_grad():
        next(model.parameters()).fill_(2.0)
    store.save(model, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert float(next(consistune.load(tmp_path / "model").parameters()).detach().min()) == 2.0


@pytest.mark.parametrize("place", [0.05, 0.3, 0.6, 0.999])
def test_a_flipped_bit_of_the_weights_is_found(tmp_path: Path, place: float) -> None:
    path = store.save(make(), tmp_path / "model") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="the weights are damaged"):
        consistune.load(tmp_path / "model")
    if place > 0.5:  # among the numbers, where nothing else can see it
        consistune.load(tmp_path / "model", verify=False)


def test_a_model_of_before_there_was_a_digest_loads(tmp_path: Path) -> None:
    path = store.save(make(), tmp_path / "model") / "config.json"
    config = json.loads(path.read_text())
    assert len(config["meta"].pop("weights_sha256")) == 64
    path.write_text(json.dumps(config))
    consistune.load(tmp_path / "model")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        folder = store.save(make(), tmp_path / "model")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode}


@pytest.mark.parametrize("whole", [True, False])
def test_at_every_moment_of_a_replacement_a_model_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """What a reader finds before each change of a name, with an exchange in one step and without."""
    if not whole:
        monkeypatch.setattr(files, "exchange", lambda a, b: False)
    elif not files.exchange(store.save(make(), tmp_path / "a"), store.save(make(), tmp_path / "b")):
        pytest.skip("this file system cannot exchange names")
    folder = store.save(make(), tmp_path / "run" / "model")
    found: list[str] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **keys: Any) -> Any:
            consistune.load(folder)
            consistune.load(tmp_path / "run")
            found.append(name)
            return original(*args, **keys)

        return act

    monkeypatch.setattr(Path, "rename", watched("rename", Path.rename))
    monkeypatch.setattr(files.shutil, "rmtree", watched("rmtree", files.shutil.rmtree))
    store.save(make(), folder)
    assert found.count("rename") == (0 if whole else 2)
    assert found.count("rmtree") >= 1
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_full_disk_has_its_own_error_and_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.save(make(), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        store.save(make(), folder)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"network": {"kind": "transformer"}}, "transformer"),
        ({"network": {"kind": "mlp", "colour": 3}}, "colour"),
        ({"precond": None}, "precond"),
        ({"network": {"kind": "mlp", "image_shape": [1, 4, 4], "width": 9}}, "do not fit"),
    ],
)
def test_what_is_not_a_model_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    store.save(make(), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        store.load(tmp_path / "model")


def test_a_run_whose_model_lacks_a_file_says_which(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"it has no model; .*consistune train '.*/my run' --resume"):
        store.load(run)
    store.save(make(), run / "model")
    (run / "model" / "config.json").unlink()
    with pytest.raises(UserError, match=r"not finished, model/config\.json is missing"):
        store.load(run)


def test_torn_files_are_refused(tmp_path: Path) -> None:
    store.save(make(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        store.load(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(UserError, match="JSON"):
        store.load(tmp_path / "model")


def test_edm_scalings_are_the_papers() -> None:
    model = EDMPrecond(ResidualMLP((1, 2, 2), width=4, blocks=1), sigma_data=0.5)
    sigma = torch.tensor([0.002, 0.3, 80.0], dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = model.scalings(sigma)
    v = sigma**2 + 0.25
    assert torch.allclose(c_skip, 0.25 / v)
    assert torch.allclose(c_out, sigma * 0.5 / v.sqrt())
    assert torch.allclose(c_in, 1 / v.sqrt())
    assert torch.allclose(c_noise, sigma.log() / 4)
    # Unit variance of the network's input and of its target, for data of variance sigma_data².
    assert torch.allclose(c_in**2 * v, torch.ones(3, dtype=torch.float64))
    target_variance = ((1 - c_skip) ** 2 * 0.25 + c_skip**2 * sigma**2) / c_out**2
    assert torch.allclose(target_variance, torch.ones(3, dtype=torch.float64))


def test_at_sigma_zero_the_model_is_the_identity() -> None:
    model = make()
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(model(x, torch.zeros(2), torch.tensor([0, 1])), x)


@pytest.mark.parametrize("value", [None, "x", [], {}, [0.5], True])
def test_a_number_of_another_type_is_refused(value: object) -> None:
    network = {"kind": "mlp", "image_shape": [1, 8, 8], "width": 8, "blocks": 1}
    for part, name in (("precond", "sigma_data"), ("network", "blocks")):
        config = {"network": dict(network), "precond": {"kind": "edm"}}
        config[part][name] = value
        with pytest.raises(UserError, match=f"{name} is"):
            store.build(config)


def test_a_model_of_a_class_that_was_defined_again_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    again = type("ResidualMLP", (ResidualMLP,), {"__module__": ResidualMLP.__module__})
    monkeypatch.setitem(store.NETWORKS, "mlp", again)
    assert store.describe(make())["network"]["kind"] == "mlp"
