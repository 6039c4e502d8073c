"""The log of promotions on MLflow: reads it, appends to it and lets the aliases follow it.

Three steps, each of which may be the last that happens:

    1. append the intent to the log (``steps.adapters.promotion_log``): from here on it is decided who won
    2. set the aliases ``previous-champion`` and ``champion`` as the log says
    3. record on the entry what it led to: the aliases are set

A promoter that dies before 1 changed nothing. One that dies after it leaves an entry without a record: whoever comes
next waits ``PATIENCE_S`` for a sign of life, then does the steps that are left. Somebody who was only slow, and writes
an alias that is out of date by then, reads the log once more after his writes and puts it right.
"""

import getpass
import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import uuid4

from proxykd.exceptions import PromotionError, TrackingError
from steps.adapters.promotion_log import Action, Entry, Standing, replay

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER, CHAMPION, PREVIOUS_CHAMPION = "challenger", "champion", "previous-champion"
LOG_SUFFIX = ".promotions"
"""The registered model whose versions are the log."""
PATIENCE_S = 10.0
"""How long a promotion under way is left to the one who began it."""

UNKNOWN_NAME = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
"""MLflow's codes for a missing model and for a missing alias; anything else is a failure."""

ANY: Final = "any"
"""As an expected champion: whoever it is, as long as the log and the alias agree."""
NOBODY: Final = "none"
"""As an expected champion: there is none."""

