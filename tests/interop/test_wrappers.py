"""Checkpoints as training programs write them: prefixes, several networks in a file, folders."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from consistune.errors import UserError
from consistune.interop.checkpoints import import_checkpoint, load_checkpoint
from consistune.nn import store
from consistune.nn.precond import Preconditioned

OPTIONS: dict[str, Any] = {
    "image_shape": [1, 8, 8],
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
SONG = {"network": {"kind": "song", **OPTIONS}, "precond": {"kind": "edm"}}
EDM2 = {
    "network": {"kind": "edm2", **OPTIONS, "model_channels": 64, "num_classes": 3},
    "precond": {"kind": "edm2", "logvar_channels": 0},
}


def made(config: dict[str, Any] = SONG, seed: int = 0) -> Preconditioned:
    torch.manual_seed(seed)
    return store.build(config).eval()


def under(prefix: str, model: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: value.clone() for name, value in model.state_dict().items()}


def assert_same(loaded: Preconditioned, model: Preconditioned) -> None:
    found, expected = loaded.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value.float()), name


PREFIXES = (
    "_orig_mod.",
    "module.",
    "model.",
    "ema_model.",
    "model_ema.",
    "module._orig_mod.",
    "a.b.net.",
    "",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("config", [SONG, EDM2])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_words_before_the_names_are_no_hindrance(
    tmp_path: Path, prefix: str, config: dict[str, Any], kind: str
) -> None:
    model = made(config)
    path = tmp_path / f"file.{kind}"
    weights = under(prefix, model)
    torch.save(weights, path) if kind == "pt" else save_file(weights, path)
    assert_same(load_checkpoint(path), model)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("form", ["torch", "ema_pytorch"])
def test_the_counters_of_averages_are_dropped_and_said(tmp_path: Path, kind: str, form: str) -> None:
    model = made()
    path = tmp_path / f"average.{kind}"
    if form == "torch":
        weights = torch.optim.swa_utils.AveragedModel(model).state_dict()
    else:
        weights = {**under("online_model.", made(seed=1)), **under("ema_model.", model)}
        weights |= {"initted": torch.tensor(True), "step": torch.tensor(7)}
    save_file(weights, path) if kind == "safetensors" else torch.save(weights, path)
    loaded = load_checkpoint(path)
    assert_same(loaded, model)
    dropped = loaded.card.provenance["dropped"]  # type: ignore[index]
    assert sorted(dropped) == (["n_averaged"] if form == "torch" else ["initted", "step"])


@pytest.mark.parametrize("config", [SONG, EDM2])
def test_a_network_without_its_preconditioning(tmp_path: Path, config: dict[str, Any]) -> None:
    model = made(config)
    torch.save(under("net._orig_mod.", model.network), tmp_path / "file.pt")
    assert_same(load_checkpoint(tmp_path / "file.pt"), model)


def test_a_part_of_a_compiled_network(tmp_path: Path) -> None:
    model = made()
    weights = {name.replace("_block0.", "_block0._orig_mod."): v for name, v in model.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "file.pt")
    assert_same(load_checkpoint(tmp_path / "file.pt"), model)


Content = Callable[[Preconditioned, Preconditioned], dict[str, Any]]
SEVERAL: dict[str, tuple[str, str, Content]] = {
    "parts": ("net", "ema", lambda net, ema: {"net": under("", net), "ema": under("", ema), "step": 3}),
    "prefixes": ("model", "ema_model", lambda net, ema: under("model.", net) | under("ema_model.", ema)),
    "no prefix": ("", "model_ema", lambda net, ema: under("", net) | under("model_ema.", ema)),
    "lightning": (
        "state_dict.net",
        "state_dict.net_ema",
        lambda net, ema: {
            "epoch": 1,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": under("net.", net) | under("net_ema.", ema),
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}],
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "", "best": -1.0}},
        },
    ),
    "ema with counters": (
        "model",
        "ema.ema_model",
        lambda net, ema: {
            "model": under("module.", net),
            "ema": under("ema_model.", ema) | {"initted": torch.tensor(True), "step": torch.tensor(9)},
        },
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_networks_the_average_is_taken_and_said(tmp_path: Path, name: str) -> None:
    net_word, ema_word, content = SEVERAL[name]
    net, ema = made(seed=1), made(seed=2)
    path = tmp_path / "file.ckpt"
    torch.save(content(net, ema), path)
    said = import_checkpoint(path, tmp_path / "model")
    assert_same(store.load(tmp_path / "model"), ema)
    assert f"weights: those under {ema_word!r}; also there: {net_word!r} (--weights chooses)" in said
    assert_same(load_checkpoint(path, net_word), net)
    with pytest.raises(UserError, match="'online' is not one of its networks"):
        load_checkpoint(path, "online")


def test_two_averages_are_not_chosen_between(tmp_path: Path) -> None:
    nets = [made(seed=seed) for seed in range(3)]
    parts = {"net": nets[0], "ema_0.99": nets[1], "ema_0.999": nets[2]}
    torch.save({name: under("", net) for name, net in parts.items()}, tmp_path / "file.pt")
    with pytest.raises(UserError, match=r"several networks: 'net', 'ema_0\.99', 'ema_0\.999'; choose one"):
        load_checkpoint(tmp_path / "file.pt")
    assert_same(load_checkpoint(tmp_path / "file.pt", "ema_0.999"), nets[2])


def accelerate(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, folder / "model.safetensors")
    torch.save({"state": {}}, folder / "optimizer.bin")


def old_accelerate(folder: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def lightning(folder: Path, weights: dict[str, Tensor]) -> None:
    (folder / "checkpoints").mkdir()
    torch.save({"state_dict": weights, "epoch": 3}, folder / "checkpoints" / "epoch=3-step=12.ckpt")


@pytest.mark.parametrize("write", [accelerate, old_accelerate, lightning])
def test_folders(tmp_path: Path, write: Callable[[Path, dict[str, Tensor]], None]) -> None:
    model = made()
    write(tmp_path, under("model.", model))
    import_checkpoint(tmp_path, tmp_path / "out")
    assert_same(store.load(tmp_path / "out"), model)


def test_a_folder_of_several_checkpoints_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder without"):
        load_checkpoint(tmp_path)
    for name in ("a.ckpt", "b.ckpt"):
        torch.save(under("", made()), tmp_path / name)
    with pytest.raises(UserError, match=r"several checkpoints: 'a\.ckpt', 'b\.ckpt'"):
        load_checkpoint(tmp_path)


def test_bf16_weights_are_widened(tmp_path: Path) -> None:
    model = made().bfloat16()
    torch.save({"ema": under("", model)}, tmp_path / "file.pt")
    assert_same(load_checkpoint(tmp_path / "file.pt"), model)


def test_tensors_of_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.save writes them on a card: the storage's location is the device's name."""
    model = made()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save({"state_dict": under("module.", model)}, tmp_path / "file.pt")
    assert b"cuda:0" in (tmp_path / "file.pt").read_bytes()
    assert_same(load_checkpoint(tmp_path / "file.pt"), model)


@pytest.mark.parametrize("place", ["run", "run/model", "run/model/model.safetensors"])
def test_a_model_of_this_program_is_not_imported_again(tmp_path: Path, place: str) -> None:
    store.save(made(), tmp_path / "run" / "model")
    with pytest.raises(UserError, match=f"{place}: is a model of consistune already; use the folder .*model"):
        import_checkpoint(tmp_path / place, tmp_path / "out")


def test_an_archive_of_pictures_is_no_torch_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("000.png", b"picture")
    with pytest.raises(UserError, match=r"not a torch archive: record '000\.png' lies in no folder"):
        load_checkpoint(tmp_path / "x.zip")
