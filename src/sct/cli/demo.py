"""sct demo"""

import time
from pathlib import Path

from sct.cli.common import Screen
from sct.demo import Demo
from sct.files import write_atomically
from sct.train.run import Interrupted
from sct.web.report import demo_page


def demo(out: Path, seed: int) -> None:
    """The whole job, then the page. Raises SystemExit(130) after a signal, when the state is saved."""
    began = time.perf_counter()
    fresh = not (out / "teacher").exists()
    with Screen() as screen:
        try:
            results = Demo(out, seed, screen).run()
        except Interrupted:
            screen.say(f"stopped and saved; continue with: sct demo --out {out} --seed {seed}")
            raise SystemExit(130) from None
    page = out / "report.html"
    write_atomically(page, demo_page(results, (time.perf_counter() - began) / 60 if fresh else None))
    print(page)
