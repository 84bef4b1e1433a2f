"""The model card: what every config.json says comes back, and is written again as it was."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import consistune
from consistune.core.noise import EDM
from consistune.core.objectives import Denoising
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.card import ModelCard, Origin
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP

LEGACY = Path(__file__).parents[1] / "legacy"


def test_a_card_of_version_0_1_0_is_written_as_it_was_read() -> None:
    meta = json.loads((LEGACY / "model" / "config.json").read_text(encoding="utf-8"))["meta"]
    card = ModelCard.from_json(meta)
    assert card.is_diffusion
    assert card.data_sha256 == meta["data_sha256"]
    assert json.dumps(card.to_json()) == json.dumps(meta)


def test_unknown_keys_survive_a_model_folder(tmp_path: Path) -> None:
    meta = {"objective": "consistency", "edges": [], "mid_t": [0.8], "note": {"by": [1, None]}, "empty": None}
    model = EDMPrecond(ResidualMLP((1, 4, 4), width=8, blocks=1))
    model.card = ModelCard.from_json(meta)
    store.save(model, tmp_path / "model")
    back = consistune.load(tmp_path / "model").card
    assert back.to_json() == meta
    assert back.updated(ema={"std": 0.1}).to_json() == {**meta, "ema": {"std": 0.1}}


def test_the_origin_of_weights_comes_back() -> None:
    origin = Origin(path="teacher", new=("a",), dropped=(), provenance={"class": None, "sha256": "0"})
    card = ModelCard(start_from=origin, objective="consistency")
    assert ModelCard.from_json(json.loads(json.dumps(card.to_json()))) == card


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ([1], "meta: "),
        ({"edges": "a"}, "meta.edges: "),
        ({"class_names": [1]}, "meta.class_names.0: "),
        ({"start_from": {"new": []}}, "meta.start_from.path: "),
    ],
)
def test_a_value_of_the_wrong_type_is_named(tmp_path: Path, meta: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelCard.from_json(meta)
    store.save(EDMPrecond(ResidualMLP((1, 4, 4), width=8, blocks=1)), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "meta": meta}))
    with pytest.raises(UserError, match=message):
        consistune.load(tmp_path / "model")


def test_class_names_of_data_become_words() -> None:
    data = SimpleNamespace(name="d", fingerprint="f", class_names=(0, None))
    assert ModelCard().trained(Denoising(EDM()), data, conditional=True).class_names == ("0", "None")
