"""Import of every format, its provenance, and the refusal of weights that do not fit."""

import hashlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import consistune
from consistune.errors import UserError
from consistune.interop.checkpoints import import_checkpoint, load_checkpoint
from consistune.interop.export import export_model
from consistune.interop.onnx import metadata
from consistune.nn import store
from consistune.nn.card import ModelCard
from consistune.nn.precond import Preconditioned
from tests.support import forge
from tests.support.assembler import (
    NESTED,
    ORDERED,
    PROTO,
    REBUILD,
    STOP,
    blob,
    call,
    mapping,
    name,
    pickled,
    storage_bytes,
    text,
)

SMALL: dict[str, Any] = {
    "image_shape": [1, 8, 8],
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.25,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "song": {"network": {"kind": "song", **SMALL, "augment_dim": 9}, "precond": {"kind": "edm"}},
    "ncsnpp": {
        "network": {
            "kind": "song",
            **SMALL,
            "num_classes": 3,
            "embedding_type": "fourier",
            "encoder_type": "residual",
            "channel_mult_noise": 2,
            "resample_filter": [1, 3, 3, 1],
        },
        "precond": {"kind": "ve"},
    },
    "iddpm": {
        "network": {"kind": "adm", **SMALL, "out_channels": 2, "num_classes": 3},
        "precond": {"kind": "iddpm"},
    },
    "edm2 of 64-channel heads": {
        "network": {"kind": "edm2", **SMALL, "num_classes": 3, "model_channels": 64, "dropout": 0.0},
        "precond": {"kind": "edm2", "logvar_channels": 0},
    },
    "edm2": {
        "network": {"kind": "edm2", **SMALL, "num_classes": 3, "channels_per_head": 8},
        "precond": {"kind": "edm2"},
    },
}


