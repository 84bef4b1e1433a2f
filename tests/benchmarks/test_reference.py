"""The reference pages are what the code says; and each key of each section has a meaning and a type."""

from pathlib import Path

import pytest

from consistune.recipe.keys import MEANINGS, OWN, all_sections, keys_of, word_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_pages_of_the_reference_are_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import reference

    for path, text in reference.pages().items():
        assert path.read_text(encoding="utf-8") == text.rstrip() + "\n", (
            f"{path.name} is old: python benchmarks/reference.py"
        )


def test_every_key_is_explained_in_a_short_line_of_its_own_words() -> None:
    for _, part in all_sections():
        for key in keys_of(part):
            assert len(key.meaning) > 3, (word_of(part), key.name)
            assert len(key.meaning) <= 160, (word_of(part), key.name)
            assert key.type != "value" or key.name == "config", (word_of(part), key.name)


def test_no_explanation_is_of_a_key_that_does_not_exist() -> None:
    keys = {(word_of(part), name) for _, part in all_sections() for name in part.model_fields}
    assert keys >= OWN.keys()
    assert {name for _, name in keys} >= MEANINGS.keys()
