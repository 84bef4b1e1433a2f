"""From a cold start: `consistune --help`, and `consistune sample` of a digits model, 64 images; imports.

    python benchmarks/startup.py [--rounds 7]

Writes results/startup.json.
"""

import argparse
import json
import tempfile
from pathlib import Path

from consistune.bench.startup import measured
from consistune.system.files import write_atomically
from consistune.system.host import machine

RESULT = Path(__file__).parent / "results" / "startup.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = {"machine": machine(), **measured(Path(folder), given.rounds)}
    write_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