_ENTRY_TAG, _STANDING_TAG = "proxykd.entry", "proxykd.standing"
_MAX_BY_CHARS, _MAX_REASON_CHARS = 200, 2000
_PAGE, _MAX_ROUNDS, _POLL_S = 100, 20, 0.2

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a promotion or rollback came to.

    Attributes:
        standing: Who is champion now.
        replaced: Who was before; None = nobody.
        is_new: False if it had been so before.
    """

    standing: Standing
    replaced: str | None
    is_new: bool


@dataclass(frozen=True, slots=True)
class View:
    """The log as far back as was read.

    Attributes:
        entries: In order.
        effective: Those that took effect, each with what it led to.
        standing: Who is champion by the log.
    """

    entries: tuple[Entry, ...]
    effective: tuple[tuple[Entry, Standing], ...]
    standing: Standing

    @property
    def in_effect(self) -> frozenset[int]:
        """Numbers of the entries that took effect."""
        return frozenset(entry.number for entry, _ in self.effective)

    @property
    def is_settled(self) -> bool:
        """Whether the aliases have been set as the log says."""
        return not self.effective or self.effective[-1][0].standing is not None


class PromotionLog:
    """The log of one registered model, and its aliases.

    Args:
        client: Of the registry.
        model_name: The registered model.
    """

    def __init__(self, client: "MlflowClient", model_name: str) -> None:
        self.client, self.model_name, self.log_name = client, model_name, model_name + LOG_SUFFIX

    def alias(self, alias: str) -> str | None:
        """The version that an alias points to; None = none."""
        return _unless_unknown(lambda: str(self.client.get_model_version_by_alias(self.model_name, alias).version))

    def has_version(self, version: str) -> bool:
        """Whether there is such a version."""
        return _unless_unknown(lambda: self.client.get_model_version(self.model_name, version)) is not None

    def require_model(self) -> None:
        """Refuse unless there is such a model."""
        if _unless_unknown(lambda: self.client.get_registered_model(self.model_name)) is None:
            raise PromotionError(
                f"expected a registered model {self.model_name!r}, found none; run a specification first"
            )

    def require_version(self, version: str) -> None:
        """Refuse unless there is such a version."""
        self.require_model()
        if not self.has_version(version):
            raise PromotionError(
                f"expected version {version} of {self.model_name}, found none; it was never registered or was deleted"
            )

    def read(self, *, at_least: int = 0) -> View:
        """Back to the last entry with a record, so that no read grows with the log.

        Each entry that took effect, but for the last one, has its record: nobody appends before it is there.
        """
        entries: list[Entry] = []
        token: str | None = None
        while True:
            page = self.client.search_model_versions(
                f"name = '{self.log_name}'", _PAGE, order_by=["version_number DESC"], page_token=token
            )
            entries += filter(None, map(_entry, page))
            token = page.token or None
            if token is None or (len(entries) >= at_least and any(entry.standing for entry in entries)):
                break
        entries.reverse()
        recorded = tuple((entry, entry.standing) for entry in entries if entry.standing is not None)
        start = recorded[-1][1] if recorded else Standing()
        effective = (*recorded, *replay((entry for entry in entries if entry.number > start.number), start))
        return View(tuple(entries), effective, effective[-1][1] if effective else start)

    def settled(self, patience_s: float) -> Standing:
        """The standing, once the aliases follow it: somebody else's steps are waited for, then done."""
        view, deadline = self.read(), time.monotonic() + patience_s
        while not view.is_settled and time.monotonic() < deadline:
            time.sleep(min(_POLL_S, patience_s))
            view = self.read()
        return view.standing if view.is_settled else self.apply(view).standing

    def check(self, champion: str | None, standing: Standing, expected: str) -> None:
        """Refuse unless the alias points to the expected version."""
        name, is_at = self.model_name, f"version {champion}" if champion else "nobody"
        if expected != ANY:
            if expected == (champion or NOBODY):
                return
            raise PromotionError(
                f"expected champion {expected} of {name}, found {is_at}; nothing was changed: compare with the present "
                f"champion and try again (`proxykd history {name}`)"
            )
        if champion == standing.champion:
            return
        was = f"version {standing.champion}" if standing.champion else "nobody"
        if champion is None and not self.has_version(str(standing.champion)):
            raise PromotionError(
                f"the champion of {name}, {was}, was deleted; nothing was changed: go back with `proxykd rollback "
                f"{name}`, or promote with `--expect-champion {NOBODY}`"
            )
        raise PromotionError(
            f"expected {was} as champion of {name}, by its history, found {is_at}: somebody moved the alias by other "
            f"means; nothing was changed: if that is meant, say so with `--expect-champion {champion or NOBODY}`"
        )

    def write(
        self,
        action: Action,
        version: str,
        standing: Standing,
        champion: str | None,
        reason: str,
        by: str,
        intent: str,
    ) -> Promoted:
        """All three steps.

        Args:
            action: Promote or rollback.
            version: Who shall be champion.
            standing: By the log, as just read.
            champion: Where the alias points, as just read.
            reason: Why.
            by: Who; by default the user and the machine.
            intent: Names the attempt.

        Raises:
            PromotionError: if another entry came first, or the version is deleted meanwhile.
        """
        intent = intent or uuid4().hex
        entry = Entry(0, intent, action, version, standing.number, champion, by or _whoami(), reason, _now())
        self.append(entry, source=f"models:/{self.model_name}/{version}")
        done = self.finish(intent)
        if done is None:
            raise TrackingError(f"expected our entry in {self.log_name}, found none; run the same command again")
        return done

    def append(self, entry: Entry, *, source: str) -> None:
        """Step 1; ``source`` is what the version of the log shows as its model."""
        if not entry.after:
            ensure_model(self.client, self.log_name, f"Promotions of {self.model_name}, in order; written by proxykd.")
        values = {**asdict(entry), "by": entry.by[:_MAX_BY_CHARS], "reason": entry.reason[:_MAX_REASON_CHARS]}
        del values["number"], values["standing"]
        to, reason = entry.version or "nobody", values["reason"]
        self.client.create_model_version(
            self.log_name,
            source,
            tags={_ENTRY_TAG: json.dumps(values)},
            description=f"{entry.action} to {to} by {values['by']} at {entry.at}" + (f": {reason}" if reason else ""),
        )

    def finish(self, intent: str) -> Promoted | None:
        """Complete the attempt, or say who came first; None = it is not in the log."""
        view = self.read()
        mine = next((entry for entry in view.entries if entry.intent == intent), None)
        if mine is None:
            return None
        if mine.number not in view.in_effect:
            first = next(entry for entry, _ in view.effective if entry.number > mine.after)
            raise PromotionError(
                f"{mine.action} of {self.model_name} to version {mine.version} came second: {first.by or 'somebody'} "
                f"made version {first.version} champion at {first.at}; nothing was changed: compare with that champion "
                "and try again"
            )
        applied = view if view.is_settled else self.apply(view)
        if any(entry.action == "undo" and entry.after == mine.number for entry, _ in applied.effective):
            raise PromotionError(
                f"version {mine.version} of {self.model_name} was deleted while it was promoted; the champion is "
                f"{applied.standing.champion or 'nobody'} as before"
            )
        return Promoted(applied.standing, mine.replaced, is_new=True)

    def apply(self, view: View) -> View:
        """Set the aliases as the log says, until the log says the same before and after."""
        for _ in range(_MAX_ROUNDS):
            entry, standing = view.effective[-1]
            if standing.champion is not None and not self.has_version(standing.champion):
                self._undo(view)
                view = self.read()
                continue
            self._set(PREVIOUS_CHAMPION, standing.previous)
            self._set(CHAMPION, standing.champion)
            newest = self.read()
            if newest.standing.number == standing.number:
                self._record(entry, standing)
                return newest
            view = newest
        raise TrackingError(
            f"the champion of {self.model_name} changed {_MAX_ROUNDS} times while its aliases were set; run the same "
            "command again"
        )

    def _set(self, alias: str, version: str | None) -> None:
        from mlflow.exceptions import MlflowException

        if version is None:
            self.client.delete_registered_model_alias(self.model_name, alias)
            return
        try:
            self.client.set_registered_model_alias(self.model_name, alias, version)
        except MlflowException as error:
            # A former champion may be gone, and a champion that went since is found by the next read.
            if error.error_code not in UNKNOWN_NAME:
                raise
            self.client.delete_registered_model_alias(self.model_name, alias)

    def _record(self, entry: Entry, standing: Standing) -> None:
        value = json.dumps(asdict(standing))
        self.client.set_model_version_tag(self.log_name, str(entry.number), _STANDING_TAG, value)

    def _undo(self, view: View) -> None:
        """Back to the champion before the entry, whose version was deleted before its alias was set."""
        entry, standing = view.effective[-1]
        former = entry.replaced if entry.replaced and self.has_version(entry.replaced) else None
        reason = f"version {entry.version} was deleted"
        undo = Entry(0, uuid4().hex, "undo", former, standing.number, None, _whoami(), reason, _now())
        self.append(undo, source=f"models:/{self.log_name}/{entry.number}")
        self._record(entry, standing)


def ensure_model(client: "MlflowClient", name: str, description: str | None = None) -> None:
    """Create a registered model where it is missing."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _entry(found: "ModelVersion") -> Entry | None:
    """None where the version was not written here."""
    try:
        values = json.loads(found.tags[_ENTRY_TAG])
        record = found.tags.get(_STANDING_TAG)
        standing = None if record is None else json.loads(record)
        if standing is not None:
            standing = Standing(standing["number"], standing["champion"], tuple(standing["line"]))
        return Entry(int(found.version), **values, standing=standing)
    except (KeyError, TypeError, ValueError):
        return None


def _unless_unknown(ask: "Callable[[], _T]") -> "_T | None":
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code in UNKNOWN_NAME:
            return None
        raise


def _whoami() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
