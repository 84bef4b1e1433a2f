"""The metrics file of a run: what was appended comes back, whole records only."""

from pathlib import Path

import pytest

from consistune.training.metrics_file import MetricsFile


def test_records_come_back_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    assert file.records() == []
    records = [{"images": 64 * k, "step": k, "loss": 0.1 * k} for k in range(1, 5)]
    for record in records:
        file.append(record)
    with file.path.open("a") as stream:
        stream.write('{"images": 32')
    assert file.records() == records
    file.truncate(128)
    file.append(records[2])
    assert file.records() == records[:3]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "3",
        "null",
        '{"loss": 1}',
        '{"images": "x", "step": 1}',
        '{"images": null, "step": 1}',
        '{"images": 64}',
        '{"images": true, "step": 1}',
        '{"images": 64, "step": 1, "loss": "a"}',
        '{"images": 64, "step": 1, "loss": [1]}',
        '{"images": 1e400, "step": 1}',
        "[" * 100_000,
    ],
)
def test_what_is_no_record_is_left_out(line: str, tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.append({"images": 64, "step": 1, "loss": 0.5})
    with metrics.path.open("a") as file:
        file.write(line + "\n")
    metrics.append({"images": 128, "step": 2, "loss": 0.25})
    assert [record["images"] for record in metrics.records()] == [64, 128]
    metrics.truncate(64)
    assert metrics.records() == [{"images": 64, "step": 1, "loss": 0.5}]
