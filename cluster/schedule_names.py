"""Names of ZenML's records of schedules: a new one at each application, and by each the schedule is known."""

import re
from uuid import uuid4

# ZenML's soft deletion appends a UUID.
_RECORD = re.compile(r"(?P<name>.+)-[0-9a-f]{8}(_[0-9a-f-]{36})?")


def new_record_name(name: str) -> str:
    """A name for the record of one application of a schedule; no two are the same.

    Args:
        name: Of the schedule.
    """
    return f"{name}-{uuid4().hex[:8]}"


def schedule_of_record(record: str) -> str:
    """The name of the schedule that a record is of; a record that no application made is its own schedule.

    Args:
        record: Name of the record, which may be archived.
    """
    match = _RECORD.fullmatch(record)
    return match["name"] if match else record
