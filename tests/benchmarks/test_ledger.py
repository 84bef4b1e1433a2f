"""No result without a row in the ledger, no row without its result, no page that says otherwise."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEDGER = json.loads((ROOT / "docs" / "results" / "ledger.json").read_text(encoding="utf-8"))
RESULTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        *(ROOT / "benchmarks" / "results").glob("*.json"),
        *(ROOT / "docs" / "results").glob("*/*/data.json"),
    ]
)
FIELDS = {
    "result", "what", "command", "recipes", "code", "hardware", "seeds", "images", "teacher_images",
    "minutes", "figures", "curve",
}  # fmt: skip


def test_every_result_has_its_row_and_every_row_its_result() -> None:
    assert sorted(row["result"] for row in LEDGER) == RESULTS, "run python benchmarks/ledger.py"


@pytest.mark.parametrize("row", LEDGER, ids=lambda row: row["result"])
def test_a_row_says_all(row: dict) -> None:
    assert set(row) == FIELDS
    assert row["command"]
    assert row["what"]
    assert (ROOT / row["curve"]).is_file()
    if row["result"].startswith("docs/"):
        assert row["hardware"]
        assert row["code"]


def test_figures_and_page_are_what_the_script_makes_of_the_results(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import ledger

    made = {row["result"]: row for row in ledger.rows()}
    for row in LEDGER:
        for key in ("command", "figures", "recipes", "seeds", "images", "minutes"):
            assert row[key] == made[row["result"]][key], f"{row['result']}: run python benchmarks/ledger.py"
    page = (ROOT / "docs" / "results" / "ledger.md").read_text(encoding="utf-8")
    assert ledger.table(LEDGER) in page
    sys.modules.pop("ledger")
