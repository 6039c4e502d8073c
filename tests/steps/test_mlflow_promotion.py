"""Promotion, rollback and history on MLflow: on a file of SQLite and on a server on PostgreSQL, with faults."""

import threading
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from proxykd.exceptions import PromotionError, TrackingError
from steps.adapters import mlflow_promotion as promotion
from steps.adapters import mlflow_promotion_log
from steps.adapters.mlflow_promotion_log import ANY, NOBODY, PromotionLog
from steps.adapters.mlflow_tracking import connect
from tests.support.mlflow_servers import Fault, Trouble

pytestmark = [
    pytest.mark.integration,
    # MLflow's own use of others: not ours to mend.
    pytest.mark.filterwarnings("default"),
]

NOBODYS = {"champion": None, "previous-champion": None}


def _model(num_versions: int = 4) -> str:
    """A registered model of its own with versions that hold nothing."""
    client, name = connect(), f"student-{uuid4().hex[:8]}"
    client.create_registered_model(name)
    experiment = client.get_experiment_by_name("Default").experiment_id
    for number in range(num_versions):
        logged = client.create_logged_model(experiment, name="student", tags={"number": str(number)})
        client.create_model_version(name, f"models:/{logged.model_id}", model_id=logged.model_id)
    return name


@pytest.fixture
def name(registry_store: str) -> str:
    return _model()


def aliases(name: str) -> dict[str, str | None]:
    found = connect().get_registered_model(name).aliases
    return {**NOBODYS, **{alias: str(version) for alias, version in found.items()}}


def promote(name: str, *versions: str) -> None:
    for version in versions:
        promotion.promote(name, version)


def test_promotions_and_rollbacks_move_both_aliases_and_leave_a_trail(name: str) -> None:
    promotion.promote(name, "1", expected=NOBODY, reason="first", by="a robot")
    assert aliases(name) == {"champion": "1", "previous-champion": None}
    promote(name, "2", "3")
    assert aliases(name) == {"champion": "3", "previous-champion": "2"}
    assert promotion.rollback(name, reason="it rhymes").standing.champion == "2"
    assert aliases(name) == {"champion": "2", "previous-champion": "1"}
    promotion.rollback(name)
    assert aliases(name) == {"champion": "1", "previous-champion": None}
    with pytest.raises(PromotionError, match="found none in its history"):
        promotion.rollback(name)
    found = promotion.history(name)
    assert [(entry.action, entry.replaced, entry.version) for entry in found.entries] == [
        ("rollback", "2", "1"),
        ("rollback", "3", "2"),
        ("promote", "2", "3"),
        ("promote", "1", "2"),
        ("promote", None, "1"),
    ]
    assert (found.entries[-1].by, found.entries[-1].reason, found.entries[1].reason) == (
        "a robot",
        "first",
        "it rhymes",
    )
    assert found.is_settled
    assert found.champion == found.standing.champion == "1"


def test_the_champion_again_is_no_promotion(name: str) -> None:
    promote(name, "1")
    assert not promotion.promote(name, "1").is_new
    assert len(promotion.history(name).entries) == 1


@pytest.mark.parametrize("expected", ["1", "4", NOBODY])
def test_another_champion_than_expected_is_refused(name: str, expected: str) -> None:
    promote(name, "1", "2")
    before = aliases(name)
    with pytest.raises(PromotionError, match=f"expected champion {expected} of {name}, found version 2"):
        promotion.promote(name, "3", expected=expected)
    with pytest.raises(PromotionError, match="nothing was changed"):
        promotion.rollback(name, expected=expected)
    assert aliases(name) == before
    assert len(promotion.history(name).entries) == 2


@pytest.mark.parametrize("version", ["9", "x"])
def test_a_version_that_is_not_there_is_refused(name: str, version: str) -> None:
    with pytest.raises(PromotionError, match="found none"):
        promotion.promote(name, version)
    with pytest.raises(PromotionError, match="expected a registered model 'nosuch'"):
        promotion.promote("nosuch", version)
    with pytest.raises(PromotionError, match="expected a registered model 'nosuch'"):
        promotion.rollback("nosuch")
    assert aliases(name) == NOBODYS


