"""The Hub: what is uploaded, what is loaded, and one line where it cannot be reached."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from consistune.errors import UserError
from consistune.models import load
from consistune.nn import hub, store
from consistune.nn.precond import Preconditioned


@pytest.fixture
def model() -> Preconditioned:
    torch.manual_seed(0)
    network = {"kind": "mlp", "image_shape": (1, 4, 4), "num_classes": 2, "width": 8, "blocks": 1}
    made = store.build({"network": network, "precond": {"kind": "edm"}})
    made.card = made.card.updated(objective="consistency", data="my|set", class_names=("a<b", "c"))
    return made


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub that is a folder, behind the library's own functions."""
    root = tmp_path / "hub"

    def create_repo(self: Any, repo_id: str, **options: Any) -> None:
        (root / repo_id).mkdir(parents=True)

    def upload_folder(self: Any, *, repo_id: str, folder_path: Path, **options: Any) -> None:
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **options: str(root / repo_id))
    return root


def test_a_model_comes_back_from_the_hub(model: Preconditioned, local_hub: Path) -> None:
    assert model.push_to_hub("me/mine", license="apache-2.0").endswith("/me/mine")
    assert {path.name for path in (local_hub / "me/mine").iterdir()} == {
        store.CONFIG,
        store.WEIGHTS,
        "README.md",
    }
    again = load("hf://me/mine")
    x, labels = torch.ones(2, 1, 4, 4), torch.tensor([0, 1])
    assert torch.equal(again(x, 1.0, labels), model.eval()(x, 1.0, labels))


def test_the_readme_has_the_hubs_header_and_escapes_foreign_text(model: Preconditioned) -> None:
    text = hub.readme(model, "me/mine", "apache-2.0")
    assert text.startswith("---\nlicense: apache-2.0\nlibrary_name: consistune\n")
    assert "my\\|set" in text
    assert "a&lt;b, c" in text
    assert 'consistune.load("hf://me/mine")' in text


@pytest.mark.parametrize("name", ["hf://mine", "hf://a/b/c"])
def test_a_name_that_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="write hf://user/name"):
        load(name)


def test_a_hub_that_cannot_be_reached_is_one_line(
    model: Preconditioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", _no_route)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _no_route)
    for action in (lambda: model.push_to_hub("me/mine"), lambda: load("hf://me/mine")):
        with pytest.raises(UserError, match="cannot be reached") as caught:
            action()
        assert "\n" not in str(caught.value)


def test_a_refused_name_is_one_line(model: Preconditioned) -> None:
    with pytest.raises(UserError, match="the Hub refuses"):
        model.push_to_hub("me/not valid")


def _no_route(*args: Any, **options: Any) -> None:
    raise ConnectionError("no route")
