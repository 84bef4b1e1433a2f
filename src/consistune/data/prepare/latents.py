"""`consistune data prepare --latents`: a source → its pictures, prepared, and their latents beside them.

The work happens in DEST.latents.part. `pictures` is prepared first; then both sides are encoded, as float16
and in the order of the pictures' rows; last the latents are normalised by the training pictures' mean and
deviation.
Every stage continues where an earlier run was stopped.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from consistune.core.posterior.mean import restored
from consistune.data.prepare import npy
from consistune.data.prepare.journal import LOCK, locked
from consistune.data.prepare.preparation import remove_partials
from consistune.data.prepare.run import SILENT, SYNC_SECONDS, PrepareOptions, Progress, check_dest, prepare
from consistune.data.prepare.survey import ImageOptions, state_of
from consistune.data.prepared import (
    IMAGES,
    LABELS,
    META,
    PICTURES,
    SIDES,
    Meta,
    Part,
    is_prepared,
    open_part,
    read_meta,
    write_meta,
)
from consistune.errors import UserError
from consistune.nn.autoencoder.base import Autoencoder, UnfitAutoencoder, in_batches
from consistune.nn.autoencoder.record import Latents, Stored
from consistune.nn.autoencoder.space import LatentSpace, encode, psnr
from consistune.nn.autoencoder.table import open_autoencoder
from consistune.system import files

STATE = "latents.json"
LOOKED_AT = 256
"""Pictures by which the PSNR is measured."""


@dataclass(frozen=True)
class LatentOptions:
    """How to encode.

    Attributes:
        autoencoder: see `open_autoencoder`.
        flip: the training set also gets the mirrored pictures' latents. (Mirroring latents is not the same.)
        stored: uint8 or float16.
        like: a record whose autoencoder and normalisation are taken, so that a model of those latents fits.
        device: where the autoencoder computes.
    """

    autoencoder: str = "taef2"
    flip: bool = False
    stored: Stored = "uint8"
    like: Latents | None = None
    device: torch.device | str = "cpu"


class _Work(NamedTuple):
    """What the stages share: the folder, the pictures' meta, the autoencoder and the options."""

    part: Path
    pictures: Meta
    autoencoder: Autoencoder
    options: LatentOptions

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.autoencoder.latent_shape(self.pictures.shape, "--latents")

    def copies(self, side: str) -> int:
        return 2 if self.options.flip and side == "train" else 1

    def rows(self, side: str) -> int:
        return self.pictures.parts[side].images * self.copies(side)

    def raw(self, side: str) -> Path:
        return self.part / f"{side}.raw"


def prepare_latents(
    path: Path,
    dest: Path,
    options: PrepareOptions,
    latents: LatentOptions,
    progress: Progress = SILENT,
    encoding: Callable[[int, int], None] = lambda _done, _count: None,
) -> Meta:
    """Prepare a source, or encode a prepared set of pictures, as a set of latents in the folder `dest`.

    encoding: called with (rows encoded, rows in all) while the pictures are encoded.
    Raises UserError as `prepare` does, for sides that are no multiples of the autoencoder's factor, grey
    pictures, other options than those of the run that is continued, and channels without variance.
    """
    finished = is_prepared(dest) and (dest / STATE).is_file()  # by a run that was killed at its very end
    check_dest(dest, finished)
    if options.images.mode == "grey":
        raise UserError("autoencoders take pictures in colour", "--mode grey", "leave it out")
    options = replace(options, images=replace(options.images, mode="rgb"))
    autoencoder = open_autoencoder(latents.autoencoder)
    part = dest.with_name(dest.name + ".latents.part")
    settings = _settings(path, options, latents, autoencoder)
    if finished:
        check_dest(dest, files.read_json(dest / STATE).get("settings") == settings)
        (dest / STATE).unlink()
        return read_meta(dest)
    state = _begin(part, settings)
    lock = locked(part, progress.warned)
    try:
        if is_prepared(part):  # a kill came after all was written
            return _named(part, dest)
        _pictures(path, part, options, progress, _shape_check(autoencoder, latents.like))
        work = _Work(part, read_meta(part / PICTURES), autoencoder.to(latents.device), latents)
        try:
            _encode(work, state, encoding)
            _finish(work)
        except UnfitAutoencoder:
            shutil.rmtree(part)
            raise
        return _named(part, dest)
    finally:
        lock.release()


def _named(part: Path, dest: Path) -> Meta:
    """The finished set, under its name; what only the work needed is removed. STATE is the last to go."""
    meta = read_meta(part)
    for needless in (*(part / f"{side}.raw" for side in meta.parts), part / LOCK):
        needless.unlink(missing_ok=True)
    if (part / f"{PICTURES}.part").exists():  # a kill came at the end of the first stage
        shutil.rmtree(part / f"{PICTURES}.part")
    remove_partials(part, STATE)
    part.rename(dest)
    (dest / STATE).unlink()
    files.sync(dest.parent)
    return meta