def made(kind: str) -> Preconditioned:
    torch.manual_seed(3)
    model = store.build(CONFIGS[kind]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


def same(a: Preconditioned, b: Preconditioned) -> None:
    assert list(a.state_dict()) == list(b.state_dict())
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key
    x, sigma = torch.randn(2, *a.image_shape), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        assert torch.equal(a(x, sigma), b(x, sigma))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_snapshot_comes_in_and_stays(kind: str, tmp_path: Path) -> None:
    path = forge.write_snapshot(made(kind), tmp_path / "file.pkl")
    report = import_checkpoint(path, tmp_path / "model")
    model = consistune.load(tmp_path / "model")
    same(model, made(kind))
    expected, actual = store.describe(made(kind)), store.describe(model)
    assert actual["network"] == expected["network"]
    assert actual["precond"] == expected["precond"]
    provenance: Any = model.card.provenance
    assert provenance["file"] == "file.pkl"
    assert provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance["dropped"] == ["loss_fn (EDMLoss)", "dataset_kwargs", "embedded source text"]
    for words in ("CC BY-NC-SA 4.0", "loss_fn", provenance["sha256"]):
        assert words in report


@pytest.mark.parametrize("kind", ["song", "ncsnpp"])
def test_a_training_state_comes_in(kind: str, tmp_path: Path) -> None:
    path = forge.write_training_state(made(kind), tmp_path / "training-state-000001.pt")
    model = made(kind)
    same(load_checkpoint(path), model)
    assert load_checkpoint(path).card.provenance["dropped"] == ["optimizer_state"]  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bare_weights_are_recognised_by_their_shapes(dtype: torch.dtype, tmp_path: Path) -> None:
    for kind in ("song", "edm2 of 64-channel heads"):
        expected = made(kind).to(dtype).float()
        weights = {key: value.to(dtype).contiguous() for key, value in made(kind).state_dict().items()}
        save_file(weights, tmp_path / "file.safetensors")
        model = load_checkpoint(tmp_path / "file.safetensors")
        for key, value in expected.state_dict().items():
            assert torch.equal(model.state_dict()[key], value)
        assert "dropout 0" in model.card.assumed
    torch.save(made("song").state_dict(), tmp_path / "file.pt")
    same(load_checkpoint(tmp_path / "file.pt"), made("song"))


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_export_has_the_official_names_and_comes_back(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    model.card = ModelCard(objective="diffusion", class_names=("a",))
    store.save(model, tmp_path / "model")
    path = export_model(tmp_path / "model", tmp_path / "out.safetensors", "safetensors")
    again = load_checkpoint(path)
    same(again, model)
    assert again.card.class_names == ("a",)
    with pytest.raises(UserError, match="already"):
        export_model(tmp_path / "model", path)
    with pytest.raises(UserError, match=r"'onnxx'.*safetensors"):
        export_model(tmp_path / "model", tmp_path / "x", "onnxx")


def test_a_destination_is_not_overwritten(tmp_path: Path) -> None:
    path = forge.write_snapshot(made("song"), tmp_path / "file.pkl")
    (tmp_path / "empty").mkdir()
    import_checkpoint(path, tmp_path / "empty")
    for dest in (tmp_path / "empty", path):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match="already"):
            import_checkpoint(path, dest)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_channels": 24}, "has shape"),
        ({"model_channels": 100_001}, "impossible"),
        ({"model_channels": -1}, "impossible"),
        ({"model_channels": 96_000}, "has shape"),
        ({"num_blocks": 2}, "lacks"),
        ({"num_blocks": 1000}, "more than the file"),
        ({"num_blocks": 1.5}, "more than the file"),
        ({"channel_mult": [1] * 17}, "impossible"),
        ({"channel_mult": "ab"}, "more than the file"),
        ({"channel_mult": []}, "no network can be built"),
        ({"img_resolution": 9}, "9×9"),
        ({"label_dim": 5}, "lacks"),
        ({"augment_dim": 0}, "unknown"),
        ({"model_type": "Evil"}, "Evil"),
        ({"surprise": 1}, "surprise"),
        ({"dropout": 2.0}, "dropout"),
        ({"dropout": float("nan")}, "impossible"),
        ({"embedding_type": {"a": 1}}, "impossible"),
        ({"embedding_type": "x" * 100}, "impossible"),
    ],
)
def test_arguments_that_do_not_fit_the_weights_are_refused(
    change: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = forge.arguments
    monkeypatch.setattr(forge, "arguments", lambda model: real(model) | change)
    path = forge.write_snapshot(made("song"), tmp_path / "file.pkl")
    with pytest.raises(UserError, match=words):
        load_checkpoint(path)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    good = forge.write_training_state(made("song"), tmp_path / "good.pt").read_bytes()
    path = tmp_path / "file.pt"

    def refused(data: bytes, words: str) -> None:
        path.write_bytes(data)
        with pytest.raises(UserError, match=words):
            load_checkpoint(path)

    refused(good[:-10], "no end|malformed|directory")
    refused(good[: len(good) // 2], "no end")
    middle = len(good) // 2
    flipped = bytes([good[middle] ^ 255])
    refused(good[:middle] + flipped + good[middle + 1 :], "damaged|does not begin|malformed")
    squeezed = tmp_path / "bomb.pt"
    with zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", PROTO + b"}" + STOP)
        bomb.writestr("archive/data/0", bytes(10 << 20))
    refused(squeezed.read_bytes(), "compressed")
    end = good.rindex(b"PK\x05\x06")
    refused(good[: end + 8] + struct.pack("<HH", 65534, 65534) + good[end + 12 :], "records")
    refused(good[: end + 12] + struct.pack("<I", 0x7FFFFFFF) + good[end + 16 :], "records")


def storage_id(key: str, count: bytes, kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + count + b"tQ"


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (storage_id("0", b"K\x05"), "16 bytes"),
        (storage_id("0", b"J\xff\xff\xff\xff"), "16 bytes"),
        (storage_id("1", b"K\x04"), "missing"),
        (storage_id("../data.pkl", b"K\x04"), "missing"),
        (storage_id("0", text("4")), "16 bytes"),
        (text("storage") + b"Q", "not a storage"),
        (name("torch", "FloatStorage") + b")R", "a call of"),
        (storage_id("0", b"K\x04", "load"), "torch.load"),
    ],
)
def test_an_archives_storages_are_its_own_records(identity: bytes, words: str, tmp_path: Path) -> None:
    rebuilt = name("torch._utils", "_rebuild_tensor_v2")
    tensor = rebuilt + b"(" + identity + b"K\x00K\x04\x85K\x01\x85\x89" + ORDERED + b"tR"
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
        archive.writestr("archive/data.pkl", PROTO + mapping(w=tensor) + STOP)
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(UserError, match=words):
        load_checkpoint(tmp_path / "file.pt")


def test_tensors_do_not_share_bytes(tmp_path: Path) -> None:
    """A small file could otherwise ask for a large network."""
    rebuilt = name("torch._utils", "_rebuild_tensor_v2")
    identity, size = storage_id("0", b"J\x00\x10\x00\x00"), b"M\x00\x10\x85"
    tensor = call(rebuilt, identity, b"K\x00", size, b"K\x01\x85", b"\x89", ORDERED)
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
        archive.writestr("archive/data.pkl", PROTO + mapping(v=tensor, w=tensor) + STOP)
        archive.writestr("archive/data/0", bytes(4 << 12))
    with pytest.raises(UserError, match="share"):
        load_checkpoint(tmp_path / "file.pt")
    stored = storage_bytes(bytes(4 << 12), 1 << 12)
    held = blob(stored) + b"\x940"  # memo 0: the bytes for several storages
    shared = call(REBUILD, call(NESTED, b"h\0"), b"K\0", b"M\x00\x10\x85", b"K\x01\x85", b"\x89", ORDERED)
    (tmp_path / "file.pkl").write_bytes(pickled(held + mapping(v=shared, w=shared)))
    with pytest.raises(UserError, match="share"):
        load_checkpoint(tmp_path / "file.pkl")


def test_records_do_not_overlap(tmp_path: Path) -> None:
    """One stretch of bytes under many names would have its checksum computed for each."""
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
        archive.writestr("archive/data.pkl", bytes(1000))
        for index in range(9):
            archive.writestr(f"archive/data/{index}", bytes(10))
    data = (tmp_path / "file.pt").read_bytes()
    directory = data.index(b"PK\x01\x02")
    first = data[directory:].split(b"PK\x01\x02")[1]
    entries = [b"PK\x01\x02" + first.replace(b"data.pkl", f"data.pk{index}".encode()) for index in range(10)]
    end = data[data.rindex(b"PK\x05\x06") :]
    end = end[:12] + struct.pack("<I", sum(map(len, entries))) + end[16:]
    (tmp_path / "file.pt").write_bytes(data[:directory] + b"".join(entries) + end)
    with pytest.raises(UserError, match="overlap"):
        load_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (b"{", 8),
        (b"[]", 0),
        (b"{}", 0),
        (b'{"a": 1}', 8),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}}', 8),
        (b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', 8),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}', 16),
        (b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', 8),
        (b'{"a": {"dtype": "F32", "shape": [1e9], "data_offsets": [0, 8]}}', 8),
        (b'{"a": {"dtype": "O8", "shape": [2], "data_offsets": [0, 8]}}', 8),
        (b'{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}', 8),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', 9),
        (
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
            b' "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
            8,
        ),
        (b'{"__metadata__": 3, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', 8),
        (
            b'{"__metadata__": {"sct": 3}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
            8,
        ),
        (b'{"a":' + b"[" * 100_000, 8),
    ],
)
def test_malformed_safetensors_are_refused(header: bytes, size: int, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(UserError, match=r"file\.safetensors"):
        load_checkpoint(path)
    path.write_bytes(struct.pack("<Q", 1 << 62) + header + bytes(size))
    with pytest.raises(UserError, match=r"file\.safetensors"):
        load_checkpoint(path)


def test_a_configuration_in_safetensors_is_bounded(tmp_path: Path) -> None:
    config = {
        "network": {"kind": "mlp", "image_shape": [1, 8, 8], "blocks": 90_000},
        "precond": {"kind": "edm"},
    }
    weights = {"a": torch.zeros(2)}
    save_file(weights, tmp_path / "x.safetensors", {"sct": json.dumps(config)})
    with pytest.raises(UserError, match="more than the file"):
        load_checkpoint(tmp_path / "x.safetensors")


class Normed(torch.nn.Module):
    """A network of a user: tied weights, a counter of integers, and its arguments in `config`."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.config = {"width": width}
        self.a = torch.nn.Conv2d(3, 3, 1)
        self.b = torch.nn.Conv2d(3, 3, 1)
        self.b.weight = self.a.weight
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return self.norm(self.b(self.a(x))) + times[:, None, None, None]


@pytest.mark.parametrize("factory", [None, Normed])
def test_a_network_of_the_users_goes_out_and_comes_in_again(tmp_path: Path, factory: Any) -> None:
    model = consistune.wrap(Normed(), (3, 8, 8)).eval()
    x = torch.randn(2, 3, 8, 8)
    again = consistune.load(model.save(tmp_path / "folder"))
    assert torch.equal(again(x, 1.0), model(x, 1.0))
    path = export_model(model, tmp_path / "x.safetensors")
    loaded = consistune.load(path, network=factory)
    assert torch.equal(loaded(x, 1.0), model(x, 1.0))
    with pytest.raises(UserError, match="built from its file"):
        consistune.load(
            export_model(store.build(CONFIGS["song"]), tmp_path / "y.safetensors"), network=Normed
        )


def test_integers_are_no_weights(tmp_path: Path) -> None:
    model = store.build(CONFIGS["song"])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    name = next(iter(weights))
    save_file(weights | {name: weights[name].long()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="has integers, the network's has none"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_the_licence_stays_with_what_is_tuned_and_exported(tmp_path: Path) -> None:
    """Through an export, and through two trainings: the first model's licence is that of all that follow."""
    model = store.build(CONFIGS["song"])
    model.card = ModelCard(
        objective="diffusion", provenance={"file": "edm.pkl", "licence": "CC BY-NC-SA 4.0"}
    )
    again = load_checkpoint(export_model(model, tmp_path / "x.safetensors"))
    assert again.card.provenance["licence"] == "CC BY-NC-SA 4.0"  # type: ignore[index]
    data = torch.zeros(32, 1, 8, 8, dtype=torch.uint8)
    for _ in range(2):
        again = consistune.tune(again, data, images=16, batch=8)
        assert again.card.provenance is None
        assert metadata(again)["licence"] == "CC BY-NC-SA 4.0"


@pytest.mark.parametrize("source", [None, 123, torch.nn.Linear(1, 1)])
def test_what_is_no_model_is_one_line(source: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no model"):
        consistune.export(source, tmp_path / "x.onnx")
    with pytest.raises(UserError, match="is no model"):
        consistune.load(source)
