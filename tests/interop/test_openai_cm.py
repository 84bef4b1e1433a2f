"""openai/consistency_models' files: every published name is translated, and attention computes the same."""

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.interop.checkpoints import load_checkpoint
from consistune.interop.files import Checkpoint, CheckpointFile
from consistune.interop.openai_cm import to_adm
from consistune.interop.recognise import configuration
from consistune.interop.records import Storage, TensorRecord
from consistune.interop.weights import heads_innermost
from consistune.nn import store
from consistune.nn.layers import split_heads
from consistune.nn.presets import PRESETS


def published(shared: Path, table: str) -> Checkpoint:
    """The names and shapes of a published file, without its weights."""
    with (shared / "spec" / f"{table}.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    tensors = {}
    for row in rows:
        shape = tuple(int(n) for n in row["shape"].strip("[]()").replace("x", ",").split(",") if n.strip())
        tensors[row["name"]] = TensorRecord(Storage("float32", 0, memoryview(b"")), 0, shape, shape)
    return Checkpoint(CheckpointFile(Path(table), memoryview(b""), "zip"), "", tensors)


def test_every_published_tensor_has_its_place(shared: Path) -> None:
    checkpoint = to_adm(published(shared, "params-openai-cm-imagenet64"))
    assert len(checkpoint.tensors) == 541
    config = configuration(checkpoint)
    with torch.device("meta"):
        preset = store.build(PRESETS["cm-imagenet64-adm"]).state_dict()
        own = store.build(config).state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in preset.items()}
    for name, record in checkpoint.tensors.items():
        assert own[name].shape == record.shape, name
    missing = set(own) - set(checkpoint.tensors)
    assert all(name.endswith("resample_filter") for name in missing)


def test_a_network_without_scale_shift_norm_is_refused(shared: Path) -> None:
    with pytest.raises(UserError, match="scale-shift"):
        to_adm(published(shared, "params-openai-cm-lsun256"))


def test_heads_see_the_same_queries_keys_and_values() -> None:
    """z = W x in [q | k | v], heads within each, is what `split_heads` finds after the rows are permuted."""
    heads, channels = 3, 192
    weight, x = torch.randn(3 * channels, channels, 1, 1), torch.randn(2, channels, 4, 4)
    theirs = torch.nn.functional.conv2d(x, weight).reshape(2, 3, heads, 64, 16)
    ours = torch.nn.functional.conv2d(x, heads_innermost(weight))
    for j, part in enumerate(split_heads(ours, heads)):
        expected = theirs[:, j]  # [B, heads, 64, pixels]
        actual = part if part.shape == expected.shape else part.transpose(2, 3)
        torch.testing.assert_close(actual.reshape(expected.shape), expected)


def test_a_state_dict_comes_in(tmp_path: Path) -> None:
    config = {
        "network": {
            "kind": "adm",
            "image_shape": [3, 16, 16],
            "num_classes": 3,
            "model_channels": 64,
            "channel_mult": [1, 2],
            "num_blocks": 2,
            "attn_resolutions": [8],
            "dropout": 0.0,
        },
        "precond": {"kind": "cm"},
    }
    model = store.build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    theirs = to_openai(model.state_dict())
    for name, kind, objective in (("cd_small.pt", "cm", "consistency"), ("edm_small.pt", "edm", "diffusion")):
        torch.save(theirs, tmp_path / name)
        loaded = load_checkpoint(tmp_path / name)
        assert loaded.kind == kind
        assert loaded.noise_scale == 1000  # type: ignore[attr-defined]
        assert loaded.card.objective == objective
        assert "MIT" in loaded.card.provenance["licence"]  # type: ignore[index]
        assert list(loaded.state_dict()) == list(model.state_dict())
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key


def to_openai(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The table of openai-cm §7.1 backwards, for this one network (levels 16 and 8, two blocks each)."""
    inputs = ["16x16_conv", "16x16_block0", "16x16_block1", "8x8_down", "8x8_block0", "8x8_block1"]
    blocks = {f"enc.{ours}": f"input_blocks.{i}.0" for i, ours in enumerate(inputs)}
    blocks |= {
        "dec.8x8_in0": "middle_block.0",
        "dec.8x8_in1": "middle_block.2",
        "dec.16x16_up": "output_blocks.2.2",
    }
    outputs = [f"{side}_block{i}" for side in ("8x8", "16x16") for i in range(3)]
    blocks |= {f"dec.{ours}": f"output_blocks.{i}.0" for i, ours in enumerate(outputs)}
    layers = {
        "norm0": "in_layers.0",
        "conv0": "in_layers.2",
        "affine": "emb_layers.1",
        "norm1": "out_layers.0",
        "conv1": "out_layers.3",
        "skip": "skip_connection",
    }
    attention = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}
    top = {
        "map_layer0": "time_embed.0",
        "map_layer1": "time_embed.2",
        "out_norm": "out.0",
        "out_conv": "out.2",
    }
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        stem, _, leaf = name.removeprefix("model.").rpartition(".")
        ours, _, layer = stem.rpartition(".")
        if leaf == "resample_filter":
            continue
        if stem == "map_label":
            renamed["label_emb.weight"] = value.T.contiguous()
        elif stem in top:
            renamed[f"{top[stem]}.{leaf}"] = value
        elif stem in blocks:  # the first convolution
            renamed[f"{blocks[stem]}.{leaf}"] = value
        elif layer in layers:
            renamed[f"{blocks[ours]}.{layers[layer]}.{leaf}"] = value
        else:
            block = blocks[ours].rpartition(".")[0]
            if layer == "qkv":  # (head, c, j) → (j, head, c)
                rows = value.reshape(-1, 64, 3, *value.shape[1:])
                value = rows.movedim(2, 0).reshape(value.shape).contiguous()
            renamed[f"{block}.1.{attention[layer]}.{leaf}"] = value
    return renamed
