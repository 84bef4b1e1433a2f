"""`consistune demo`: the whole method on scikit-learn's digits."""

from pathlib import Path
from typing import Annotated

from typer import Option

from consistune.cli.screen import Screen


def demo(
    out: Annotated[Path, Option(help="The folder for all results.")] = Path("runs/demo"),
    seed: Annotated[int, Option(help="Seed of all three trainings.")] = 0,
) -> None:
    """Pretrain on scikit-learn's digits, tune with ECT and SCT, sample, measure, and write a report.

    After an interruption, the same command continues.
    """
    import torch

    from consistune.reproduce.demo import Demo

    # Layers this small gain little from a second thread, and lose much where the cores are shared.
    torch.set_num_threads(1)
    command = f"consistune demo --out {out} --seed {seed}"
    with Screen() as screen, screen.exit_when_interrupted(f"continue with: {command}"):
        page = Demo(out, seed, screen).run()
    print(page)
