"""consistune demo"""

from pathlib import Path

import torch

from consistune.cli.common import Screen
from consistune.reproduce.demo import Demo
from consistune.train.run import Interrupted


def demo(out: Path, seed: int) -> None:
    """The whole job. Raises SystemExit after a signal, when the state is saved."""
    # Layers this small gain little from a second thread, and lose much where the cores are shared.
    torch.set_num_threads(1)
    with Screen() as screen:
        try:
            page = Demo(out, seed, screen).run()
        except Interrupted as stopped:
            screen.say(f"stopped and saved; continue with: consistune demo --out {out} --seed {seed}")
            raise SystemExit(stopped.status) from None
    print(page)
