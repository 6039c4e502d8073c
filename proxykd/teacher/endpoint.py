"""What messages say about the other side of the asking, and when it is of no use to go on."""

import re
from dataclasses import dataclass

from proxykd.exceptions import TeacherAuthError, TeacherError
from proxykd.teacher.replies import Verdict
from proxykd.teacher.transport import HttpResponse

KEPT = "the answers that came are kept; run the same command again, it asks only the missing ones"
OPT_OUT = "should it never answer these, set teacher.on_unanswered=fail_rows to count them as failed"
_UNSUPPORTED = re.compile(
    r"unsupported (parameter|value)|max_completion_tokens|cannot both be|logprobs|json_?schema|response_?format", re.I
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What messages say about the other side; never the secret itself.

    Attributes:
        url: Where requests go.
        model: Model name that is asked for.
        secret_name: ``${NAME}`` of the environment variable that holds the key, or the path of its file; None = no
            key is sent.
    """

    url: str
    model: str
    secret_name: str | None

    @property
    def key_advice(self) -> str:
        """What to check about the key."""
        if self.secret_name is None:
            return "set teacher.api_key to ${NAME}, the environment variable that holds the key"
        place = "environment variable" if self.secret_name.startswith("${") else "file"
        return f"check the key in the {place} {self.secret_name.strip('${}')}"

    def stop_if_unusable(self, response: HttpResponse, verdict: Verdict) -> None:
        """Stop where the first answer says that the endpoint cannot be used as the specification has it.

        Raises:
            TeacherError: if the model or the address does not exist there, or it does not know a parameter of ours.
        """
        if response.status == 404 or 300 <= response.status < 400:
            raise TeacherError(
                f"expected the model {self.model!r} at {self.url}, got {verdict.reply.error}; "
                "check teacher.model and teacher.base_url (up to and including the version)"
            )
        if response.status in (400, 422) and _UNSUPPORTED.search(verdict.reply.error):
            raise TeacherError(
                f"{self.url} does not take our parameters, got {verdict.reply.error}; set "
                "teacher.max_tokens_parameter=max_completion_tokens if it asks for that, or change teacher.sampling"
            )

    def stop_if_hopeless(self, response: HttpResponse, verdict: Verdict) -> None:
        """Stop where no other request would fare better.

        Raises:
            TeacherAuthError: if the key is refused.
            TeacherError: if the account has no credit or quota left.
        """
        # The endpoint's own words are left out: they may speak of the key.
        if verdict.stops == "key":
            raise TeacherAuthError(f"{self.url} refused us with HTTP {response.status}; {self.key_advice}; {KEPT}")
        if verdict.stops == "credit":
            raise TeacherError(
                f"{self.url} says with HTTP {response.status} that the account has no credit or quota left; "
                f"add some or raise its limit; {KEPT}"
            )

    def stop_if_silent(self, num_in_a_row: int, last_reason: str, *, most: int | None) -> None:
        """Stop where too many requests in a row got no answer.

        Args:
            num_in_a_row: How many.
            last_reason: Why the latest of them has none.
            most: So many are too many; None = never.

        Raises:
            TeacherError: if they are.
        """
        if most is not None and num_in_a_row >= most:
            raise TeacherError(
                f"{self.url} gave no answer to {num_in_a_row} requests in a row (last reason: {last_reason}); wait "
                f"until it answers; {KEPT}; {OPT_OUT}"
            )
