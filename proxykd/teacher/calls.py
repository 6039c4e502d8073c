"""The calls that a run makes, a batch of prompts at a time: their keys at once, the requests where they are needed.

Most of what a rerun asks is answered: it needs the keys of all calls and the requests of few. A request is built by
``build_request`` alone, which also defines its key; here the keys come from templates that are made of its own output.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from secrets import token_hex
from typing import Any, NamedTuple, cast

import pyarrow as pa

from proxykd.artifacts import batched
from proxykd.config.sampling import SamplingSpec
from proxykd.exceptions import TeacherError
from proxykd.records import Message, Prompt, canonical_json, hash_text
from proxykd.teacher.entries import Entry
from proxykd.teacher.providers.base import Provider, request_about, seed_of
from proxykd.teacher.replies import Request

_TEMPLATES = 256
_BLOCK = 512
"""Entries that are read at once."""
CALLS_AT_ONCE = 1024
"""Calls whose keys are looked up together."""


class _Template(NamedTuple):
    """What is asked, with gaps: ``text % pick([*escaped contents, own seed, sample index])``."""

    text: str
    pick: Callable[[Sequence[object]], tuple[object, ...]]


class RequestKeys:
    """The keys that ``build_request`` gives, several times as fast.

    Requests about conversations with the same roles in the same order differ in the contents of the messages, the seed
    and the index of the sample alone. One of them is built with marks in those places; what is asked in it, cut at the
    marks, is the template of all. A content is escaped character by character, so that it may also be joined to others.

    Args:
        provider: The API's shape.
        model: Model name as the endpoint knows it.
        sampling: How the teacher is asked to generate.
        seed: Seed of the run.
        endpoint: Who answers; "" = the model's name is enough.
    """

    def __init__(self, *, provider: Provider, model: str, sampling: SamplingSpec, seed: int, endpoint: str) -> None:
        self._provider, self._model, self._sampling, self._endpoint = provider, model, sampling, endpoint
        self._seed = seed
        self._template = lru_cache(_TEMPLATES)(self._make_template)

    def of(self, prompt_id: str, roles: tuple[str, ...], escaped: Sequence[str], sample_idx: int) -> str:
        """The key of one call.

        Args:
            prompt_id: Of the prompt.
            roles: Of its messages.
            escaped: Their contents as ``escape`` gives them.
            sample_idx: Which sample.
        """
        template = self._template(roles)
        own_seed = seed_of(prompt_id, sample_idx, seed=self._seed)
        return hash_text(template.text % template.pick((*escaped, own_seed, sample_idx)))

    def _make_template(self, roles: tuple[str, ...]) -> _Template:
        mark, num = token_hex(16), len(roles)  # random, so that nothing else that is asked holds it
        numbers = [f"{mark}<{position}>" for position in (num, num + 1)]
        asked = request_about(
            [Message(role, f"{mark}<{position}>") for position, role in enumerate(roles)],
            cast(Any, numbers[1]),
            provider=self._provider,
            model=self._model,
            sampling=self._sampling,
            own_seed=cast(Any, numbers[0]),
            endpoint=self._endpoint,
        ).asked
        for number in numbers:
            asked = asked.replace(f'"{number}"', number)
        parts = re.split(f"{mark}<([0-9]+)>", asked)
        text = "%s".join(part.replace("%", "%%") for part in parts[::2])
        return _Template(text, cast(Any, itemgetter(*map(int, parts[1::2]))))


def escape(content: str) -> str:
    """A text as it stands between the quotes of canonical JSON."""
    return canonical_json(content)[1:-1]


@dataclass(frozen=True, slots=True)
class Calls:
    """All calls about one batch of prompts, in the order of the prompts and, of each, of the samples.

    Attributes:
        batch: The prompts.
        rows: Those of them that the teacher is asked.
        num_samples: Calls about each.
        keys: Of all calls.
        build: Makes the request for one sample of one prompt.
    """

    batch: pa.RecordBatch
    rows: Sequence[int]
    num_samples: int
    keys: Sequence[str]
    build: Callable[[Prompt, int], Request]

    @classmethod
    def about(
        cls,
        batch: pa.RecordBatch,
        rows: Sequence[int],
        *,
        num_samples: int,
        keys: RequestKeys,
        build: Callable[[Prompt, int], Request],
    ) -> "Calls":
        """The calls about some rows of a batch of prompts.

        Args:
            batch: Prompts, all columns.
            rows: Those that are asked, ascending.
            num_samples: Calls about each.
            keys: Gives their keys.
            build: Makes a request.
        """
        ids, turns = batch["prompt_id"].to_pylist(), batch["messages"].flatten()
        ends = batch["messages"].offsets.to_pylist()
        roles = turns.field("role").to_pylist()
        contents = list(map(escape, turns.field("content").to_pylist()))
        found = []
        for row in rows:
            own = slice(ends[row] - ends[0], ends[row + 1] - ends[0])
            about = ids[row], tuple(roles[own]), contents[own]
            found += [keys.of(*about, sample_idx) for sample_idx in range(num_samples)]
        return cls(batch, rows, num_samples, found, build)

    def place(self, position: int) -> tuple[int, int]:
        """The row of the batch and the index of the sample of a call."""
        idx, sample_idx = divmod(position, self.num_samples)
        return self.rows[idx], sample_idx

    def without(self, known: Container[str]) -> list[int]:
        """The positions of calls whose key is not among those."""
        return [position for position, key in enumerate(self.keys) if key not in known]

    def look_up(self, finals_among: Callable[[Sequence[str]], Container[str]]) -> "Lookup":
        """What the journal knows of them.

        Args:
            finals_among: Tells those keys that have a final answer.
        """
        finals = finals_among(self.keys)
        missing = self.without(finals)
        known = [key for key in self.keys if key in finals]
        return Lookup(known, len(missing), (request for *_, request in self.select(missing)))

    def entries(self, get_many: Callable[[Sequence[str]], Mapping[str, Entry]]) -> Iterator[tuple[str, Entry | None]]:
        """The key and the entry of every call, None = it was never settled; few are in memory at once.

        Args:
            get_many: The journal's entries of some keys.
        """
        for block in batched(self.keys, _BLOCK):
            found = get_many(block)
            yield from ((key, found.get(key)) for key in block)

    def select(self, positions: Sequence[int]) -> Iterator[tuple[Prompt, int, Request]]:
        """Prompt, sample index and request of some calls, built as they are taken.

        Raises:
            TeacherError: if a request has another key than was told.
        """
        places = [self.place(position) for position in positions]
        rows = sorted({row for row, _ in places})
        found = dict(
            zip(rows, map(Prompt.from_row, self.batch.take(pa.array(rows, pa.int64())).to_pylist()), strict=True)
        )
        for position, (row, sample_idx) in zip(positions, places, strict=True):
            request = self.build(found[row], sample_idx)
            if request.key != self.keys[position]:
                raise TeacherError(
                    f"expected one key for sample {sample_idx} of the prompt {found[row].prompt_id}, got "
                    f"{self.keys[position]} and {request.key}; report this"
                )
            yield found[row], sample_idx, request


class Lookup(NamedTuple):
    """What the journal knows of some calls.

    Attributes:
        known: Keys of those that have a final answer.
        num_missing: Number of the others.
        missing: The requests of the others, built as they are taken.
    """

    known: Sequence[str]
    num_missing: int
    missing: Iterator[Request]


Lookups = Callable[[], Iterator[Lookup]]
"""Looks all calls up, a block at a time, each time that it is called."""


def look_up(requests: Iterable[Request], finals_among: Callable[[Sequence[str]], Container[str]]) -> Iterator[Lookup]:
    """What the journal knows of requests that are built already, a block at a time.

    Args:
        requests: The requests.
        finals_among: Tells those keys that have a final answer.
    """
    for block in batched(requests, _BLOCK):
        finals = finals_among([request.key for request in block])
        missing = [request for request in block if request.key not in finals]
        yield Lookup([request.key for request in block if request.key in finals], len(missing), iter(missing))
