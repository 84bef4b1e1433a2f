"""What tests of the pretended card share."""

import pytest

from tests.card import pretended


@pytest.fixture
def card() -> pretended.Card:
    """The pretended card, counting from here on."""
    if pretended.Card.current is None:
        pytest.skip("counts need the pretended card: -p tests.card.plugin")
    return pretended.Card.current
