"""A network's receptive field is traced, not believed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines import card as cards
from pipelines.errors import ModelError
from pipelines.networks import load


@pytest.mark.parametrize("name", [c.name for c in cards.available() if c.network and not c.guided])
def test_the_shipped_networks_need_what_their_cards_say(name: str) -> None:
    load(cards.find(name))


@pytest.mark.parametrize("name", [c.name for c in cards.available() if c.network and not c.guided])
@pytest.mark.parametrize("more", [-1, 1])
def test_a_card_that_states_another_halo_is_refused(name: str, more: int) -> None:
    card = cards.find(name)
    for axis in range(len(card.halo)):
        halo = tuple(h + more * (a == axis) for a, h in enumerate(card.halo))
        with pytest.raises(ModelError, match=r"states (a halo|two halos)"):
            load(replace(card, halo=halo))
