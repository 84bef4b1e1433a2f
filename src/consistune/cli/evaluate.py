"""consistune evaluate"""

from pathlib import Path
from typing import cast, get_args

import torch
from accelerate import PartialState

from consistune.cli.common import Screen, parse_integers, parse_times, pick_device
from consistune.errors import UserError
from consistune.evaluate.job import Job
from consistune.evaluate.request import LABEL_RULES, Request, Setting
from consistune.metrics.gather import process
from consistune.metrics.moments import Convention


def evaluate(
    model: Path,
    data: str | None,
    reference: Path | None,
    features: str | None,
    metrics: str | None,
    steps: str | None,
    samples: int,
    seeds: int,
    first_seed: int,
    labels: str,
    mid_t: str | None,
    eta: float,
    omega: float,
    worse: Path | None,
    search: str | None,
    search_samples: int,
    extrapolate: bool,
    covariance: str,
    x_flip: bool,
    keep: Path | None,
    save_reference: Path | None,
    out: Path,
    batch: int,
    device: str,
) -> None:
    """Measure a model and write results.json and report.html; prints the table."""
    if labels not in LABEL_RULES:
        raise UserError(f"{labels!r} is not known", "--labels", f"use {', '.join(LABEL_RULES)}")
    if search is not None and search not in get_args(Setting):
        raise UserError(f"{search!r} cannot be searched", "--search", f"use {', '.join(get_args(Setting))}")
    if covariance not in get_args(Convention):
        raise UserError(
            f"{covariance!r} is not known", "--covariance", f"use {', '.join(get_args(Convention))}"
        )
    for name, value, least in (("--samples", samples, 4), ("--seeds", seeds, 1), ("--batch", batch, 1)):
        if value < least:
            raise UserError(f"{value} is too few", name, f"give at least {least}")
    request = Request(
        model=model,
        out=out,
        data=data,
        reference=reference,
        features=features,
        metrics=None if metrics is None else tuple(part.strip() for part in metrics.split(",")),
        steps=(None,) if steps is None else tuple(parse_integers(steps, "--steps")),
        samples=samples,
        blocks=seeds,
        first_seed=first_seed,
        label_rule=labels,
        mid_t=parse_times(mid_t, "--mid-t"),
        eta=eta,
        omega=omega,
        worse=worse,
        search=cast(Setting | None, search),
        search_samples=search_samples,
        extrapolate=extrapolate,
        covariance=cast(Convention, covariance),
        x_flip=x_flip,
        keep=keep,
        save_reference=save_reference,
        batch=batch,
        device=_device(device),
    )
    first = process()[0] == 0
    with Screen(quiet=not first) as screen:
        page = Job(request, screen).run()
    if first:
        print(page)


def _device(name: str) -> torch.device:
    """The process's device; under torchrun or accelerate launch each process joins the others here."""
    chosen = pick_device(name)
    state = PartialState(cpu=chosen.type == "cpu")
    return state.device if chosen.type == "cuda" and state.num_processes > 1 else chosen
