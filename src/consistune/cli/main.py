"""`consistune`: parse, call, print. Heavy imports stand inside the commands: --help is quick."""

import errno
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from consistune.errors import UserError
from consistune.metrics.table import METRICS

app = typer.Typer(
    name="consistune",
    help="Stable Consistency Tuning: from a diffusion model to a one-step generator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Image sets: bring one into the prepared form, or look at one.", no_args_is_help=True)
app.add_typer(data, name="data")
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells expect it."""


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Read by `main` from the command line; declared here for --help."""


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file, or a run's folder to continue.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Values for any key of the recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in that folder.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One step on one image: what the run costs and would write.")
    ] = False,
) -> None:
    """Train what a recipe says: a diffusion model, or a consistency model from one."""
    if dry_run:
        from consistune.cli.dryrun import dry_run as estimate

        estimate(recipe, overrides or [], out, device)
        return
    from consistune.cli.train import train as run

    run(recipe, overrides or [], out, resume, device)


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="A model's or a run's folder.")],
    seeds: Annotated[str, typer.Option(help="One image a seed: 0-63, or 1,5,8-11.")] = "0-63",
    steps: Annotated[
        int | None, typer.Option(help="Steps; default: 1, or 18 Heun steps for a diffusion model.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class labels, taken in turn by seed: 0-9, or 3.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="NAME.png: a grid; NAME.npz: an array; else a folder of PNGs.")
    ] = Path("samples.png"),
    mid_t: Annotated[
        str | None, typer.Option(help="Times of the steps after the first: 0.8, or 2,0.5.")
    ] = None,
    eta: Annotated[float, typer.Option(help="Edge-skipping of phased models, 0 to 1.")] = 1.0,
    guidance: Annotated[float, typer.Option(help="ω of guidance by a worse model; 1: none.")] = 1.0,
    worse: Annotated[Path | None, typer.Option(help="The worse model's folder, for --guidance.")] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(help="Guide only where LOW < t <= HIGH: 0.1,10.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16; default: the model's own.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
) -> None:
    """Draw images, one a seed: the same seed gives the same image, whatever else is drawn."""
    from consistune.cli.sample import sample as run

    run(
        model,
        seeds,
        steps,
        classes,
        out,
        mid_t,
        eta,
        guidance,
        worse,
        guidance_interval,
        batch,
        precision,
        device,
    )


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model, a run's folder, a checkpoint, or samples (.npz).")],
    data: Annotated[
        str | None, typer.Option(help="What to compare with: digits, a prepared folder, a .npz of images.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Moments in place of the data's own: .npz (mu, sigma) or EDM2's .pkl.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="inception-2015-12-05.pt or another file with its YAML, efficientnet, efficientnet-64, "
            "classifier, or package.module:attribute. Files and modules are programs: they are run."
        ),
    ] = None,
    metrics: Annotated[str | None, typer.Option(help=f"Of {', '.join(METRICS)}; default: what fits.")] = None,
    steps: Annotated[str | None, typer.Option(help="1,2: a row each; default: the model's own.")] = None,
    samples: Annotated[int, typer.Option(help="Images of a block.")] = 50_000,
    seeds: Annotated[int, typer.Option(help="Blocks, each with its own seeds.")] = 1,
    first_seed: Annotated[int, typer.Option(help="Seed of the first image.")] = 0,
    labels: Annotated[
        str, typer.Option(help="data (as the training images'), uniform, or balanced (in turn).")
    ] = "data",
    mid_t: Annotated[
        str | None, typer.Option(help="Times of the steps after the first: 0.8, or 2,0.5.")
    ] = None,
    eta: Annotated[float, typer.Option(help="Edge-skipping of phased models, 0 to 1.")] = 1.0,
    omega: Annotated[float, typer.Option(help="ω of guidance by a worse model; 1: none.")] = 1.0,
    worse: Annotated[Path | None, typer.Option(help="The worse model's folder.")] = None,
    search: Annotated[str | None, typer.Option(help="Search mid-t, eta or omega, then confirm.")] = None,
    search_samples: Annotated[int, typer.Option(help="Images of each value that is tried.")] = 2_000,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Also estimate the distance at infinitely many samples.")
    ] = False,
    x_flip: Annotated[
        bool, typer.Option("--x-flip", help="The reference has the mirror images too; no protocol does.")
    ] = False,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the samples: NAME.npz, a file for each row and block.")
    ] = None,
    covariance: Annotated[
        str, typer.Option(help="unbiased (/(n-1): EDM, EDM2) or biased (/n: ECT).")
    ] = "unbiased",
    save_reference: Annotated[Path | None, typer.Option(help="Write the reference's moments here.")] = None,
    out: Annotated[Path, typer.Option(help="The folder of results.json and report.html.")] = Path(
        "runs/evaluation"
    ),
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
) -> None:
    """Measure a model: Fréchet and kernel distance, precision and recall, memorisation."""
    from consistune.cli.evaluate import evaluate as run

    run(
        model, data, reference, features, metrics, steps, samples, seeds, first_seed, labels, mid_t, eta,
        omega, worse, search, search_samples, extrapolate, covariance, x_flip, keep, save_reference,
        out, batch, device,
    )  # fmt: skip


