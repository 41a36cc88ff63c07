"""The whole matrix of misbehaviours against `check`: the right cause is named, and nobody waits for a server that hangs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qlora_doctor.examine import Question, examine
from tests.hub_server import MISBEHAVIOURS, HubServer, hub_server
from tests.models.conftest import NAME
from tests.models.matrix import MATRIX, Row


@pytest.fixture
def storage(hub: HubServer) -> Iterator[HubServer]:
    with hub_server(hub.root) as server:
        yield server


@pytest.mark.parametrize("row", MATRIX, ids=lambda r: f"{r.wrong}-{r.where}")
def test_each_misbehaviour_is_named_by_its_cause_and_never_waited_for(
    row: Row, hub: HubServer, storage: HubServer
) -> None:
    row.arrange(hub, storage)
    answer = examine(Question(model=NAME, select=("QD202", "QD205", "QD207", "QD215", "QD314", "QD317")))
    found = {f.code: f.text for f in answer.verdict.findings}
    assert list(found) == [row.code]
    assert row.words in found[row.code]
    assert (hub.outlasted, storage.outlasted) == (0, 0)
    assert not {o.code for o in answer.verdict.outcomes if o.outcome == "crashed"}


def test_after_each_misbehaviour_a_sound_hub_is_believed(hub: HubServer, storage: HubServer) -> None:
    for row in MATRIX:
        if row.wrong not in ("hang", "drip"):
            row.arrange(hub, storage)
            examine(Question(model=NAME, select=("QD202", "QD207", "QD215")))
        hub.misbehave = storage.misbehave = hub.only = ""
        hub.storage = storage.address
    answer = examine(Question(model=NAME, select=("QD202", "QD207", "QD215", "QD314", "QD317")))
    assert {o.outcome for o in answer.verdict.outcomes} == {"ok"}


def test_the_matrix_holds_every_misbehaviour_of_the_server() -> None:
    assert {r.wrong for r in MATRIX} == set(MISBEHAVIOURS)
