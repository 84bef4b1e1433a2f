"""`consistune evaluate`: measure a model or a file of samples."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

from typer import Argument, Option

from consistune.cli import options
from consistune.cli.screen import Screen
from consistune.metrics.table import METRICS

if TYPE_CHECKING:
    import torch


def evaluate(
    model: Annotated[Path, Argument(help="A model, a run's folder, a checkpoint, or samples (.npz).")],
    data: Annotated[
        str | None, Option(help="Data to compare with: digits, a prepared folder, or images (.npz).")
    ] = None,
    reference: Annotated[
        Path | None, Option(help="Moments instead of the data's: .npz (mu, sigma) or EDM2's .pkl.")
    ] = None,
    features: Annotated[
        str | None,
        Option(
            help="inception-2015-12-05.pt or another file with its YAML, efficientnet, efficientnet-64, "
            "classifier, or package.module:attribute. Files and modules are programs: they are run."
        ),
    ] = None,
    metrics: Annotated[
        str | None, Option(help=f"Some of {','.join(METRICS)}; default: all that apply.")
    ] = None,
    steps: Annotated[
        str | None, Option(help="Numbers of steps, e.g. 1,2, one row each; default: the model's.")
    ] = None,
    samples: Annotated[int, Option(help="Number of images per block.")] = 50_000,
    seeds: Annotated[int, Option(help="Number of blocks, each with seeds of its own.")] = 1,
    first_seed: Annotated[int, Option(help="Seed of the first image.")] = 0,
    labels: Annotated[
        str, Option(help="data (with the training images' frequencies), uniform, or balanced (in turn).")
    ] = "data",
    mid_t: options.MiddleTimes = None,
    eta: options.Eta = 1.0,
    omega: options.GuidanceWeight = 1.0,
    worse: options.WorseModel = None,
    search: Annotated[
        str | None, Option(help="mid-t, eta or omega: search it, then measure the best on new seeds.")
    ] = None,
    search_samples: Annotated[int, Option(help="Number of images for each value tried.")] = 2_000,
    extrapolate: Annotated[
        bool, Option("--extrapolate", help="Also estimate the distance at infinitely many samples.")
    ] = False,
    x_flip: Annotated[
        bool, Option("--x-flip", help="Add mirrored images to the reference; no published protocol does.")
    ] = False,
    keep: Annotated[
        Path | None, Option(help="NAME.npz: keep the samples, one file per row and block.")
    ] = None,
    covariance: Annotated[
        str, Option(help="unbiased (divided by n-1: EDM, EDM2) or biased (by n: ECT).")
    ] = "unbiased",
    save_reference: Annotated[Path | None, Option(help="Write the reference's moments to this file.")] = None,
    out: Annotated[Path, Option(help="Folder for results.json and report.html.")] = Path("runs/evaluation"),
    batch: options.BatchSize = 256,
    device: options.Device = "auto",
) -> None:
    """Measure a model: Fréchet and kernel distance, precision and recall, memorisation."""
    from consistune.evaluate.job import Job
    from consistune.evaluate.request import LABEL_RULES, LabelRule, Request
    from consistune.evaluate.search import all_settings
    from consistune.metrics.moments import Convention
    from consistune.system.processes import rank_and_count

    options.check_choice(labels, LABEL_RULES, "--labels")
    options.check_choice(search, tuple(all_settings()), "--search")
    options.check_choice(covariance, get_args(Convention), "--covariance")
    options.check_at_least(4, samples, "--samples")
    options.check_at_least(1, seeds, "--seeds")
    options.check_at_least(1, batch, "--batch")
    request = Request(
        model=model,
        out=out,
        data=data,
        reference=reference,
        features=features,
        metrics=None if metrics is None else tuple(part.strip() for part in metrics.split(",")),
        steps=(None,) if steps is None else tuple(options.parse_integers(steps, "--steps")),
        samples=samples,
        blocks=seeds,
        first_seed=first_seed,
        label_rule=cast(LabelRule, labels),
        mid_t=options.parse_times(mid_t, "--mid-t"),
        eta=eta,
        omega=omega,
        worse=worse,
        search=search,
        search_samples=search_samples,
        extrapolate=extrapolate,
        covariance=cast(Convention, covariance),
        x_flip=x_flip,
        keep=keep,
        save_reference=save_reference,
        batch=batch,
        device=_process_device(device),
    )
    first = rank_and_count()[0] == 0
    with Screen(quiet=not first) as screen:
        page = Job(request, screen).run()
    if first:
        print(page)


def _process_device(name: str) -> "torch.device":
    """The device of this process; under torchrun or accelerate launch, join the other processes first."""
    from accelerate import PartialState

    chosen = options.pick_device(name)
    state = PartialState(cpu=chosen.type == "cpu")
    return state.device if chosen.type == "cuda" and state.num_processes > 1 else chosen
