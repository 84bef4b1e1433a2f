"""A model's ONNX graph, run by ONNX Runtime, against the model."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from consistune.bench.workload import redraw_weights
from consistune.core.noise import EDM
from consistune.core.posterior.mean import quantise
from consistune.errors import UserError
from consistune.interop import onnx as interop_onnx
from consistune.interop.export import export_model
from consistune.models import default_sampler, export
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
    "dit": ({"kind": "dit", "width": 12, "blocks": 2, "patch": 2, "num_classes": 3}, {"kind": "edm"}),
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


def test_the_decoder_of_a_model_of_latents_is_in_the_graph(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    autoencoder = tiny()
    record = Latents("tiny", autoencoder.identity, 4, (3, 16, 16), (0.5,) * 6, (2.0,) * 6)
    model = store.build(
        {"network": {"image_shape": (6, 4, 4), "kind": "mlp", "width": 32}, "precond": {"kind": "edm"}}
    )
    model.card = model.card.updated(latents=asdict(record))
    file = export_model(store.save(model, tmp_path / "model"), tmp_path / "model.onnx", "onnx")
    x = 80 * torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    given = {"x": x.numpy(), "sigma": torch.full((3,), 80.0).numpy()}
    z, images = runtime.InferenceSession(str(file)).run(["x0_hat", "images"], given)
    with torch.no_grad():
        expected = quantise(autoencoder.decode(torch.from_numpy(z) * 4 + 0.5))
    assert images.shape == (3, 3, 16, 16)
    assert (
        torch.from_numpy(images).int() - expected.int()
    ).abs().max() <= 1  # a value at an edge of two levels


CLIENT = """
import json, sys
import numpy as np, onnxruntime

assert not {"torch", "consistune"} & set(sys.modules)
session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
levels, classes = json.loads(about["sigmas"]), json.loads(about["classes"])
noise = np.load(sys.argv[2])
x, more = 0, {}
if "condition" in [one.name for one in session.get_inputs()]:
    more["condition"] = np.eye(len(classes), dtype=np.float32)[[classes.index("owl")] * noise.shape[1]]
for level, normals in zip(levels, noise):
    given = {"x": x + np.float32(level) * normals, "sigma": np.full(len(normals), level, np.float32)}
    x, images = session.run(["x0_hat", "images"], given | more)
np.save(sys.argv[3], images)
"""


def test_a_program_with_the_runtime_and_numpy_alone_draws_from_the_metadata(tmp_path: Path) -> None:
    """In a fresh process: a file, normals → the uint8 images that our own two-step sampler gives."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model = store.load(saved(tmp_path, "mlp"))
    model.card = model.card.updated(objective="consistency", mid_t=(0.8,), class_names=("cat", "dog", "owl"))
    file = export(model, tmp_path / "model.onnx")
    noise = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "noise.npy", noise.numpy())
    command = [
        sys.executable,
        "-c",
        CLIENT,
        str(file),
        str(tmp_path / "noise.npy"),
        str(tmp_path / "images.npy"),
    ]
    subprocess.run(command, check=True)
    blocks = iter(noise)
    sampler, labels = default_sampler(model, 2), torch.full((4,), 2)
    with torch.no_grad():
        x = sampler(model, EDM(), lambda *shape: next(blocks), model.image_shape, labels)
    images = torch.from_numpy(np.load(tmp_path / "images.npy"))
    assert images.dtype == torch.uint8
    assert (images.int() - quantise(x).int()).abs().max() <= 1


@pytest.mark.parametrize(("objective", "sigmas"), [("diffusion", [80.0, 0.002]), ("consistency", [80.0])])
def test_the_metadata_say_what_the_graph_is(objective: str, sigmas: list[float], tmp_path: Path) -> None:
    model = store.load(saved(tmp_path, "mlp"))
    model.card = model.card.updated(objective=objective, data="my set")
    about = interop_onnx.metadata(model)
    assert (about["kind"], about["data"]) == (objective, "my set")
    assert json.loads(about["sigmas"]) == sigmas
    assert json.loads(about["classes"]) == ["0", "1", "2"]
    assert "condition: one-hot rows [batch, 3]" in about["call"]


def test_a_two_time_model_jumps_to_the_end_and_names_its_axes(tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    network = {"kind": "mlp", "image_shape": (3, 8, 8), "width": 32, "second_time": True}
    model = store.build({"network": network, "precond": {"kind": "edm"}})
    redraw_weights(model, 0)
    file = export(model.eval(), tmp_path / "model.onnx")
    x, sigma = torch.ones(3, 3, 8, 8), torch.full((3,), 80.0)
    (x0_hat,) = runtime.InferenceSession(str(file)).run(["x0_hat"], {"x": x.numpy(), "sigma": sigma.numpy()})
    with torch.no_grad():
        ends = [model(x, sigma, None, s) for s in (torch.zeros(3), None)]
    assert torch.allclose(torch.from_numpy(x0_hat), ends[0], atol=1e-4 * float(ends[0].abs().max()))
    assert not torch.allclose(*ends)
    graph = onnx.load(file).graph
    axes = {
        value.name: value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)
    }
    assert axes == dict.fromkeys(("x", "sigma", "x0_hat", "images"), "batch")