def remove_prepared(dest: Path) -> None:
    """Remove a prepared set, of pictures or latents, and an unfinished preparation of it.

    Raises UserError, before anything is removed, where one of the folders is a link or holds another file.
    """
    known = {dest: {META, *SIDES, PICTURES, STATE}, dest.with_name(f"{dest.name}.part"): {"work", "data"}}
    work = {STATE, LOCK, f"{PICTURES}.part", *(f"{side}.raw" for side in SIDES)}
    known[dest.with_name(f"{dest.name}.latents.part")] = known[dest] | work
    for folder, names in known.items():
        inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        found = {name for name in inside - names if not name.endswith(".partial")}
        if found or folder.is_symlink():
            what = f"holds {min(found)!a}" if found else "is a link"
            raise UserError(f"would be prepared anew, and {what}", str(folder), "move it away yourself")
    for folder in known:
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            if old.exists():  # of a killed run, which had the same number
                shutil.rmtree(old)
            folder.rename(old)  # at once, so that a kill leaves no half of it under its name
            shutil.rmtree(old)


def _pictures(
    path: Path,
    part: Path,
    options: PrepareOptions,
    progress: Progress,
    check: Callable[[tuple[int, int, int]], None],
) -> None:
    """The first stage: the pictures in the folder `part`. What cannot be prepared leaves nothing."""
    if is_prepared(part / PICTURES):
        return
    try:
        if is_prepared(path):
            _copy_pictures(path, part / PICTURES, options, check)
        else:
            prepare(path, part / PICTURES, options, progress, check)
    except UserError:
        if not (part / f"{PICTURES}.part").exists():
            shutil.rmtree(part)
        raise


def _copy_pictures(
    path: Path, dest: Path, options: PrepareOptions, check: Callable[[tuple[int, int, int]], None]
) -> None:
    """A prepared set as the pictures. Raises UserError for options of a preparation, and for no pictures."""
    meta, plain = read_meta(path), PrepareOptions(images=ImageOptions(mode="rgb"), workers=options.workers)
    if replace(options, allow_missing=options.allow_missing or None) != plain:
        what = "is prepared already: options that say how to read or change its images would have no effect"
        raise UserError(what, str(path), "leave them out, or give its source")
    if meta.latents is not None or meta.shape[0] != 3:
        what = "holds latents" if meta.latents is not None else "holds grey pictures"
        raise UserError(f"{what}; autoencoders take pictures in colour", str(path), "give its source")
    check(meta.shape)
    copy = dest.with_name(f"{dest.name}.part")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path, copy)
    copy.rename(dest)


def _shape_check(autoencoder: Autoencoder, like: Latents | None) -> Callable[[tuple[int, int, int]], None]:
    def check(shape: tuple[int, int, int]) -> None:
        autoencoder.latent_shape(shape, "--latents")
        if like is not None and shape != like.picture_shape:
            side = like.picture_shape[1]
            what = f"the pictures are {list(shape)}, the model's {list(like.picture_shape)}"
            raise UserError(what, "--latents", f"--size {side} would do")

    return check


def _settings(
    path: Path, options: PrepareOptions, latents: LatentOptions, autoencoder: Autoencoder
) -> dict[str, Any]:
    """What must be the same in a run that continues another; a value that JSON returns unchanged."""
    settings = {
        "source": str(path.resolve()),
        "images": state_of(path, options.source.links),
        "options": {k: v for k, v in asdict(options).items() if k != "workers"},
        "autoencoder": autoencoder.identity,
        "flip": latents.flip,
    }
    return json.loads(json.dumps(settings))


