"""The metrics file of a run: what was appended comes back, whole records only."""

from pathlib import Path

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
