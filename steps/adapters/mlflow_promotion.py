"""Who is champion: promotion, rollback and history on an MLflow registry, safe against races, crashes and bystanders.

How is told in ``steps.adapters.mlflow_promotion_log``. An alias that does not point where the history says was moved by
somebody else, or went with a version that was deleted: nothing is written until the caller says which champion he
expects.
"""

from dataclasses import dataclass

from proxykd.exceptions import PromotionError
from steps.adapters.mlflow_promotion_log import ANY, CHAMPION, PATIENCE_S, Promoted, PromotionLog
from steps.adapters.mlflow_tracking import connect, tracking_errors
from steps.adapters.promotion_log import Entry, Standing


@dataclass(frozen=True, slots=True)
class History:
    """The trail of a registered model.

    Attributes:
        entries: The latest ones, the latest first.
        in_effect: Numbers of those that took effect.
        standing: Who is champion by the log.
        champion: Where the alias points; None = nowhere.
        is_settled: Whether the aliases have been set as the log says.
    """

    entries: tuple[Entry, ...]
    in_effect: frozenset[int]
    standing: Standing
    champion: str | None
    is_settled: bool


@tracking_errors()
def promote(
    model_name: str,
    version: str,
    *,
    expected: str = ANY,
    reason: str = "",
    by: str = "",
    intent: str = "",
    patience_s: float = PATIENCE_S,
) -> Promoted:
    """Make a version the champion, if the champion is the expected one.

    Args:
        model_name: Registered model.
        version: The new champion.
        expected: Version that the alias must point to now, ``NOBODY`` or ``ANY``. Naming one also accepts an alias
            that somebody moved by other means.
        reason: Why; kept in the trail.
        by: Who; by default the user and the machine.
        intent: Names the attempt: the same one again completes it, and never promotes twice.
        patience_s: Seconds that another promotion under way is waited for.

    Raises:
        PromotionError: if the champion is another one, another promotion came first, or there is no such version; the
            aliases are as they were.
        TrackingError: if MLflow refuses or does not answer; the same call completes what was begun.
    """
    log = PromotionLog(connect(), model_name)
    log.require_version(version)
    if intent and (done := log.finish(intent)) is not None:
        return done
    standing, champion = log.settled(patience_s), log.alias(CHAMPION)
    if champion == version == standing.champion:
        return Promoted(standing, standing.previous, is_new=False)
    log.check(champion, standing, expected)
    return log.write("promote", version, standing, champion, reason, by, intent)


@tracking_errors()
def rollback(
    model_name: str, *, expected: str = ANY, reason: str = "", by: str = "", patience_s: float = PATIENCE_S
) -> Promoted:
    """Make the champion before the present one champion again; once more goes one further back.

    Former champions that were deleted are passed over, and a champion that was deleted is one to go back from. Where
    the alias was moved by other means, the champion before is the one that the history knows.

    Args:
        model_name: Registered model.
        expected: As for ``promote``.
        reason: Why; kept in the trail.
        by: Who; by default the user and the machine.
        patience_s: As for ``promote``.

    Raises:
        PromotionError: if there is no such model or none to go back to, or as for ``promote``.
        TrackingError: if MLflow refuses or does not answer.
    """
    log = PromotionLog(connect(), model_name)
    log.require_model()
    standing, champion = log.settled(patience_s), log.alias(CHAMPION)
    is_deleted = champion is None and standing.champion is not None and not log.has_version(standing.champion)
    if not (is_deleted and expected in (ANY, standing.champion)):
        log.check(champion, standing, expected)
    was_moved = champion != standing.champion and standing.champion is not None
    line = (*standing.line, standing.champion) if was_moved else standing.line
    former = next((version for version in reversed(line) if log.has_version(str(version))), None)
    if former is None:
        raise PromotionError(
            f"expected a former champion of {model_name} to go back to, found none in its history; promote a version "
            f"with `proxykd promote {model_name} VERSION`"
        )
    return log.write("rollback", former, standing, champion, reason, by, "")


@tracking_errors()
def history(model_name: str, *, limit: int = 20) -> History:
    """The latest entries of the trail, and where the alias points now; changes nothing.

    Raises:
        PromotionError: if there is no such model.
        TrackingError: if MLflow refuses or does not answer.
    """
    log = PromotionLog(connect(), model_name)
    log.require_model()
    view = log.read(at_least=limit)
    return History(
        tuple(reversed(view.entries[-limit:])), view.in_effect, view.standing, log.alias(CHAMPION), view.is_settled
    )


@tracking_errors()
def settle(model_name: str, *, patience_s: float = PATIENCE_S) -> str | None:
    """Complete a promotion that was interrupted; the version that is champion then, None = there is none.

    Raises:
        PromotionError: if the champion was deleted: whatever is compared with nobody instead would win.
        TrackingError: if MLflow refuses or does not answer.
    """
    log = PromotionLog(connect(), model_name)
    standing, champion = log.settled(patience_s), log.alias(CHAMPION)
    if champion is None and standing.champion is not None:
        log.check(champion, standing, ANY)
    return champion
