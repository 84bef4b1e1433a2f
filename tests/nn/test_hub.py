"""The Hub: what is uploaded, what is loaded, and one line where it cannot be reached."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image

from consistune.errors import UserError
from consistune.models import load
from consistune.nn import hub, store
from consistune.nn.precond import EDMPrecond, Preconditioned
from tests.support.hub import LocalHub, local_hub


@pytest.fixture
def model() -> Preconditioned:
    torch.manual_seed(0)
    network = {"kind": "mlp", "image_shape": (1, 4, 4), "num_classes": 2, "width": 8, "blocks": 1}
    made = store.build({"network": network, "precond": {"kind": "edm"}})
    made.card = made.card.updated(objective="consistency", data="my|set", class_names=("a<b", "c"))
    return made


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub on this machine, in the place of the real one; huggingface_hub itself speaks with it."""
    with local_hub() as hub_here:
        monkeypatch.setattr(constants, "ENDPOINT", hub_here.address)
        template = hub_here.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub_here


def test_a_model_comes_back_from_the_hub(model: Preconditioned, server: LocalHub, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "sheet.png")
    facts = {"distances": {"fd-classifier_percent": 12.34}, "command": "consistune train x"}
    address = model.push_to_hub("me/mine", license="mit", pictures=tmp_path / "sheet.png", **facts)
    assert address == f"{server.address}/me/mine"
    files = server.repos["me/mine"]
    assert {store.CONFIG, store.WEIGHTS, "README.md", hub.PICTURES} <= files.keys()
    assert files[hub.PICTURES] == (tmp_path / "sheet.png").read_bytes()
    text = files["README.md"].decode()
    assert f"![Samples]({hub.PICTURES})" in text
    read = ModelCard(text).data
    assert (read.license, read.library_name) == ("mit", "consistune")
    assert [result.metric_value for result in read.eval_results] == [12.34]
    x, labels = torch.ones(2, 1, 4, 4), torch.tensor([0, 1])
    again = (
        load("hf://me/mine"),
        load(Path("hf://me/mine@main")),
        EDMPrecond.from_pretrained("me/mine", "main"),
    )
    for found in again:
        assert torch.equal(found(x, 1.0, labels), model.eval()(x, 1.0, labels))


def test_a_name_that_is_taken_is_refused_unless_an_update_is_asked_for(
    model: Preconditioned, server: LocalHub
) -> None:
    server.repos["me/mine"] = {"README.md": b"something else"}
    with pytest.raises(UserError, match=r"me/mine: the name is taken; .*update=True"):
        model.push_to_hub("me/mine")
    assert server.repos["me/mine"] == {"README.md": b"something else"}
    model.push_to_hub("me/mine", update=True)
    assert store.WEIGHTS in server.repos["me/mine"]


def test_the_readme_has_the_hubs_header_and_escapes_foreign_text(model: Preconditioned) -> None:
    text = hub.readme(model, "me/mine", "apache-2.0", command="train `x`")
    assert ModelCard(text).data.license == "apache-2.0"
    assert "my\\|set" in text
    assert "a&lt;b, c" in text
    assert "Made by `train 'x'`." in text
    assert 'consistune.load("hf://me/mine")' in text


@pytest.mark.parametrize("name", ["hf://mine", "hf://a/b/c"])
def test_a_name_that_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="write hf://user/name"):
        load(name)


@pytest.mark.parametrize(
    ("refusal", "pushed", "loaded"),
    [
        ((401, "RepoNotFound"), "no such repository", "no such repository"),
        ((403, "GatedRepo"), "is gated", "is gated; ask for access"),
        ((403, "Forbidden"), "denies access", "denies access"),
        ((404, "RevisionNotFound"), "no such revision", "no such revision"),
        ((400, "bad name"), "the Hub refuses: ", "the Hub refuses: "),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    refusal: tuple[int, str], pushed: str, loaded: str, model: Preconditioned, server: LocalHub
) -> None:
    server.refusal = refusal
    for said, action in (
        (pushed, lambda: model.push_to_hub("me/mine")),
        (loaded, lambda: load("hf://me/mine")),
    ):
        with pytest.raises(UserError, match=f"me/mine: .*{said}") as caught:
            action()
        assert "\n" not in str(caught.value)


def test_a_repository_without_a_model_and_one_that_is_not_there(server: LocalHub) -> None:
    server.repos["me/words"] = {"README.md": b"no model"}
    for name in ("me/words", "me/none", "me/words@never"):
        with pytest.raises(UserError) as caught:
            load(f"hf://{name}")
        assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_one_line(
    model: Preconditioned, server: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server at the address; then huggingface_hub's own switch for working offline."""
    with local_hub() as gone:
        address = gone.address
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    actions = (lambda: model.push_to_hub("me/mine"), lambda: load("hf://me/mine"))
    for action in actions:
        with pytest.raises(UserError, match="cannot be reached") as caught:
            action()
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for action in actions:
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
            action()


def test_what_cannot_be_uploaded_is_refused_before_the_hub_is_asked(
    model: Preconditioned, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="the Hub refuses"):
        model.push_to_hub("me/not valid")
    (tmp_path / "x.png").write_text("no picture")
    for path in (tmp_path / "x.png", tmp_path / "none.png", tmp_path):
        with pytest.raises(UserError, match="is no PNG file"):
            model.push_to_hub("me/mine", pictures=path)


@pytest.mark.parametrize(
    ("name", "revision", "loaded"),
    [
        ("user/name", None, "hf://user/name"),
        ("here/name", None, "here/name"),
        ("here/name", "main", "hf://here/name@main"),
        ("hf://user/name", None, "hf://user/name"),
        ("hf://user/name", "main", "hf://user/name@main"),
        ("emoji64", None, "emoji64"),
        ("a/b/c", None, "a/b/c"),
    ],
)
def test_names_of_the_hub_and_of_folders_are_told_apart(
    name: str, revision: str | None, loaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("consistune.models.load", lambda path: path)
    assert Preconditioned.from_pretrained(name, revision) == loaded


def test_an_empty_path_is_no_model() -> None:
    with pytest.raises(UserError, match="model: is empty"):
        load("")
