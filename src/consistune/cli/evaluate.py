"""`consistune evaluate`: measure a model or a file of samples."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from typer import Argument, Option

from consistune.cli import options
from consistune.cli.numbers import check_number
from consistune.cli.screen import Screen
from consistune.errors import UserError
from consistune.metrics.table import METRICS

if TYPE_CHECKING:
    import torch

    from consistune.evaluation.request import Request


FOLDER = "runs/evaluation"
Model = Annotated[Path, Argument(help="A model, a run's folder, a checkpoint, or samples (.npz).")]
More = Annotated[list[Path] | None, Argument(help="Further models, for a table of all.", show_default=False)]
Data = Annotated[
    str | None, Option(help="Data to compare with: digits, a prepared folder, or images (.npz).")
]
Reference = Annotated[
    Path | None, Option(help="Moments instead of the data's: .npz (mu, sigma) or EDM2's .pkl.")
]
Features = Annotated[
    str | None,
    Option(
        help="inception-2015-12-05.pt or another file with its YAML, efficientnet, efficientnet-64, "
        "classifier, or package.module:attribute. Files and modules are programs: they are run."
    ),
]
Metrics = Annotated[str | None, Option(help=f"Some of {','.join(METRICS)}; default: all that apply.")]
Steps = Annotated[str | None, Option(help="Numbers of steps, e.g. 1,2, one row each; default: the model's.")]
Samples = Annotated[int, Option(help="Number of images per block.")]
Seeds = Annotated[int, Option(help="Number of blocks, each with seeds of its own.")]
FirstSeed = Annotated[int, Option(help="Seed of the first image.")]
Labels = Annotated[
    str | None,
    Option(help="data (default: with the training images' frequencies), uniform, or balanced (in turn)."),
]
Search = Annotated[
    str | None, Option(help="mid-t, eta or omega: search its best value, then measure that on all samples.")
]
SearchSamples = Annotated[int | None, Option(help="Number of images for each value tried; default: 2000.")]
Extrapolate = Annotated[
    bool, Option("--extrapolate", help="Also estimate the distance at infinitely many samples.")
]
XFlip = Annotated[
    bool, Option("--x-flip", help="Add mirrored images to the reference; no published protocol does.")
]
Keep = Annotated[Path | None, Option(help="NAME.npz: keep the samples, one file per row and block.")]
Covariance = Annotated[str, Option(help="unbiased (divided by n-1: EDM, EDM2) or biased (by n: ECT).")]
SaveReference = Annotated[Path | None, Option(help="Write the reference's moments to this file.")]
Out = Annotated[
    Path | None,
    Option(
        help=f"Folder for results.json and report.html; default: the first new of {FOLDER}, {FOLDER}-2, …"
    ),
]
Anchors = Annotated[
    bool, Option(help="Also measure held-out images and the teacher, with 5,000 samples at most.")
]


def evaluate(
    model: Model,
    more: More = None,
    data: Data = None,
    reference: Reference = None,
    features: Features = None,
    metrics: Metrics = None,
    steps: Steps = None,
    samples: Samples = 50_000,
    seeds: Seeds = 1,
    first_seed: FirstSeed = 0,
    labels: Labels = None,
    mid_t: options.MiddleTimes = None,
    eta: options.Eta = None,
    omega: options.GuidanceWeight = 1.0,
    worse: options.WorseModel = None,
    search: Search = None,
    search_samples: SearchSamples = None,
    extrapolate: Extrapolate = False,
    x_flip: XFlip = False,
    keep: Keep = None,
    covariance: Covariance = "unbiased",
    save_reference: SaveReference = None,
    anchors: Anchors = True,
    out: Out = None,
    batch: options.BatchSize = 256,
    device: options.Device = "auto",
) -> None:
    """Measure a model: Fréchet and kernel distance, precision and recall, memorisation."""
    if search is None:
        options.check_no_effect({"--search-samples": search_samples}, "--search", "add --search mid-t")
    _run(
        more or [],
        model=model,
        out=out or new_folder(),
        anchors=anchors,
        data=data,
        reference=reference,
        features=features,
        metrics=None if metrics is None else tuple(part.strip() for part in metrics.split(",")),
        steps=_in_steps(steps),
        samples=samples,
        blocks=seeds,
        first_seed=first_seed,
        label_rule=labels,
        mid_t=options.parse_times(mid_t, "--mid-t"),
        eta=eta,
        omega=omega,
        worse=worse,
        search=search,
        search_samples=search_samples or 2_000,
        extrapolate=extrapolate,
        covariance=covariance,
        x_flip=x_flip,
        keep=keep,
        save_reference=save_reference,
        batch=batch,
        device=_process_device(device),
    )


def new_folder() -> Path:
    """The first of runs/evaluation, runs/evaluation-2, … that does not exist."""
    numbered = (Path(f"{FOLDER}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([Path(FOLDER)], numbered) if not path.exists())


def _in_steps(text: str | None) -> tuple[int | None, ...]:
    if text is None:
        return (None,)
    ranges = options.parse_ranges(text, "--steps")
    for part in ranges:
        check_number("--steps", part[0])
        check_number("--steps", part[-1])
    return tuple(number for part in ranges for number in part)


def _check_npz(request: "Request") -> None:
    for option, path in (("--keep", request.keep), ("--save-reference", request.save_reference)):
        if path is not None and path.suffix.lower() != ".npz":
            raise UserError(f"{path} is no .npz", option, "write NAME.npz")


def _check_words(request: "Request") -> None:
    """Raises UserError for a word that is not known."""
    from consistune.evaluation.request import LABEL_RULES
    from consistune.evaluation.search import all_settings
    from consistune.metrics.moments import Convention

    options.check_choice(request.label_rule, LABEL_RULES, "--labels")
    options.check_choice(request.search, tuple(all_settings()), "--search")
    options.check_choice(request.covariance, get_args(Convention), "--covariance")


def _run(more: list[Path], **wanted: Any) -> None:
    """Evaluate a request, and print the path of the page; of several processes the first one speaks."""
    from consistune.evaluation.compare import compare
    from consistune.evaluation.job import Job
    from consistune.evaluation.request import Request
    from consistune.system.processes import rank_and_count

    request = Request(**wanted)
    _check_words(request)
    _check_npz(request)
    first = rank_and_count()[0] == 0
    with Screen(quiet=not first) as screen:
        page = compare(request, [request.model, *more], screen) if more else Job(request, screen).run()
    if first:
        print(page)


def _process_device(name: str) -> "torch.device":
    """The device of this process; under torchrun or accelerate launch, join the other processes first."""
    from consistune.system.processes import Processes

    return Processes.start(options.pick_device(name)).device
