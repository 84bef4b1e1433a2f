"""How `consistune data` shows a source, a prepared data set, and the progress of its preparation."""

import shlex
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from consistune.cli.options import check_choice, check_no_effect, pick_device
from consistune.cli.screen import Bar, Screen, console
from consistune.data.prepare.run import PrepareOptions, Progress, prepare
from consistune.data.prepared import META, Meta
from consistune.data.sources.base import Source, SourceOptions
from consistune.data.sources.detect import open_source
from consistune.errors import UserError, printable
from consistune.nn.autoencoder.record import Latents
from consistune.system.files import write_atomically
from consistune.system.own import check_file

if TYPE_CHECKING:
    from consistune.data.prepare.latents import LatentOptions

MAX_BAD = 10
"""At most so many bad images are listed."""
MAX_REASONS = 4
"""At most so many reasons are listed for a split."""
MAX_CLASSES = 20
"""At most so many classes are listed."""


class PreparationProgress(Progress):
    """Shows what the source is, and a bar. The bar is closed by the exit stack."""

    def __init__(self, screen: Screen, stack: ExitStack) -> None:
        self.screen, self.stack = screen, stack
        self.encoder: Bar | None = None

    def started(self, source: Source, done: int) -> None:
        lines = [f"{source.kind}: {len(source):,} images, {len(source.class_names):,} classes"]
        lines += [f"note: {note}" for note in source.notes]
        if done:
            lines.append(f"continuing after {done:,} images of an earlier run")
        for line in lines:
            self.screen.say(line)
        self.bar = self.stack.enter_context(self.screen.bar("preparing", len(source), done))

    def advanced(self, count: int) -> None:
        self.bar.advance(count)

    def warned(self, line: str) -> None:
        self.screen.say(f"note: {line}")

    def encoding(self, done: int, total: int) -> None:
        """`done` of `total` rows of latents are encoded."""
        if self.encoder is None:
            self.encoder, self.encoded = self.stack.enter_context(self.screen.bar("encoding", total)), 0
        self.encoder.advance(done - self.encoded)
        self.encoded = done


def latent_options(
    word: str | None, flip: bool, store: str | None, device: str | None
) -> "LatentOptions | None":
    """What --latents and its companions ask for; None without --latents, where the others have no effect.

    The word names an autoencoder, or a model of latents, whose normalisation is then kept.
    """
    if word is None:
        given = {"--flip": flip, "--store": store, "--device": device}
        check_no_effect(given, "--latents", "add --latents taef2")
        return None
    from consistune.data.prepare.latents import LatentOptions
    from consistune.models import find, load
    from consistune.nn.autoencoder.space import from_model
    from consistune.nn.store import is_model_folder

    check_choice(store, ("uint8", "float16"), "--store")
    like, found = None, find(word)
    if is_model_folder(found) or is_model_folder(found / "model"):
        like = from_model(load(found))
        if like is None:
            raise UserError("is a model of pictures", f"--latents {word}", "give taef2 or a model of latents")
        word = like.autoencoder
    return LatentOptions(word, flip, store or "uint8", like, pick_device(device or "auto"))  # type: ignore[arg-type]


def prepare_shown(source: Path, dest: Path, options: PrepareOptions, chosen: "LatentOptions | None") -> None:
    """Prepare a source, as latents where they are chosen; show progress, and what became of each image."""
    with Screen() as screen, ExitStack() as stack:
        progress = PreparationProgress(screen, stack)
        if chosen is None:
            meta = prepare(source, dest, options, progress)
        else:
            from consistune.data.prepare.latents import prepare_latents

            meta = prepare_latents(source, dest, options, chosen, progress, progress.encoding)
    print_outcome(meta, dest)


def check_picture(path: Path) -> None:
    """Raises UserError where no PNG file could be written there."""
    if path.suffix.lower() != ".png":
        raise UserError(f"{path.name!a} is no name of a PNG file", "--show", "write NAME.png")
    check_file(path, "--show")


def show_decoded(path: Path, out: Path) -> None:
    """Write a picture: rows of training pictures, each over the same pictures decoded from their latents."""
    import torch

    from consistune.data.images import open_prepared
    from consistune.nn.autoencoder.space import open_space
    from consistune.pages.pictures import grid_png, in_pairs

    data = open_prepared(path)
    record, pictures = data.train.latents, data.to_look_at.train.images
    if record is None:
        raise UserError("holds pictures, not latents", str(path), "leave out --show")
    rows = torch.linspace(0, len(pictures) - 1, min(32, len(pictures))).long()
    decoded = open_space(record).decode(data.train.values(rows * (2 if record.mirrored else 1)))
    columns = min(8, len(rows))
    write_atomically(out, grid_png(in_pairs(pictures[rows], decoded, columns), columns))
    print(f"decoded     {out}")


