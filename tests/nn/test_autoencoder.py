"""Autoencoders: parity of taef2, what identifies one, and what is refused."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from consistune.core.posterior.mean import restored
from consistune.errors import UserError
from consistune.nn.autoencoder import table
from consistune.nn.autoencoder import taef2 as module
from consistune.nn.autoencoder.base import Pair, in_batches
from consistune.nn.autoencoder.record import Latents
from consistune.nn.autoencoder.space import LatentSpace, open_space, psnr
from consistune.nn.autoencoder.table import open_autoencoder
from tests.support.autoencoders import tiny
from tests.support.toy import named


@pytest.fixture(scope="module")
def taef2():
    return module.taef2()


def test_taef2_gives_the_published_latents_and_reconstructions(parity, taef2) -> None:
    known = parity("autoencoder/taef2")
    with torch.no_grad():
        for match in named(known, "reconstruction_(.+)"):
            name = match[1]
            latents = taef2.encode(known[f"image_{name}"].float() / 127.5 - 1)
            torch.testing.assert_close(latents, known[f"latent_{name}"], atol=1e-5, rtol=0)
            decoded = taef2.decode(known[f"latent_{name}"]) / 2 + 0.5
            torch.testing.assert_close(decoded, known[f"reconstruction_{name}"], atol=1e-5, rtol=0)
        decoded = taef2.decode(known["random_latent"]) / 2 + 0.5
        torch.testing.assert_close(decoded, known["random_decoded"], atol=1e-5, rtol=0)


def test_the_published_bytes_are_latents_up_to_3(parity, taef2) -> None:
    """They stand for −3 … 3; float32 may fall on either side of a step."""
    known = parity("autoencoder/taef2")
    for match in named(known, r"(latent_.+)_as_uint8_first(\d+)"):
        latents, expected = known[match[1]][: int(match[2])], known[match[0]]
        mean, deviation = (0.0,) * taef2.channels, (1.0,) * taef2.channels
        picture = (3, *(side * taef2.factor for side in latents.shape[2:]))
        record = Latents("taef2", taef2.identity, taef2.factor, picture, mean, deviation, 1.0, limit=3.0)
        found = LatentSpace(record, taef2).stored(latents)
        torch.testing.assert_close(found, expected, rtol=0, atol=1)
        assert float((found != expected).double().mean()) < 1e-3


def test_taef2_says_its_shapes(taef2) -> None:
    assert taef2.latent_shape((3, 64, 48), "here") == (32, 8, 6)
    assert tuple(taef2.encode(torch.zeros(1, 3, 64, 48)).shape[1:]) == (32, 8, 6)
    with pytest.raises(UserError, match=r"64×60 are no multiples of 8.*--size 64 would do"):
        taef2.latent_shape((3, 60, 64), "here")


def test_weights_of_taef2_that_are_missing_cut_off_or_changed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        module.taef2(tmp_path / "none.safetensors")
    weights = load_file(module.WEIGHTS)
    changed = tmp_path / "changed.safetensors"
    weights["encoder.0.bias"][0] += 1
    save_file(weights, changed)
    with pytest.raises(UserError, match="not the published weights"):
        module.taef2(changed)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(module.WEIGHTS.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        module.taef2(cut)
    save_file({"encoder.0.bias": weights["encoder.0.bias"]}, changed)
    with pytest.raises(UserError, match="cannot be read"):
        module.taef2(changed)


def test_the_identity_is_that_of_the_weights() -> None:
    assert tiny(0).identity == tiny(0).identity
    assert tiny(0).identity != tiny(1).identity
    assert tiny(0).double().identity == tiny(0).identity


def test_a_pair_finds_its_factor_and_refuses_modules_that_do_not_fit() -> None:
    pair = tiny(channels=5)
    assert (pair.factor, pair.channels) == (4, 5)
    with pytest.raises(ValueError, match="the decoder makes"):
        Pair(nn.Conv2d(3, 5, 4, 4), nn.ConvTranspose2d(5, 3, 2, 2))
    with pytest.raises(ValueError, match="the encoder makes"):
        Pair(nn.Flatten(), nn.Identity())


def record(autoencoder: Pair, **changes) -> Latents:
    channels = autoencoder.channels
    mean, deviation = (
        tuple(x.tolist()) for x in (torch.arange(channels) / 3, 1 + torch.arange(channels) / 2)
    )
    known = Latents("tiny", autoencoder.identity, 4, (3, 16, 16), mean, deviation)
    return replace(known, **changes)


@pytest.mark.parametrize(("stored", "step"), [("uint8", 3.5 * 0.5 / 127.5 / 2 * 1.001), ("float16", 1e-3)])
def test_latents_come_back_from_storage_within_half_a_step(stored: str, step: float) -> None:
    space = LatentSpace(record(tiny(), stored=stored), tiny())
    z = torch.linspace(-1.75, 1.75, 6 * 16).reshape(1, 6, 4, 4)
    kept = space.stored(z)
    assert str(kept.dtype) == f"torch.{stored}"
    assert (restored(kept, space.record.scale) - z).abs().max() <= step
    assert (restored(space.stored(z * 10), space.record.scale).abs() <= 1.75 + step).all()


def test_the_normalisation_and_its_inverse(generator) -> None:
    autoencoder = tiny()
    space = LatentSpace(record(autoencoder), autoencoder)
    raw = torch.randn(3, 6, 4, 4, generator=generator)
    expected = torch.stack([(raw[:, k] - k / 3) / (1 + k / 2) / 2 for k in range(6)], 1)
    torch.testing.assert_close(space.standardised(raw), expected)
    torch.testing.assert_close(space.raw(space.standardised(raw)), raw)


def test_decoding_in_parts_is_decoding_at_once(monkeypatch, generator) -> None:
    autoencoder = tiny()
    space = LatentSpace(record(autoencoder), autoencoder)
    z = torch.randn(7, 6, 4, 4, generator=generator)
    whole = space.decode(z)
    monkeypatch.setattr("consistune.nn.autoencoder.base.PIXELS_AT_ONCE", 2 * 16 * 16)
    assert [(part.start, part.stop) for part in in_batches(7, (3, 16, 16))] == [
        (0, 2),
        (2, 4),
        (4, 6),
        (6, 7),
    ]
    torch.testing.assert_close(space.decode(z), whole, atol=1, rtol=0)
    assert space.decode(z[:0]).shape == (0, 3, 16, 16)


def test_another_autoencoder_of_the_same_name_is_refused() -> None:
    assert open_space(record(tiny())).record.autoencoder == "tiny"
    with pytest.raises(UserError, match="the latents were made with"):
        open_space(record(tiny(), identity=tiny(1).identity))


def test_the_peak_signal_to_noise_ratio() -> None:
    black = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert psnr(black, black + 255) == pytest.approx(0)
    assert psnr(black, black + 1) == pytest.approx(48.1308, abs=1e-4)


def test_a_package_adds_an_autoencoder_by_an_entry_point(monkeypatch) -> None:
    entry = EntryPoint("autoencoder:mine", "tests.support.autoencoders:tiny", "consistune.parts")
    asked = {"group": "consistune.parts", "name": "autoencoder:mine"}
    monkeypatch.setattr(table, "entry_points", lambda **given: [entry] if given == asked else [])
    try:
        assert open_autoencoder("mine").identity == tiny().identity
    finally:
        table.AUTOENCODERS.pop("mine", None)
    broken = EntryPoint("autoencoder:mine", "no.such.module:tiny", "consistune.parts")
    monkeypatch.setattr(table, "entry_points", lambda **_: [broken])
    with pytest.raises(UserError, match="entry point autoencoder:mine"):
        open_autoencoder("mine")


def test_a_folder_that_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such autoencoder"):
        open_autoencoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="holds 'UNet2DModel', not an autoencoder"):
        open_autoencoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        open_autoencoder(str(tmp_path))


KINDS = {
    "AutoencoderKL": {
        "latent_channels": 4,
        "scaling_factor": 0.18215,
        "shift_factor": 0.1,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    "AutoencoderTiny": {
        "latent_channels": 4,
        "encoder_block_out_channels": (32, 32),
        "decoder_block_out_channels": (32, 32),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_diffusers_gives_what_diffusers_gives(tmp_path: Path, kind: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the extra diffusers is not installed")
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**KINDS[kind]).eval()
    model.save_pretrained(tmp_path / "vae")
    ours = open_autoencoder(str(tmp_path / "vae"))
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        encoded = model.encode(x)
        raw = encoded.latent_dist.mean if kind == "AutoencoderKL" else encoded.latents
        scale, shift = (0.18215, 0.1) if kind == "AutoencoderKL" else (1.0, 0.0)
        torch.testing.assert_close(ours.encode(x), (raw - shift) * scale, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            ours.decode((raw - shift) * scale), model.decode(raw).sample, atol=1e-5, rtol=0
        )
    assert ours.latent_shape((3, 16, 16), "") == tuple(ours.encode(x).shape[1:])
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, tmp_path / "whole")
    config = tmp_path / "vae" / "config.json"
    sound = config.read_text()
    for key, value in {
        "scaling_factor": "x",
        "shift_factor": [1],
        "latent_channels": 10**6,
        "norm_num_groups" if kind == "AutoencoderKL" else "upsampling_scaling_factor": 0.5,
        "layers_per_block" if kind == "AutoencoderKL" else "num_encoder_blocks": [10**30],
    }.items():
        config.write_text(json.dumps(json.loads(sound) | {key: value}))
        with pytest.raises(UserError):
            open_autoencoder(str(tmp_path / "vae"))
    config.write_text(sound)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        open_autoencoder(str(tmp_path / "vae"))
    kept = load_file(tmp_path / "whole")
    save_file(dict(list(kept.items())[1:]), weights, {"format": "pt"})
    with pytest.raises(UserError, match="do not fit"):
        open_autoencoder(str(tmp_path / "vae"))
