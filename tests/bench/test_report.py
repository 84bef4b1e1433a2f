"""`consistune bench` end to end on a network so small that it takes seconds."""

import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from consistune.bench import sampling
from consistune.bench.report import NOT_RUN, Line, Settings, in_columns, lines
from consistune.bench.timing import Timing, alternate, ratio
from consistune.bench.training import checked
from consistune.bench.workload import Workload
from consistune.nn.presets import PRESETS
from consistune.system.host import peak_bytes

TINY = {
    "network": {
        "kind": "song",
        "image_shape": (3, 16, 16),
        "model_channels": 16,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "attn_resolutions": (8,),
    },
    "precond": {"kind": "edm"},
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)


def test_every_section_has_its_lines_and_the_card_says_that_there_is_none(monkeypatch) -> None:
    monkeypatch.setattr(sampling, "PEER_CHANNELS", (32, 32, 32))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = Settings("tiny", 4, 1, 50, (2,), memory_batch=None, startup_rounds=None)
    table = list(lines(settings))
    assert list(dict.fromkeys(line.section for line in table)) == [
        "training step", "target", "sampling", "card",
    ]  # fmt: skip
    assert all(line.value == NOT_RUN for line in table if line.section == "card")
    assert {"section", "what", "value", "against"} == set(asdict(table[0]))


def test_the_table_names_each_section_once_in_columns_of_one_width() -> None:
    table = [Line("a", "one", "1"), Line("a", "three", "22", "x"), Line("b", "four", "333")]
    assert in_columns(table).split("\n") == ["a  one    1", "   three  22   x", "b  four   333"]
    assert in_columns(table[:1]) == "a  one  1"


def test_a_step_that_computes_something_else_is_not_timed(monkeypatch) -> None:
    monkeypatch.setattr("consistune.bench.plain.silu", torch.relu)
    with pytest.raises(RuntimeError, match="not the plain step's function"):
        checked(Workload("tiny", 4), "fp32")


def test_images_that_differ_are_not_timed() -> None:
    draws = {"one": lambda n: torch.zeros(n, 3, 8, 8), "other": lambda n: torch.full((n, 3, 8, 8), 9)}
    with pytest.raises(RuntimeError, match="not the same images"):
        sampling.checked(draws)


def test_turns_alternate_and_the_first_does_not_count() -> None:
    order: list[str] = []
    times = alternate({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2, warmup=1)
    assert order == list("ababab")
    assert all(len(timing.seconds) == 2 for timing in times.values())


def test_a_ratio_compares_each_round_with_itself() -> None:
    slow, fast = Timing((2.0, 30.0, 4.0)), Timing((1.0, 10.0, 2.0))
    assert (ratio(slow, fast).median, ratio(slow, fast).low, ratio(slow, fast).high) == (2.0, 2.0, 3.0)


def test_a_process_has_its_own_peak_not_its_parents() -> None:
    held = torch.ones(1 << 28)  # 1 GiB; a CUDA build of PyTorch alone takes more than half of that
    assert peak_bytes() >= held.nbytes
    code = "from consistune.system.host import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < held.nbytes