def test_of_concurrent_promoters_exactly_one_wins_and_the_others_are_told(name: str) -> None:
    promote(name, "1")
    champion = "1"
    for _ in range(5):
        rivals, gate, told = [v for v in "1234" if v != champion], threading.Barrier(3), {}

        def attempt(version: str, expected: str, gate: threading.Barrier, told: dict[str, Any]) -> None:
            gate.wait()
            try:
                told[version] = promotion.promote(name, version, expected=expected)
            except PromotionError as error:
                told[version] = str(error)

        threads = [threading.Thread(target=attempt, args=(version, champion, gate, told)) for version in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [version for version, found in told.items() if not isinstance(found, str)]
        assert len(winners) == 1, told
        assert all("found version" in text or "came second" in text for text in told.values() if isinstance(text, str))
        assert aliases(name) == {"champion": winners[0], "previous-champion": champion}
        (champion,) = winners


def test_the_same_attempt_again_never_promotes_twice(name: str) -> None:
    promotion.promote(name, "1", intent="attempt 1")
    promote(name, "2")
    assert promotion.promote(name, "1", intent="attempt 1").standing.champion == "2"
    assert aliases(name) == {"champion": "2", "previous-champion": "1"}
    assert len(promotion.history(name).entries) == 2


def test_an_alias_that_was_moved_by_other_means_is_not_overwritten_unasked(name: str) -> None:
    promote(name, "1", "2")
    connect().set_registered_model_alias(name, "champion", "4")
    with pytest.raises(PromotionError, match="somebody moved the alias"):
        promotion.promote(name, "3")
    with pytest.raises(PromotionError, match="--expect-champion 4"):
        promotion.rollback(name)
    assert aliases(name) == {"champion": "4", "previous-champion": "1"}
    assert promotion.settle(name) == "4"
    promotion.promote(name, "3", expected="4")
    assert aliases(name) == {"champion": "3", "previous-champion": "4"}


@pytest.mark.parametrize("moved_to", ["4", None])
def test_a_rollback_of_an_alias_that_was_moved_by_other_means_goes_back_to_the_champion_by_the_history(
    name: str, moved_to: str | None
) -> None:
    promote(name, "1", "2")
    if moved_to is None:
        connect().delete_registered_model_alias(name, "champion")
    else:
        connect().set_registered_model_alias(name, "champion", moved_to)
    assert promotion.rollback(name, expected=moved_to or NOBODY).standing.champion == "2"
    assert aliases(name) == {"champion": "2", "previous-champion": "1"}
    assert promotion.rollback(name).standing.champion == "1"


def test_a_deleted_champion_is_said_and_gone_back_from(name: str) -> None:
    promote(name, "1", "2", "3")
    client = connect()
    client.delete_model_version(name, "3")
    client.delete_model_version(name, "2")
    for attempt in (lambda: promotion.promote(name, "4"), lambda: promotion.settle(name)):
        with pytest.raises(PromotionError, match="version 3, was deleted"):
            attempt()
    assert aliases(name)["champion"] is None
    assert promotion.rollback(name).standing.champion == "1"  # 2 is passed over
    assert aliases(name) == {"champion": "1", "previous-champion": None}


def test_a_successor_of_a_deleted_champion_can_be_named(name: str) -> None:
    promote(name, "1")
    connect().delete_model_version(name, "1")
    promotion.promote(name, "2", expected=NOBODY)
    assert aliases(name) == {"champion": "2", "previous-champion": None}


def _begin(name: str, version: str) -> None:
    """As somebody who dies right after the first step."""
    log = PromotionLog(connect(), name)
    view, champion = log.read(), log.alias("champion")
    entry = mlflow_promotion_log.Entry(0, "dead", "promote", version, view.standing.number, champion)
    log.append(entry, source=f"models:/{name}/{version}")


def test_whoever_comes_next_completes_what_a_dead_promoter_began(name: str) -> None:
    promote(name, "1")
    _begin(name, "2")
    assert aliases(name)["champion"] == "1"
    assert not promotion.history(name).is_settled
    assert promotion.settle(name, patience_s=0.01) == "2"
    assert aliases(name) == {"champion": "2", "previous-champion": "1"}
    _begin(name, "3")
    promotion.promote(name, "4", patience_s=0.01)
    assert aliases(name) == {"champion": "4", "previous-champion": "3"}


def test_a_promotion_whose_version_is_deleted_meanwhile_is_undone(name: str) -> None:
    promote(name, "1", "2")
    _begin(name, "3")
    connect().delete_model_version(name, "3")
    assert promotion.settle(name, patience_s=0.01) == "2"
    assert aliases(name) == {"champion": "2", "previous-champion": "1"}
    with pytest.raises(PromotionError, match="was deleted while it was promoted"):
        PromotionLog(connect(), name).finish("dead")


def test_a_first_promotion_whose_version_is_deleted_meanwhile_leaves_nobody(name: str) -> None:
    _begin(name, "1")
    connect().delete_model_version(name, "1")
    assert promotion.settle(name, patience_s=0.01) is None
    assert aliases(name) == NOBODYS
    promote(name, "2")
    assert aliases(name)["champion"] == "2"


def test_who_was_only_slow_puts_right_what_he_overwrites(name: str) -> None:
    promote(name, "1")
    _begin(name, "2")
    slow = PromotionLog(connect(), name)
    seen = slow.read()
    promotion.promote(name, "3", patience_s=0.01)
    slow.apply(seen)  # writes 2, sees that it is out of date
    assert aliases(name) == {"champion": "3", "previous-champion": "2"}


def test_no_read_grows_with_the_log(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_promotion_log, "_PAGE", 2)
    promote(name, *"12341234")
    assert len(PromotionLog(connect(), name).read().entries) == 2
    found = promotion.history(name, limit=5)
    assert [entry.version for entry in found.entries] == list("43214")
    assert found.in_effect >= {4, 5, 6, 7, 8}
    assert promotion.rollback(name).standing.champion == "3"


def test_long_texts_are_cut_and_foreign_versions_of_the_log_ignored(name: str) -> None:
    promotion.promote(name, "1", reason="x" * 50_000, by="y" * 999)
    connect().create_model_version(f"{name}.promotions", f"models:/{name}/1")
    (entry,) = promotion.history(name).entries
    assert (len(entry.reason), len(entry.by)) == (2000, 200)
    promote(name, "2")
    assert aliases(name)["champion"] == "2"


FAULTS: list[Fault] = ["500 before", "500 after", "cut before", "cut after"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_a_server_that_fails_at_any_write_leaves_a_promotion_that_the_same_call_completes(
    trouble: Trouble, fault: Fault, action: str
) -> None:
    name = _model()
    promote(name, "1", "2")
    act: Callable[[], Any] = lambda: promotion.promote(name, "3", expected=ANY, intent=intent, patience_s=0.05)  # noqa: E731
    if action == "rollback":
        act = lambda: promotion.rollback(name, patience_s=0.05)  # noqa: E731
    for at in range(1, 5):
        before, intent = promotion.history(name, limit=1000), uuid4().hex
        trouble.heal()
        trouble.at = {at: fault}
        with pytest.raises(TrackingError, match="run the same command again"):
            act()
        trouble.heal()
        begun = promotion.settle(name, patience_s=0.05)
        target = "3" if action == "promote" else "1"
        if begun != target:
            assert begun == before.champion
            act()
        after = promotion.history(name, limit=1000)
        assert aliases(name) == {"champion": target, "previous-champion": after.standing.previous}
        assert len(after.in_effect) == len(before.in_effect) + 1
        if action == "promote":
            promotion.rollback(name)
        else:
            promote(name, "2")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_that_passes_is_not_noticed(trouble: Trouble, fault: Fault) -> None:
    name = _model()
    promote(name, "1")
    for at, version in zip(range(1, 5), "2323", strict=True):
        trouble.heal()
        trouble.at, trouble.num_times = {at: fault}, 1
        promote(name, version)
        assert aliases(name)["champion"] == version
    trouble.heal()
    found = promotion.history(name)
    assert len(found.in_effect) == 5


def test_a_server_that_is_gone_is_said(trouble: Trouble) -> None:
    name = _model()
    trouble.is_down = True
    with pytest.raises(TrackingError, match="run the same command again"):
        promotion.promote(name, "1")
    trouble.heal()
    assert aliases(name) == NOBODYS
