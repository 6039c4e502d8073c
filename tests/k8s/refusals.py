"""An answer other than success, as the API gives it: a ``Status`` object with code, reason and message."""

from typing import Any


class Refusal(Exception):
    """What the server double answers where it does not do as asked.

    Attributes:
        code: HTTP status.
        reason: The API's word for it, such as NotFound or Conflict.
        headers: HTTP headers besides, such as Retry-After.
    """

    def __init__(self, code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.headers = code, reason, headers or {}

    def status(self) -> dict[str, Any]:
        """The body of the answer."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.code,
        }