@app.command("import")
def import_(
    checkpoint: Annotated[
        Path, typer.Argument(help="EDM, EDM2 or ECT snapshot (.pkl), consistency model (.pt), .safetensors.")
    ],
    dest: Annotated[Path, typer.Argument(help="The model folder to write.")],
) -> None:
    """Bring an official checkpoint in, executing nothing of what is in it."""
    from consistune.cli.interop import import_ as run

    run(checkpoint, dest)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A model's or a run's folder.")],
    dest: Annotated[Path, typer.Argument(help="The file to write.")],
    format: Annotated[str, typer.Option(help="safetensors or onnx.")] = "safetensors",
) -> None:
    """Write a model for others: its weights under the official names, or the whole as an ONNX graph."""
    from consistune.cli.interop import export as run

    run(model, dest, format)


@data.command("prepare")
def data_prepare(
    source: Annotated[
        Path,
        typer.Argument(
            help="CIFAR's archive or folder; ImageNet's tree or downsampled batches; a folder, ZIP, npz or "
            "parquet shards of images."
        ),
    ],
    dest: Annotated[Path, typer.Argument(help="The folder to make.")],
    size: Annotated[int | None, typer.Option(help="Side of the square images; default: as they are.")] = None,
    crop: Annotated[
        str | None, typer.Option(help="center (default), dhariwal (ADM's), pad, or none, with --size.")
    ] = None,
    filter: Annotated[
        str | None, typer.Option(help="lanczos (default), box, bicubic, bilinear, hamming, nearest.")
    ] = None,
    background: Annotated[str, typer.Option(help="Colour under transparency and around padding.")] = "white",
    mode: Annotated[str, typer.Option(help="rgb, grey, or auto: grey if all images are.")] = "auto",
    held_out: Annotated[
        float, typer.Option(help="Share to hold out, where the source has no test set of its own: 0.1.")
    ] = 0.0,
    split_by: Annotated[
        str, typer.Option(help="image, or group: no group of dataset.json on both sides.")
    ] = "image",
    seed: Annotated[int, typer.Option(help="Which images are held out.")] = 0,
    labels: Annotated[
        str | None,
        typer.Option(help="A CSV or JSON of labels; fine or coarse (CIFAR-100); a column (parquet)."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="cifar, imagenet-batches, folder, zip, npz, parquet; or found out."),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="nhwc or nchw, for an npz whose shape does not tell.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad image.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a core.")] = None,
) -> None:
    """Bring images into the one form that training reads. Run again after a stop, it continues."""
    from consistune.cli.data import run_prepare

    run_prepare(
        source,
        dest,
        strict,
        workers,
        options={"format": format, "labels": labels, "layout": layout},
        wanted={"size": size, "crop": crop, "filter": filter, "background": background, "mode": mode},
        split={"fraction": held_out, "by": split_by, "seed": seed},
    )


@data.command("info")
def data_info(
    path: Annotated[Path, typer.Argument(help="A prepared folder, or a source.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare the files with their SHA-256.")] = False,
) -> None:
    """What a set holds, how it was made, or how to prepare it."""
    from consistune.cli.data import run_info

    raise typer.Exit(run_info(path, verify))


