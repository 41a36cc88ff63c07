"""Cards by name."""

from __future__ import annotations

import pytest

from qlora_doctor.errors import UsageError
from qlora_doctor.gather.cards import cards, find_card

GIB = 2**30


@pytest.mark.parametrize(
    ("word", "name", "gib"),
    [
        ("RTX 4060", "NVIDIA GeForce RTX 4060", 8),
        ("rtx4060", "NVIDIA GeForce RTX 4060", 8),
        ("NVIDIA GeForce RTX 3060", "NVIDIA GeForce RTX 3060 12 GB", 12),
        ("RTX 4060 Ti 16GB", "NVIDIA GeForce RTX 4060 Ti 16 GB", 16),
        ("a100-80gb", "NVIDIA A100-SXM4-80GB", 80),
        ("T4", "Tesla T4", 16),
        ("8gb", "a card with 8 GB", 8),
        ("10.5 GB", "a card with 10.5 GB", 10.5),
    ],
)
def test_a_card_is_found_by_its_name_or_size(word: str, name: str, gib: float) -> None:
    card = find_card(word)
    assert (card.name, card.memory) == (name, int(gib * GIB))


def test_another_size_of_the_same_card_is_mentioned() -> None:
    assert find_card("RTX 4060 Ti").note == "also sold with 16 GB"


@pytest.mark.parametrize("word", ["", "RTX 4061", "0gb", "99999gb", "gb"])
def test_a_word_that_means_no_card_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="--gpu"):
        find_card(word)


def test_every_card_has_memory_a_capability_and_a_source() -> None:
    assert len(cards()) > 150
    assert [c.name for c in cards() if not (c.memory > GIB and c.capability and c.source)] == []


def test_every_card_is_found_by_its_own_name() -> None:
    lost = [
        c.name
        for c in cards()
        if find_card(c.name).memory != c.memory or find_card(c.name).name.lower() != c.name.lower()
    ]
    assert lost == []


@pytest.mark.parametrize(
    ("word", "has"), [("RTX 5090", True), ("RTX 3060", True), ("T4", False), ("V100", False), ("8gb", True)]
)
def test_bfloat16_follows_the_capability(word: str, has: bool) -> None:
    assert find_card(word).bfloat16 is has


@pytest.mark.parametrize(
    ("size", "name"), [("8gb", "RTX 4060"), ("12gb", "RTX 3060"), ("16gb", "RTX 4060 Ti 16GB"), ("24gb", "RTX 4090")]
)
def test_a_size_gives_as_much_room_as_a_usual_card_of_that_size(size: str, name: str) -> None:
    assert find_card(size).room == find_card(name).room < find_card(size).memory


def test_a_card_of_a_data_centre_draws_no_desktop() -> None:
    assert find_card("A100-80GB").room == find_card("A100-80GB").memory