def counts(meta: Meta) -> str:
    """ "50,000 train and 10,000 held-out images, 3×32×32, 10 classes"."""
    shape = "×".join(map(str, meta.shape))
    images = " and ".join(f"{part.images:,} {side}" for side, part in meta.parts.items())
    what = "images" if meta.latents is None else "latents"
    return f"{images} {what}, {shape}, {len(meta.class_names):,} classes"


def print_outcome(meta: Meta, dest: Path) -> None:
    """Print on standard error what became of every image, and the notes."""
    lines = [f"left out: {len(meta.bad):,}"] if meta.bad else []
    lines += [f"  {printable(entry['image'])} {entry['reason']}" for entry in meta.bad[:MAX_BAD]]
    if len(meta.bad) > MAX_BAD:
        lines.append(f"  … all are listed in {dest / META}")
    lines += [f"note: {note}" for note in meta.notes]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(accounts_table(meta))
    console.print(counts(meta), highlight=False)


def accounts_table(meta: Meta) -> Table:
    """For each split: the images found, taken, left out, and why."""
    table = Table("split", "found", "taken", "left out", "why")
    for column in table.columns[1:4]:
        column.justify = "right"
    for account in meta.accounts:
        reasons = list(account.left_out.items())
        why = [f"{count:,} {reason}" for reason, count in reasons[:MAX_REASONS]]
        why += [f"{sum(n for _, n in reasons[MAX_REASONS:]):,} for other reasons"] * (
            len(reasons) > MAX_REASONS
        )
        numbers = (account.found, account.taken, account.found - account.taken)
        cells = (printable(account.split), *(f"{n:,}" for n in numbers), printable("; ".join(why)))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def print_prepared(path: Path, meta: Meta) -> None:
    """Print what a prepared data set holds and how it was made."""
    print(f"{path}: {counts(meta)}, {meta.bytes / 1e6:,.1f} MB")
    print(f"source      {meta.source['kind']}: {meta.source['path']}")
    print(f"            sha256 {meta.source['sha256']}")
    transform = ", ".join(f"{key} {value}" for key, value in meta.transform.items() if value is not None)
    print(f"transform   {transform}")
    if meta.latents is not None:
        _print_latents(meta.latents)
    print(f"held out    {meta.held_out if meta.held_out is not None else 'nothing'}")
    print(f"left out    {len(meta.bad):,} images")
    for note in meta.notes:
        print(f"note        {note}")
    if meta.accounts:
        Console(file=sys.stdout).print(accounts_table(meta))
    table = Table("class", "name", *meta.parts)
    for column in (0, *range(2, 2 + len(meta.parts))):
        table.columns[column].justify = "right"
    for k, name in enumerate(meta.class_names[:MAX_CLASSES]):
        sizes = [part.offsets[k + 1] - part.offsets[k] for part in meta.parts.values()]
        table.add_row(str(k), Text(printable(name)), *(f"{size:,}" for size in sizes))
    more = len(meta.class_names) - MAX_CLASSES
    if more > 0:
        table.caption = f"and {more:,} more"
    Console(file=sys.stdout).print(table)


def _print_latents(latents: Latents) -> None:
    shape = "×".join(map(str, latents.picture_shape))
    mirrored = ", with mirror images" if latents.mirrored else ""
    print(f"latents     {latents.autoencoder}, factor {latents.factor}, of pictures {shape}{mirrored}")
    print(f"            sha256 {latents.identity}")
    edge = f"clipped at {latents.limit} deviations"
    print(f"            {latents.stored}, deviation {latents.sigma_data} in each channel, {edge}")
    print(f"decoded     {latents.psnr:.2f} dB PSNR to the pictures")


def print_source(path: Path) -> None:
    """Print what a source holds and the command that prepares it."""
    with tempfile.TemporaryDirectory() as work:
        source = open_source(path, SourceOptions(), Path(work))
    test_images = 0 if source.own_held_out is None else int(source.own_held_out.sum())
    classes = f"{len(source.class_names):,} classes" if source.labelled else "no labels"
    print(f"{path}: {source.kind}, not prepared")
    print(f"            {len(source):,} images, {classes}, {test_images:,} of them a test set of its own")
    if source.groups is not None:
        print(f"            {len(set(source.groups)):,} groups (--split-by group keeps each on one side)")
    for split in source.passed:
        print(f"            {printable(split.split)}: {split.images:,} images are left out, {split.reason}")
    for note in source.notes:
        print(f"note        {note}")
    if source.skipped:
        print(f"left out    {len(source.skipped):,} (--allow-missing)")
    for name, reason in source.skipped[:MAX_BAD]:
        print(f"            {printable(name)} {reason}")
    size = "" if source.shape is not None else " --size SIZE"
    print(f"prepare     consistune data prepare {shlex.quote(str(path))} DEST{size}")