@app.command()
def analyze(
    data: Annotated[str, typer.Argument(help="digits, mixture (8 Gaussians), a prepared folder, or a ZIP.")],
    out: Annotated[Path, typer.Option(help="The folder of tables and plots.")] = Path("runs/analysis"),
    conditional: Annotated[bool, typer.Option(help="References share the class, or not.")] = True,
    times: Annotated[str | None, typer.Option(help="Noise levels t: 0.1,1,10.")] = None,
    queries: Annotated[int, typer.Option(help="Noisy images at each t.")] = 512,
    batch: Annotated[int, typer.Option(help="Size of the batches that batch references come from.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of images and noise.")] = 0,
) -> None:
    """What the score-identity target buys on a data set: variance, bias and references against t."""
    from consistune.cli.analyze import run

    run(data, out, conditional, times, queries, batch, seed)


ema = typer.Typer(no_args_is_help=True, help="Averages of a run's weights.")
app.add_typer(ema, name="ema")


@ema.command()
def reconstruct(
    run: Annotated[Path, typer.Argument(help="A run's folder with snapshots of power-function averages.")],
    std: Annotated[float, typer.Option(help="The wanted average's relative length, 0 to 0.289.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    at: Annotated[int | None, typer.Option(help="At so many images; default: the latest snapshot.")] = None,
) -> None:
    """Make an average of any length from a run's snapshots (EDM2's post-hoc EMA)."""
    from consistune.cli.ema import reconstruct as run_

    run_(run, std, at, out)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What this machine has for the program, and which feature lacks what."""
    from consistune.cli.doctor import run

    raise typer.Exit(run(as_json))


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="An experiment; --list names them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All experiments.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Name the experiments.")] = False,
    data: Annotated[str, typer.Option(help="digits, or a prepared folder.")] = "digits",
    scale: Annotated[
        str, typer.Option(help="smoke (minutes), cpu (hours), gpu (one card), paper (as published).")
    ] = "smoke",
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/reproduce"),
    seeds: Annotated[int | None, typer.Option(help="How many; default: the scale's.")] = None,
    unconditional: Annotated[
        bool, typer.Option(help="Without the labels, as the paper does on CIFAR-10.")
    ] = False,
    keys: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For every tuned model of the experiment alike."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
) -> None:
    """Make the paper's figures and tables from scratch.

    Run again after a stop, it continues; run several times at once, it shares the trainings.
    """
    from consistune.cli.reproduce import run

    run(name, every, listed, data, scale, out, seeds, unconditional, tuple(keys or ()), device)


@app.command()
def bench(
    json: Annotated[Path | None, typer.Option("--json", help="Write the table to this file too.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; default: torch's choice.")] = None,
) -> None:
    """How fast this machine trains and samples, against a plain loop and diffusers; some minutes."""
    from consistune.cli.bench import run

    run(json, threads)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of all three trainings.")] = 0,
) -> None:
    """The whole job on scikit-learn's digits: pretrain, tune with ECT and SCT, sample, measure, report.

    Run again after a stop, it continues.
    """
    from consistune.cli.demo import demo as run

    run(out, seed)


def main() -> NoReturn:
    """Run a command; say what is wrong in one line, with status 2 for the user's input and 1 otherwise."""
    debug = "--debug" in sys.argv
    try:
        status = app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except KeyboardInterrupt:
        print("consistune: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        status, line = explain(error)
        print(f"consistune: {line}", file=sys.stderr)
        sys.exit(status)


def explain(error: Exception) -> tuple[int, str]:
    """Exit status and one line for an error."""
    if isinstance(error, UserError):
        return 2, str(error)
    if hasattr(error, "format_message"):  # what the command-line parser raises
        return 2, " ".join(error.format_message().split()) or "no command given; see consistune --help"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return 1, f"the disk is full: {error.filename or 'writing failed'}; free some space and run again"
    if isinstance(error, OSError) and error.filename:
        return 1, f"{error.filename}: {error.strerror}"
    line = " ".join(str(error).split())
    return 1, f"failed: {type(error).__name__}: {line} (--debug shows where)"


if __name__ == "__main__":
    main()
