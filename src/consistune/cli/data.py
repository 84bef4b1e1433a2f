"""`consistune data prepare` and `consistune data info`: image data sets."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from consistune.cli.data_options import (
    AllowMissing,
    Autoencoder,
    Filter,
    FollowLinks,
    Format,
    HeldOut,
    Labels,
    Size,
    Source,
    SplitBy,
)
from consistune.cli.options import check_no_effect
from consistune.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Prepare an image data set, or describe one.")


@app.command("prepare")
def prepare(
    source: Source,
    dest: Annotated[Path, Argument(help="The folder to make.")],
    size: Size = None,
    crop: Annotated[
        str | None, Option(help="With --size: center (default), dhariwal (ADM's), pad, none.")
    ] = None,
    filter: Filter = None,
    background: Annotated[str, Option(help="Colour of transparent pixels and padding.")] = "white",
    mode: Annotated[str, Option(help="rgb, grey, or auto: grey if all images are grey.")] = "auto",
    held_out: HeldOut = 0.0,
    split_by: SplitBy = None,
    seed: Annotated[int | None, Option(help="With --held-out: seed of the choice; default: 0.")] = None,
    labels: Labels = None,
    format: Format = None,
    layout: Annotated[str | None, Option(help="nhwc or nchw, for an npz whose shape fits both.")] = None,
    strict: Annotated[bool, Option("--strict", help="Stop at the first bad image.")] = False,
    allow_missing: AllowMissing = 0,
    follow_links: FollowLinks = False,
    workers: Annotated[int | None, Option(help="Number of processes; default: one per core.")] = None,
    latents: Autoencoder = None,
    flip: Annotated[bool, Option("--flip", help="With --latents: encode the mirrored images too.")] = False,
    store: Annotated[str | None, Option(help="With --latents: uint8 (default) or float16.")] = None,
    device: Annotated[str | None, Option(help="With --latents: where to encode; default: auto.")] = None,
) -> None:
    """Convert images to the form that training reads. After an interruption, the same command continues."""
    from consistune.cli.data_view import latent_options, prepare_shown
    from consistune.data.prepare.run import PrepareOptions
    from consistune.data.prepare.split import Split
    from consistune.data.prepare.survey import ImageOptions
    from consistune.data.sources.base import SourceOptions
    from consistune.system.cores import cores

    if not held_out:
        check_no_effect({"--split-by": split_by, "--seed": seed}, "--held-out", "add --held-out 0.1")
    if strict and allow_missing:
        raise UserError("has no effect with --strict", "--allow-missing", "leave one of them out")
    options = PrepareOptions(
        SourceOptions(format=format, labels=labels, layout=layout, links=follow_links),
        ImageOptions(size=size, crop=crop, filter=filter, background=background, mode=mode),
        Split(fraction=held_out, by=split_by or "image", seed=seed or 0),
        strict,
        allow_missing,
        workers or cores(),
    )
    prepare_shown(source, dest, options, latent_options(latents, flip, store, device))
    print(dest)


@app.command("info")
def info(
    path: Annotated[Path, Argument(help="A prepared folder, or a source.")],
    verify: Annotated[
        bool, Option("--verify", help="Check the files' SHA-256; exit status 1 if one differs.")
    ] = False,
    show: Annotated[
        Path | None, Option(help="Of latents: write images over their decoded latents to this .png file.")
    ] = None,
) -> None:
    """Describe a prepared data set, or a source and how to prepare it."""
    from consistune.cli.data_view import check_picture, print_prepared, print_source, show_decoded
    from consistune.data.prepared import damaged, is_prepared, open_part, read_meta

    if show is not None:
        check_picture(show)
    if not is_prepared(path):
        if show is not None:
            raise UserError("is not a prepared set of latents", str(path), "leave out --show")
        if verify:
            raise UserError("is not a prepared set: there is nothing to verify", str(path))
        print_source(path)
        return
    meta = read_meta(path)
    if meta.latents is None:
        for side in meta.parts:
            open_part(path, meta, side)
    else:
        from consistune.data.images import open_prepared

        open_prepared(path)  # with the pictures beside them
    print_prepared(path, meta)
    if show is not None:
        show_decoded(path, show)
    if verify:
        names = damaged(path, meta)
        print(
            f"verified    {'damaged: ' + ', '.join(names) if names else 'all files are as they were written'}"
        )
        if names:
            raise typer.Exit(1)
