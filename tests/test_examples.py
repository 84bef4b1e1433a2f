"""docs/examples: the web service gives the model's pictures, the cluster scripts start what they say."""

import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from consistune.cli.main import app
from consistune.models import sample
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.recipe import shipped_recipes

DOCS = Path(__file__).resolve().parents[1] / "docs"
EXAMPLES = DOCS / "examples"


@pytest.fixture(scope="module")
def model() -> EDMPrecond:
    torch.manual_seed(0)
    model = EDMPrecond(ResidualMLP((1, 8, 8), num_classes=3, width=8, blocks=1)).eval()
    model.card = ModelCard(objective="consistency", mid_t=(0.8,), class_names=("a", "b", "c"))
    return model


@pytest.fixture(scope="module")
def address(model: EDMPrecond, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = model.save(tmp_path_factory.mktemp("service") / "model")
    spec = importlib.util.spec_from_file_location("service", EXAMPLES / "service.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.make_server(str(folder), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def get(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
        return answer.read()


def test_the_service_gives_the_models_pictures(address: str, model: EDMPrecond) -> None:
    assert json.loads(get(address))["classes"] == ["a", "b", "c"]
    for query, expected in (
        ("", sample(model, [0], 1)),
        ("?seed=7&label=2&steps=2", sample(model, [7], 2, 2)),
    ):
        png = np.array(Image.open(io.BytesIO(get(f"{address}/picture{query}"))))
        assert np.array_equal(png, expected[0, 0].numpy())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/picture?seed=x", 400),
        ("/picture?label=3", 400),
        ("/picture?label=-1", 400),
        ("/picture?steps=0", 400),
        ("/picture?steps=3", 400),  # the model knows one noise level
        ("/picture?sed=1", 400),
        ("/picture?seed", 400),
        ("/other", 404),
    ],
)
def test_the_service_refuses_what_it_cannot_draw(address: str, path: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(address + path)
    assert refused.value.code == status


def started(script: str, folder: Path, *arguments: str, **environment: str) -> list[str]:
    """The words of the consistune command that a script starts, with stand-ins for the cluster's programs."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in {
        "srun": 'exec "$@"',
        "scontrol": "echo first; echo second",
        "torchrun": 'while [ "$1" != consistune ]; do shift; done; exec "$@"',
        "consistune": "printf '%q ' consistune \"$@\"",
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", str(EXAMPLES / script), *arguments],
        cwd=folder,
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def parse(words: list[str]) -> dict[str, object]:
    """The values of a command's parameters; the parser refuses what it does not know."""
    command = typer.main.get_command(app).commands[words[1]]
    return command.make_context(words[1], words[2:]).params


def test_jobs_of_an_array_draw_seeds_that_do_not_overlap(tmp_path: Path) -> None:
    array = re.search(r"--array=0-(\d+)", (EXAMPLES / "sample.slurm").read_text(encoding="utf-8"))
    last = -1
    for job in range(int(array[1]) + 1):
        given = parse(started("sample.slurm", tmp_path, "emoji64", SLURM_ARRAY_TASK_ID=str(job)))
        low, high = map(int, given["seeds"].split("-"))
        assert (low, high) == (last + 1, last + 10_000)
        assert given["out"] == Path(f"samples/part-{job}.npz")
        last = high


def test_a_training_on_several_nodes_goes_on_where_it_stopped(tmp_path: Path) -> None:
    cluster = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    first = parse(started("train.slurm", tmp_path, **cluster))
    assert first["recipe"] in shipped_recipes()
    (tmp_path / first["out"] / "checkpoints").mkdir(parents=True)
    again = parse(started("train.slurm", tmp_path, **cluster))
    assert (again["recipe"], again["resume"]) == (str(first["out"]), True)


def test_the_page_shows_the_script() -> None:
    script = (EXAMPLES / "train.slurm").read_text(encoding="utf-8")
    assert f"```bash\n{script}```" in (DOCS / "cluster.md").read_text(encoding="utf-8")
