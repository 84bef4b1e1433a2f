"""Preparing latents: their normalisation, mirror images, continuing, and what is refused."""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from consistune.core.noise import EDM
from consistune.core.posterior.bank import make_bank
from consistune.core.posterior.mean import posterior, restored
from consistune.data.images import load_data
from consistune.data.prepare import latents as module
from consistune.data.prepare.journal import locked
from consistune.data.prepare.latents import LatentOptions, prepare_latents
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.prepare.split import Split
from consistune.data.prepare.survey import ImageOptions
from consistune.data.prepared import damaged, read_meta
from consistune.errors import UserError
from consistune.nn.autoencoder.base import Pair
from consistune.nn.autoencoder.space import LatentSpace, encode, psnr
from consistune.nn.autoencoder.table import AUTOENCODERS
from tests.support.autoencoders import tiny
from tests.support.command import run_main
from tests.support.exact import posterior_exact
from tests.support.latents import latent_set, source

ALL = torch.arange(1000)


def contents(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.mark.parametrize("stored", ["uint8", "float16"])
def test_training_sees_the_normalised_latents_of_its_pictures(tmp_path: Path, stored: str) -> None:
    dest, meta = latent_set(tmp_path, stored=stored)
    data = load_data(str(dest))
    batch = data.train.batch(ALL[: len(data.train)], conditional=True)
    assert meta.shape == data.train.image_shape == (6, 4, 4)
    spread = batch.x_0.std((0, 2, 3), correction=0)
    torch.testing.assert_close(spread, torch.full((6,), 0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(batch.x_0.mean((0, 2, 3)), torch.zeros(6), atol=0.01, rtol=0)
    pictures = data.to_look_at.train
    assert torch.equal(pictures.labels, data.train.labels)
    assert data.train.latents is not None
    z = LatentSpace(data.train.latents, tiny()).encode(pictures.images)
    inside = z.abs() < 1.7
    torch.testing.assert_close(batch.x_0[inside], z[inside], atol=0.01, rtol=0)


def test_held_out_pictures_are_normalised_by_the_training_pictures(tmp_path: Path) -> None:
    data = load_data(str(latent_set(tmp_path)[0]))
    held_out, pictures = data.need_held_out("the test"), data.to_look_at.need_held_out("the test")
    raw = encode(tiny(), data.to_look_at.train.images)
    mean, deviation = raw.mean((0, 2, 3), keepdim=True), raw.std((0, 2, 3), correction=0, keepdim=True)
    z = (encode(tiny(), pictures.images) - mean) / deviation / 2
    kept = held_out.batch(ALL[: len(held_out)], False).x_0
    torch.testing.assert_close(kept, z.clamp(-1.75, 1.75), atol=0.01, rtol=0)


def test_flip_encodes_the_mirrored_pictures(tmp_path: Path) -> None:
    dest, meta = latent_set(tmp_path, flip=True)
    data = load_data(str(dest))
    assert data.train.latents is not None
    pictures = data.to_look_at.train.images
    assert meta.parts["train"].images == 2 * len(pictures) == 2 * meta.parts["train"].offsets[-1] // 2
    assert data.held_out is not None
    assert data.to_look_at.held_out is not None
    assert len(data.held_out) == len(data.to_look_at.held_out)
    space = LatentSpace(data.train.latents, tiny())
    for first, form in enumerate((pictures, pictures.flip(-1))):
        z = restored(data.train.images[first::2], data.train.latents.scale)
        torch.testing.assert_close(z, space.encode(form).clamp(-1.75, 1.75), atol=0.01, rtol=0)


def test_the_psnr_is_that_of_the_pictures_that_are_not_mirrored(tmp_path: Path) -> None:
    data = load_data(str(latent_set(tmp_path, flip=True)[0]))
    record = data.train.latents
    assert record is not None
    decoded = LatentSpace(record, tiny()).decode(restored(data.train.images[::2], record.scale))
    assert record.psnr == pytest.approx(psnr(data.to_look_at.train.images, decoded), abs=1e-3)


def test_latents_are_references_in_their_own_units(tmp_path: Path) -> None:
    data = load_data(str(latent_set(tmp_path)[0])).train
    x_0 = data.batch(ALL[: len(data)], False).x_0.double()
    t = torch.tensor([0.1, 0.5, 2.0, 20.0])
    x_t = (
        x_0[:4] + t.view(-1, 1, 1, 1) * torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    ).float()
    exact = posterior_exact(x_t, t, EDM(), x_0)
    for kind in ("device", "host"):
        bank = make_bank(data.reference(by_class=False), "cpu", kind)
        torch.testing.assert_close(posterior(x_t, t, EDM(), bank).mean.double(), exact, atol=2e-5, rtol=1e-5)


class Stop(Exception):
    """The power fails."""


def test_a_stopped_preparation_continues_to_the_same_bytes(tmp_path: Path, monkeypatch) -> None:
    whole, _ = latent_set(tmp_path / "whole", flip=True)
    monkeypatch.setattr("consistune.nn.autoencoder.base.PIXELS_AT_ONCE", 4 * 16 * 16)
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    seen: list[int] = []

    def stop(done: int, _total: int) -> None:
        seen.append(done)
        if len(seen) in (2, 4):
            raise Stop

    pictures, dest = source(tmp_path), tmp_path / "latents"
    work = (pictures, dest, PrepareOptions(split=Split(0.25)), LatentOptions("tiny", flip=True))
    for _ in range(2):
        with pytest.raises(Stop):
            prepare_latents(*work, encoding=stop)
        assert not dest.exists()
    prepare_latents(*work, encoding=stop)
    assert sorted(set(seen)) == seen, "nothing is encoded twice"
    ours, theirs = contents(dest), contents(whole)
    different = {name for name in ours | theirs if ours.get(name) != theirs.get(name)}
    assert different <= {"meta.json", "pictures/meta.json"}  # they name the source's path
    assert not list(tmp_path.glob("*.part"))
    other = replace(work[3], flip=False)
    with pytest.raises(UserError, match="is already there"):
        prepare_latents(*work[:3], other)


def test_a_prepared_set_is_encoded_as_its_source_would_be(tmp_path: Path) -> None:
    direct, _ = latent_set(tmp_path)
    images, split = ImageOptions(), Split(0.25)
    prepare(tmp_path / "pictures.zip", tmp_path / "set", PrepareOptions(images=images, split=split))
    prepare_latents(
        tmp_path / "set", tmp_path / "encoded", PrepareOptions(allow_missing=0), LatentOptions("tiny")
    )
    assert contents(tmp_path / "encoded") == contents(direct)
    for options, source_, said in (
        (PrepareOptions(split=split), "set", "prepared already"),
        (PrepareOptions(allow_missing=1), "set", "prepared already"),
        (PrepareOptions(), "encoded", "holds latents"),
    ):
        with pytest.raises(UserError, match=said):
            prepare_latents(tmp_path / source_, tmp_path / "new", options, LatentOptions("tiny"))
        assert not list(tmp_path.glob("new*"))


def begun(tmp_path: Path) -> tuple[Path, Path]:
    """A preparation that was stopped while it encoded: its source and its destination."""

    def stop(_done: int, _total: int) -> None:
        raise Stop

    pictures, dest = source(tmp_path), tmp_path / "latents"
    with pytest.raises(Stop):
        prepare_latents(pictures, dest, PrepareOptions(), LatentOptions("tiny"), encoding=stop)
    return pictures, dest


def test_other_options_do_not_continue_a_preparation(tmp_path: Path) -> None:
    pictures, dest = begun(tmp_path)
    with pytest.raises(UserError, match="was begun with another flip"):
        prepare_latents(pictures, dest, PrepareOptions(), LatentOptions("tiny", flip=True))
    with pytest.raises(UserError, match="was begun with another options"):
        prepare_latents(pictures, dest, PrepareOptions(split=Split(0.5)), LatentOptions("tiny"))
    held = locked(tmp_path / "latents.latents.part")
    before = contents(tmp_path / "latents.latents.part")
    with pytest.raises(UserError, match="another run is preparing it"):
        prepare_latents(pictures, dest, PrepareOptions(), LatentOptions("tiny"))
    assert contents(tmp_path / "latents.latents.part") == before
    held.release()
    (tmp_path / "mine.latents.part").mkdir()
    with pytest.raises(UserError, match="no unfinished preparation"):
        prepare_latents(pictures, tmp_path / "mine", PrepareOptions(), LatentOptions("tiny"))
    assert (tmp_path / "mine.latents.part").is_dir()


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        ({"images": ImageOptions(size=18)}, "tiny", r"18×18 are no multiples of 4.*--size 16 would do"),
        ({"images": ImageOptions(mode="grey")}, "tiny", "pictures in colour"),
        ({}, "flat", r"1 of 6 channels of its latents have no variance, channel 2"),
        ({}, "nan", "makes latents that are not finite"),
        ({}, "black", "makes pictures that are not finite"),
        ({}, "unknown", "no such autoencoder"),
    ],
)
def test_what_cannot_be_encoded_is_refused(
    tmp_path: Path, monkeypatch, options, name: str, words: str
) -> None:
    flat, broken, black = tiny(), tiny(), tiny()
    with torch.no_grad():
        flat.encoder.weight[2] = 0
        broken.encoder.bias[0] = torch.nan
        black.decoder.bias[0] = torch.nan
    monkeypatch.setitem(AUTOENCODERS, "flat", lambda: flat)
    monkeypatch.setitem(AUTOENCODERS, "nan", lambda: broken)
    monkeypatch.setitem(AUTOENCODERS, "black", lambda: black)
    with pytest.raises(UserError, match=words):
        prepare_latents(
            source(tmp_path), tmp_path / "latents", PrepareOptions(**options), LatentOptions(name)
        )
    assert not list(tmp_path.glob("latents*")), "another autoencoder can be given"


def test_an_autoencoder_that_says_another_shape_is_refused(tmp_path: Path, monkeypatch) -> None:
    wrong = Pair(nn.Conv2d(3, 6, 4, 4), nn.ConvTranspose2d(6, 3, 4, 4))
    wrong.channels = 5
    monkeypatch.setitem(AUTOENCODERS, "wrong", lambda: wrong)
    with pytest.raises(UserError, match=r"makes latents \[6, 4, 4\], and says \[5, 4, 4\]"):
        prepare_latents(source(tmp_path), tmp_path / "latents", PrepareOptions(), LatentOptions("wrong"))


def test_the_normalisation_of_another_set_can_be_kept(tmp_path: Path) -> None:
    first = latent_set(tmp_path / "a")[1].latents
    assert first is not None
    other = replace(first, mean=tuple(m + 1 for m in first.mean))
    second = latent_set(tmp_path / "b", like=other)[1].latents
    assert second is not None
    assert (second.mean, second.deviation) == (other.mean, other.deviation)
    options = PrepareOptions(images=ImageOptions(size=32))
    with pytest.raises(UserError, match="--size 16 would do"):
        prepare_latents(source(tmp_path), tmp_path / "c", options, LatentOptions("tiny", like=other))


def test_damage_is_found_in_latents_and_in_pictures(tmp_path: Path) -> None:
    dest, _ = latent_set(tmp_path)
    meta = read_meta(dest)
    assert damaged(dest, meta) == []
    for name in ("train/images.npy", "pictures/train/images.npy"):
        with (dest / name).open("r+b") as file:
            file.seek(200)
            file.write(b"\x01\x02\x03\x04\x05")
    assert damaged(dest, meta) == ["train/images.npy", "pictures/train/images.npy"]


def test_a_record_of_another_form_is_refused(tmp_path: Path) -> None:
    dest, _ = latent_set(tmp_path)
    values = json.loads((dest / "meta.json").read_text())
    values["latents"]["stored"] = "int4"
    (dest / "meta.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="is not what consistune wrote"):
        load_data(str(dest))
    values["latents"]["stored"] = "float16"
    (dest / "meta.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="is not float16"):
        load_data(str(dest))
    assert np.load(dest / "train" / "images.npy").dtype == np.uint8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": [0.0] * 5}, "5 means and 6 deviations"),
        ({"mean": [0.0] * 5, "deviation": [1.0] * 5}, r"says latents of \[6, 4, 4\]"),
        ({"mean": [], "deviation": []}, "is not what consistune wrote"),
        ({"deviation": [0.0] * 6}, "is not what consistune wrote"),
        ({"mean": [float("nan")] * 6}, "is not what consistune wrote"),
        ({"limit": -1.0}, "is not what consistune wrote"),
        ({"sigma_data": float("inf")}, "is not what consistune wrote"),
        ({"factor": 0}, "factor 0 does not fit"),
        ({"factor": 2}, r"that give \[6, 8, 8\]"),
        ({"picture_shape": [3, 18, 18]}, "does not fit pictures"),
        ({"picture_shape": [1, 16, 16]}, "does not fit pictures"),
        ({"picture_shape": [3, 32, 16], "factor": 4}, r"that give \[6, 8, 4\]"),
        ({"mirrored": True}, "are not the pictures of the latents"),
    ],
)
def test_a_record_that_does_not_fit_its_latents_is_refused(tmp_path: Path, change, said: str) -> None:
    dest, _ = latent_set(tmp_path)
    values = json.loads((dest / "meta.json").read_text())
    values["latents"] |= change
    (dest / "meta.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=said):
        load_data(str(dest))


def test_a_set_with_other_channels_or_other_pictures_is_refused(tmp_path: Path) -> None:
    dest, _ = latent_set(tmp_path)
    values = json.loads((dest / "meta.json").read_text())
    for side in ("train", "held-out"):
        np.save(dest / side / "images.npy", np.load(dest / side / "images.npy")[:, :5])
    (dest / "meta.json").write_text(json.dumps(values | {"shape": [5, 4, 4]}))
    with pytest.raises(UserError, match=r"says latents of \[5, 4, 4\].*give \[6, 4, 4\]"):
        load_data(str(dest))
    whole, _ = latent_set(tmp_path / "whole")
    other, _ = latent_set(tmp_path / "other", held_out=0.5)
    (whole / "pictures").rename(tmp_path / "away")
    (other / "pictures").rename(whole / "pictures")
    with pytest.raises(UserError, match="are not the pictures of the latents beside them"):
        load_data(str(whole))
    done = run_main("data", "info", whole)
    assert (done.returncode, "are not the pictures of the latents" in done.stderr) == (2, True)


def test_a_kill_between_any_two_steps_of_the_end_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    """Every removal, and the renames: of a new state's folder and of the finished set."""
    whole, _ = latent_set(tmp_path / "whole")
    work = (source(tmp_path), tmp_path / "latents", PrepareOptions(split=Split(0.25)), LatentOptions("tiny"))
    for name in ("unlink", "rename"):
        done, stopped = getattr(Path, name), 0
        while not work[1].exists():
            calls = stopped

            def fail(path: Path, *given: object, done=done, **named: object) -> object:
                nonlocal calls
                if "latents.part" in str(path) and "pictures.part" not in str(path):
                    if calls == 0:
                        raise Stop
                    calls -= 1
                return done(path, *given, **named)

            with monkeypatch.context() as patch:
                patch.setattr(Path, name, fail)
                with contextlib.suppress(Stop):
                    prepare_latents(*work)
            stopped += 1
        assert stopped > 1
        ours, theirs = contents(work[1]), contents(whole)
        different = {name for name in ours | theirs if ours.get(name) != theirs.get(name)}
        assert different <= {"meta.json", "pictures/meta.json", "latents.json"}
        if "latents.json" in ours:  # after the last rename: the same command removes it, another does not
            with pytest.raises(UserError, match="is already there"):
                prepare_latents(*work[:3], replace(work[3], flip=True))
            assert prepare_latents(*work) == read_meta(work[1])
            assert "latents.json" not in contents(work[1])
        assert not list(tmp_path.glob("*.part"))
        shutil.rmtree(work[1])


def test_images_that_changed_since_the_stop_are_not_encoded(tmp_path: Path) -> None:
    pictures, dest = begun(tmp_path)
    times = pictures.stat()
    os.utime(pictures, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000_000))
    with pytest.raises(UserError, match="was begun with another images"):
        prepare_latents(pictures, dest, PrepareOptions(), LatentOptions("tiny"))


def test_a_source_that_is_not_there_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        prepare_latents(tmp_path / "no", tmp_path / "out", PrepareOptions(), LatentOptions("tiny"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "left", [".latents.latents.part.{}.partial", "latents.latents.part/.meta.json.1.partial"]
)
def test_what_a_killed_run_of_the_same_number_left_is_no_obstacle(tmp_path: Path, left: str) -> None:
    """In a container every run may be process 1."""
    options = PrepareOptions(split=Split(0.25))
    arguments = (source(tmp_path), tmp_path / "latents", options, LatentOptions("tiny"))
    if left.startswith("."):
        (tmp_path / left.format(os.getpid())).mkdir()
    else:
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stop):
            patch.setattr(module, "_finish", lambda _: (_ for _ in ()).throw(Stop))
            prepare_latents(*arguments)
        (tmp_path / left).touch()
    prepare_latents(*arguments)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
