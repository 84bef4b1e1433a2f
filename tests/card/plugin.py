"""Run tests on the pretended card: python -m pytest -p tests.card.plugin -m gpu"""

from collections.abc import Iterator

import pytest

from tests.card import pretended

pretended.install()


@pytest.fixture(autouse=True)
def pretended_card() -> Iterator[pretended.Card]:
    with pretended.card() as card:
        yield card
