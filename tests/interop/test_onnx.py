"""A model's ONNX graph, run by ONNX Runtime, against the model."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from consistune.bench.workload import redraw_weights
from consistune.errors import UserError
from consistune.interop import onnx as interop_onnx
from consistune.interop.export import export_model
from consistune.nn import store
from consistune.nn.autoencoder.record import Latents
from tests.support.autoencoders import tiny

SONG = {"kind": "song", "model_channels": 16, "channel_mult": (1, 2), "attn_resolutions": (4,)}
EDM2 = {"kind": "edm2", "model_channels": 32, "channel_mult": (1, 2), "attn_resolutions": (4,)}
ADM = {"kind": "adm", "model_channels": 32, "channel_mult": (1, 2), "attn_resolutions": (4,)}
CASES = {
    "ddpm++": ({**SONG, "num_blocks": 1}, {"kind": "edm"}),
    "ncsn++": ({**SONG, "num_blocks": 1, "resample_filter": (1, 3, 3, 1)}, {"kind": "ect"}),
    "edm2": ({**EDM2, "num_blocks": 1, "num_classes": 3}, {"kind": "edm2"}),
    "adm": ({**ADM, "num_blocks": 1, "num_classes": 3}, {"kind": "cm"}),
    "mlp": ({"kind": "mlp", "width": 32, "num_classes": 3}, {"kind": "edm"}),
}


def saved(folder: Path, case: str) -> Path:
    network, precond = CASES[case]
    model = store.build({"network": {"image_shape": (3, 8, 8), **network}, "precond": precond})
    redraw_weights(model, 0)
    store.save(model, folder / "model")
    return folder / "model"


@pytest.mark.parametrize("case", CASES)
def test_onnx_runtime_computes_the_model_at_any_batch_and_level(tmp_path: Path, case: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    folder = saved(tmp_path, case)
    file = export_model(folder, tmp_path / "model.onnx", "onnx")
    model = store.load(folder)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 5):  # neither is the batch that was traced
        sigma = torch.rand(batch, generator=generator) * 10 + 0.01
        x = torch.randn(batch, 3, 8, 8, generator=generator) * (1 + sigma[:, None, None, None])
        given = {"x": x, "sigma": sigma}
        if model.num_classes:
            given["condition"] = torch.eye(3)[torch.arange(batch) % 3]
        with torch.no_grad():
            expected = model(*given.values())
        (x0_hat,) = session.run(["x0_hat"], {name: value.numpy() for name, value in given.items()})
        room = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(torch.from_numpy(x0_hat), expected, rtol=0, atol=room)


def test_a_model_too_large_for_onnx_is_refused(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(interop_onnx, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="do not fit in one ONNX file"):
        export_model(saved(tmp_path, "mlp"), tmp_path / "model.onnx", "onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_model_of_latents_has_a_decoder_beside_it(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    autoencoder = tiny()
    record = Latents("tiny", autoencoder.identity, 4, (3, 16, 16), (0.5,) * 6, (2.0,) * 6)
    model = store.build(
        {"network": {"image_shape": (6, 4, 4), "kind": "mlp", "width": 32}, "precond": {"kind": "edm"}}
    )
    model.card = model.card.updated(latents=asdict(record))
    file = export_model(store.save(model, tmp_path / "model"), tmp_path / "model.onnx", "onnx")
    session = runtime.InferenceSession(str(file.with_name("model-decoder.onnx")))
    z = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    (pictures,) = session.run(["pictures"], {"x": z.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(pictures), autoencoder.decode(z * 4 + 0.5), rtol=0, atol=1e-5
        )
    file.unlink()
    with pytest.raises(UserError, match=r"model-decoder\.onnx: there is something there already"):
        export_model(tmp_path / "model", tmp_path / "model.onnx", "onnx")