def _begin(part: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The state of the run that is continued, or of a new one: its settings, and the rows encoded by side."""
    if not part.exists():
        new = part.with_name(f".{part.name}.{os.getpid()}.partial")  # never without its state
        if new.exists():  # of a killed run, which had the same number
            shutil.rmtree(new)
        new.mkdir(parents=True)
        try:
            write_state(new, {"settings": settings, "done": {}})
            new.rename(part)
        except BaseException:  # a full disk
            shutil.rmtree(new)
            raise
    try:
        state = json.loads((part / STATE).read_text(encoding="utf-8"))
        before, done = state["settings"], state["done"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        remedy = "the preparation needs this name: move it away, or choose another destination"
        raise UserError("is already there, and is no unfinished preparation", str(part), remedy) from error
    if before != settings:
        name = next(key for key in settings if before.get(key) != settings[key])
        remedy = "give the same options, or remove that folder to begin again"
        raise UserError(f"was begun with another {name}", str(part), remedy)
    return {"settings": settings, "done": done}


def write_state(part: Path, state: dict[str, Any]) -> None:
    files.write_atomically(part / STATE, json.dumps(state))


def _encode(work: _Work, state: dict[str, Any], encoding: Callable[[int, int], None]) -> None:
    """Encode what is not encoded yet into the raw files; at most SYNC_SECONDS of it is lost in a kill."""
    total, done = sum(map(work.rows, work.pictures.parts)), state["done"]
    size = int(np.prod(work.shape)) * 2
    files.check_room(work.part, size * (total - sum(done.values())))
    for side in work.pictures.parts:
        pictures, _ = open_part(work.part / PICTURES, work.pictures, side)
        copies, first = work.copies(side), done.setdefault(side, 0)
        with work.raw(side).open("r+b" if work.raw(side).exists() else "w+b") as file:
            file.seek(first * size)
            last_sync = time.monotonic()
            for part in in_batches(len(pictures) - first // copies, work.pictures.shape):
                rows = torch.from_numpy(pictures[part.start + first // copies : part.stop + first // copies])
                file.write(_rows(work, rows, copies).numpy().tobytes())
                done[side] += len(rows) * copies
                if time.monotonic() - last_sync >= SYNC_SECONDS:
                    file.flush()
                    files.sync(work.raw(side))
                    write_state(work.part, state)
                    last_sync = time.monotonic()
                encoding(sum(done.values()), total)
        files.sync(work.raw(side))
        write_state(work.part, state)


def _rows(work: _Work, pictures: Tensor, copies: int) -> Tensor:
    """float16 latents of pictures, each followed by those of its mirror image where there are two copies."""
    forms = (pictures, pictures.flip(-1))[:copies]
    raw = torch.stack([encode(work.autoencoder, form) for form in forms], 1).flatten(0, 1).half()
    if raw.shape[1:] != work.shape:
        what = f"makes latents {list(raw.shape[1:])}, and says {list(work.shape)}"
        raise UnfitAutoencoder(what, f"--latents {work.options.autoencoder}")
    if not bool(raw.isfinite().all()):
        what = "makes latents that are not finite, or beyond 65,504"
        raise UnfitAutoencoder(what, f"--latents {work.options.autoencoder}")
    return raw


def _finish(work: _Work) -> None:
    """Normalise, write both sides and meta.json. Done again after a kill, it gives the same result."""
    record = _record(work)
    space = LatentSpace(record, work.autoencoder)
    parts = {side: _finish_side(work, space, side) for side in work.pictures.parts}
    meta = replace(work.pictures, shape=work.shape, parts=parts, latents=record)
    record = replace(record, psnr=_psnr(work, space, meta))
    meta = replace(meta, latents=record)
    write_meta(work.part / META, meta)


def _mapped(work: _Work, side: str) -> np.ndarray[Any, Any]:
    return np.memmap(work.raw(side), np.float16, "r", 0, (work.rows(side), *work.shape))


def _record(work: _Work) -> Latents:
    options = work.options
    if options.like is not None:
        return replace(options.like, stored=options.stored, mirrored=options.flip, psnr=None)
    raw = _mapped(work, "train")
    count, total, square = len(raw) * raw.shape[2] * raw.shape[3], 0.0, 0.0
    blocks = [slice(first, first + 1024) for first in range(0, len(raw), 1024)]
    for block in blocks:
        total = total + raw[block].sum((0, 2, 3), dtype=np.float64)
    mean = np.asarray(total) / count
    for block in blocks:
        square = square + np.square(raw[block] - mean[:, None, None]).sum((0, 2, 3))
    deviation = np.sqrt(np.asarray(square) / count)
    flat = np.flatnonzero(deviation < 1e-6 * np.maximum(1, np.abs(mean)))
    if len(flat):
        what = f"{len(flat)} of {len(mean)} channels of its latents have no variance, channel {flat[0]} first"
        raise UnfitAutoencoder(
            what, f"--latents {options.autoencoder}", "use another autoencoder, or more pictures"
        )
    return Latents(
        autoencoder=options.autoencoder,
        identity=work.autoencoder.identity,
        factor=work.autoencoder.factor,
        picture_shape=work.pictures.shape,
        mean=tuple(mean.tolist()),
        deviation=tuple(deviation.tolist()),
        stored=options.stored,
        mirrored=options.flip,
    )


def _finish_side(work: _Work, space: LatentSpace, side: str) -> Part:
    raw, copies, source = _mapped(work, side), work.copies(side), work.pictures.parts[side]
    folder = work.part / side
    folder.mkdir(exist_ok=True)
    with (folder / IMAGES).open("wb") as file:
        file.write(npy.header(raw.shape, np.dtype(space.record.stored)))
        for first in range(0, len(raw), 1024):
            block = torch.from_numpy(raw[first : first + 1024].astype(np.float32))
            file.write(space.stored(space.standardised(block)).numpy().tobytes())
    labels = np.repeat(np.arange(len(source.offsets) - 1), np.diff(source.offsets) * copies)
    npy.write(folder / LABELS, labels.astype("<i8"))
    paths = [folder / IMAGES, folder / LABELS]
    for path in paths:
        files.sync(path)
    sha256 = {path.name: files.file_digest(path) for path in paths}
    return Part(len(raw), tuple(offset * copies for offset in source.offsets), sha256)


def _psnr(work: _Work, space: LatentSpace, meta: Meta) -> float:
    """Of evenly spread training pictures, decoded from what is stored."""
    pictures, _ = open_part(work.part / PICTURES, work.pictures, "train")
    stored, _ = open_part(work.part, meta, "train")
    rows = np.unique(np.linspace(0, len(pictures) - 1, LOOKED_AT).astype(int))
    z = restored(torch.from_numpy(stored[rows * work.copies("train")]), space.record.scale)
    return psnr(torch.from_numpy(pictures[rows]), space.decode(z))
