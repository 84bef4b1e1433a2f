"""The number of processes, and of the images each holds at a time, changes nothing but rounding."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.system.processes import Processes
from consistune.training import checkpoint, sharding
from tests.support.together import DROPOUT, RUNS, SHARDED, STOPPED_AT, half_way, run, together, trainer_of

Found = dict[str, Any]
MICRO = "batch references"
BANK = "estimator.bank=sharded"
SPLITS = sharding.possible()
SPLIT = pytest.mark.skipif(not SPLITS, reason="FSDP2 of this PyTorch cannot leave scalars whole")
SHARED_BANK = {
    "class references": ("class references", (BANK,)),
    "flips": ("flips, hidden labels, clipping", (BANK,)),
    "micro-batches": ("class references", (BANK, "train.microbatch=12")),
    "split weights": ("edm2", (BANK, "train.shard=true")),
}
"""Runs whose reference bank the processes share, and what else is asked of them."""


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Found]]:
    """What two gloo processes make of all runs."""
    shared = {f"shared bank, {name}": (*RUNS[run], *words) for name, (run, words) in SHARED_BANK.items()}
    jobs = {
        **RUNS,
        **{f"sharded {name}": (*RUNS[name], "train.shard=true") for name in SHARDED},
        "micro-batches": (*RUNS[MICRO], "train.microbatch=12"),
        "spread references": (*RUNS["class references"], "estimator.bank=sharded"),
        "dropout": DROPOUT,
        **shared,
    }
    jobs = {name: words for name, words in jobs.items() if SPLITS or "train.shard=true" not in words}
    out = tmp_path_factory.mktemp("together")
    return out, together(2, jobs, half_way(RUNS["edm2"]), out)


@cache
def alone(*words: str) -> Found:
    """What one process makes of a run."""
    return run(words)


def vector(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.double().flatten() for value in state.values()])


def moments(state: Found) -> dict[str, Tensor]:
    """The optimizer's mean squared gradients."""
    return {str(i): entry["exp_avg_sq"] for i, entry in state["optimizer"]["state"].items()}


def assert_alike(found: Found, expected: Found) -> None:
    """To float rounding. A weight that begins at 0 moves by its gradient's sign, so weights as one vector."""
    assert found["losses"] == pytest.approx(expected["losses"], rel=2e-6)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-5)
    x, y = found["state"], expected["state"]
    pairs = [(found["averaged"], expected["averaged"]), (x["model"], y["model"]), (moments(x), moments(y))]
    pairs += zip(x["averages"], y["averages"], strict=True)
    for a, b in pairs:
        assert list(a) == list(b)
        assert float((vector(a) - vector(b)).norm() / vector(b).norm()) < 1e-5


@pytest.mark.parametrize("name", sorted(RUNS))
def test_two_processes_train_as_one(name: str, of_two: tuple[Path, list[Found]]) -> None:
    expected = alone(*RUNS[name])
    assert len(set(expected["losses"])) == 6
    for found in of_two[1]:
        assert_alike(found[name], expected)


@SPLIT
@pytest.mark.parametrize("name", SHARDED)
def test_split_weights_train_as_whole_ones(name: str, of_two: tuple[Path, list[Found]]) -> None:
    expected = alone(*RUNS[name])
    for found in of_two[1]:
        assert_alike(found[f"sharded {name}"], expected)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SPLIT) if "split" in name else name for name in SHARED_BANK]
)
def test_a_bank_that_the_processes_share_is_the_whole_bank(
    name: str, of_two: tuple[Path, list[Found]]
) -> None:
    expected = alone(*RUNS[SHARED_BANK[name][0]])
    for found in of_two[1]:
        assert_alike(found[f"shared bank, {name}"], expected)


def test_micro_batches_are_the_batch(of_two: tuple[Path, list[Found]]) -> None:
    expected = alone(*RUNS[MICRO])
    assert_alike(run((*RUNS[MICRO], "train.microbatch=20")), expected)
    for found in of_two[1]:
        assert_alike(found["micro-batches"], expected)


def test_references_spread_over_the_processes_are_the_same_references(
    of_two: tuple[Path, list[Found]],
) -> None:
    expected = alone(*RUNS["class references"])
    for found in of_two[1]:
        assert_alike(found["spread references"], expected)


def test_a_dropout_mask_belongs_to_its_rows_not_to_its_process(of_two: tuple[Path, list[Found]]) -> None:
    halves = run((*DROPOUT, "train.microbatch=32"))
    for found in of_two[1]:
        assert_alike(found["dropout"], halves)
    assert halves["losses"] != pytest.approx(run(DROPOUT)["losses"], rel=1e-5)


@pytest.mark.parametrize("name", ["edm2", pytest.param("sharded edm2", marks=SPLIT)])
def test_one_process_begins_and_two_go_on(name: str, of_two: tuple[Path, list[Found]]) -> None:
    whole = alone(*RUNS["edm2"])
    expected = {**whole, "losses": whole["losses"][3:], "norms": whole["norms"][3:]}
    for found in of_two[1]:
        assert_alike(found[f"continued {name}"], expected)


@SPLIT
def test_one_process_goes_on_where_two_split_ones_stopped(of_two: tuple[Path, list[Found]]) -> None:
    trainer = trainer_of(RUNS["edm2"])
    state = of_two[1][0]["sharded edm2"]["state"]
    trainer.load_state_dict(state)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, state["model"][name])


def test_a_signal_to_one_stops_all_in_the_same_step(of_two: tuple[Path, list[Found]]) -> None:
    out, found = of_two
    assert [f["interrupted"] for f in found] == 2 * [{"steps": STOPPED_AT, "status": 143}]
    assert [checkpoint.step_of(p) for p in checkpoint.paths(out / "run" / "checkpoints")] == [0, STOPPED_AT]


@pytest.mark.parametrize("how", ["skipping", pytest.param("skipping split", marks=SPLIT)])
def test_all_processes_skip_a_step_that_is_bad_on_one(how: str, of_two: tuple[Path, list[Found]]) -> None:
    one, two = (found[how] for found in of_two[1])
    assert one["finite"] == two["finite"] == [True, True, False, True, True, True]
    assert torch.equal(vector(one["model"]), vector(two["model"]))
    assert bool(vector(one["model"]).isfinite().all())


def test_split_weights_are_refused_where_scalars_cannot_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, *, mesh: module)
    with pytest.raises(UserError, match="scalars cannot be split"):
        trainer_of((*RUNS["edm2"], "train.shard=true"), Processes(torch.device("cpu"), 0, 2))


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="64 images do not divide among 3 processes"):
        trainer_of(RUNS["edm2"], Processes(torch.device("cpu"), 0, 3))


@pytest.mark.parametrize(("count", "most"), [(1, None), (1, 5), (2, None), (4, 3), (2, 100)])
def test_the_parts_of_all_processes_are_the_batch(count: int, most: int | None) -> None:
    parts = [p for rank in range(count) for p in Processes(torch.device("cpu"), rank, count).parts(24, most)]
    rows = [row for part in parts for row in range(24)[part]]
    assert rows == list(range(24))
    assert most is None or max(p.stop - p.start for p in parts) <= most
