"""What would be sent for the first few prompts, to the byte, and what each of them and the whole run cost.

Asks nobody, needs no key and writes nothing that stays.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from proxykd.artifacts import PromptSet
from proxykd.config import RunSpec
from proxykd.config.prompts import FilePromptsSpec
from proxykd.config.teacher import ApiTeacherSpec, RecordedTeacherSpec, TeacherSpec
from proxykd.data.prompts import iter_recorded
from proxykd.forecast import TextLengths, add_prices, lengths_of, price_of_calls
from proxykd.models.token_counter import CHARACTERS_A_TOKEN, TokenCounter
from proxykd.plan import measure_lengths
from proxykd.records import Prompt
from proxykd.teacher.budget import worst_case
from proxykd.teacher.live import LiveTeacher
from proxykd.teacher.query import Outlook, collect_prompts, look_ahead_all
from proxykd.teacher.replies import Request
from proxykd.teacher.stages import TeacherStage, stages_of
from proxykd.workspace import Workspace


@dataclass(frozen=True, slots=True)
class PreviewedPrompt:
    """One prompt as it goes out to one teacher.

    Attributes:
        position: Which prompt of the run, from 1.
        prompt: The prompt.
        body: The JSON object that is sent, indented; the messages alone where nothing is sent.
        completion: The recorded text; None = a teacher will be asked.
        prompt_tokens: Counted as the plan counts them.
        usd: What its calls cost at most; 0 where nobody asks for money, None = no price is known.
        address: Where the body is sent; "" = nothing is sent.
        num_calls: How often it is sent.
        max_tokens: Longest completion that is asked for; 0 = none is.
    """

    position: int
    prompt: Prompt
    body: str
    completion: str | None
    prompt_tokens: int
    usd: float | None
    address: str = ""
    num_calls: int = 0
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PreviewedTeacher:
    """What a teacher is asked in all.

    Attributes:
        model: Its name.
        num_prompts: Prompts that it is asked.
        num_calls: Calls to it on an empty journal.
        calls_left: Those that the journal has no answer to.
        max_tokens: Longest completion that is asked for.
        usd_left: Price of the calls that are left, at most; None = no price is known.
    """

    model: str
    num_prompts: int
    num_calls: int
    calls_left: int
    max_tokens: int
    usd_left: float | None


@dataclass(frozen=True, slots=True)
class Preview:
    """The first prompts of a run, and the run as a whole.

    Attributes:
        prompts: The first ones; each as often as there are teachers that are asked it.
        num_prompts: Prompts of the run.
        teachers: In the order in which the student learns from them; none for recorded texts.
        lengths: Of a sample of the texts.
    """

    prompts: tuple[PreviewedPrompt, ...]
    num_prompts: int
    teachers: tuple[PreviewedTeacher, ...]
    lengths: TextLengths

    @property
    def num_calls(self) -> int:
        """Calls of the run on an empty journal."""
        return sum(one.num_calls for one in self.teachers)

    @property
    def calls_left(self) -> int:
        """Those that the journal has no answer to."""
        return sum(one.calls_left for one in self.teachers)

    @property
    def usd_left(self) -> float | None:
        """Price of the calls that are left, at most; None = one of the prices is not known."""
        return add_prices([one.usd_left for one in self.teachers])


def make_preview(run: RunSpec, *, workspace: Workspace, rows: int = 3) -> Preview:
    """Read the prompts and see what the first of them become.

    Args:
        run: The specification, ablations applied.
        workspace: Its journal is read if there is one.
        rows: How many prompts to show, at least one.

    Raises:
        ProxykdError: if the prompts or the proxy's tokenizer cannot be read.
    """
    run = _without_keys(run)
    with workspace.temporary_folder("preview") as folder:
        prompts = collect_prompts(run.prompts, seed=run.seed, output=folder / "prompts")
        lengths = measure_lengths(run, prompts)
        outlooks = look_ahead_all(prompts, run, journal_path=workspace.journal, portions=workspace.portions)
        shown = tuple(_preview(run, prompts, rows))
        stages = stages_of(run)
        teachers = tuple(
            _preview_teacher(run, stage, stage.teacher.num_prompts(prompts), outlook, lengths)
            for stage, outlook in zip(stages, outlooks, strict=True)
        )
        return Preview(shown, prompts.num_rows, teachers, lengths)


def _without_keys(run: RunSpec) -> RunSpec:
    """No call is made, so no key is needed, and none can be shown."""

    def keyless(teacher: TeacherSpec) -> TeacherSpec:
        return teacher.model_copy(update={"api_key": None}) if isinstance(teacher, ApiTeacherSpec) else teacher

    staging = run.staging
    if staging is not None:
        earlier = tuple(one.model_copy(update={"teacher": keyless(one.teacher)}) for one in staging.earlier)
        staging = staging.model_copy(update={"earlier": earlier})
    return run.model_copy(update={"teacher": keyless(run.teacher), "staging": staging})


def _preview_teacher(
    run: RunSpec, stage: TeacherStage, num_prompts: int, outlook: Outlook, lengths: TextLengths
) -> PreviewedTeacher:
    spec, left = stage.teacher.spec, outlook.num_requests - outlook.num_known
    return PreviewedTeacher(
        stage.teacher.model,
        num_prompts,
        outlook.num_requests,
        left,
        spec.sampling.max_tokens,
        price_of_calls(spec, left, lengths_of(spec, run, lengths)),
    )


def preview_text(preview: Preview) -> str:
    """The preview for a terminal; bodies can be copied as they are."""
    about = "" if preview.lengths.are_exact else f", estimated at {CHARACTERS_A_TOKEN} characters a token"
    parts = [_prompt_text(one, preview, about) for one in preview.prompts]
    return "\n\n".join([*parts, _run_text(preview, about)])


def _preview(run: RunSpec, prompts: PromptSet, rows: int) -> Iterator[PreviewedPrompt]:
    counter = TokenCounter.of(run.proxy.model)
    if isinstance(run.teacher, RecordedTeacherSpec):
        assert isinstance(run.prompts, FilePromptsSpec)  # the specification allows no other
        recorded = islice(iter_recorded(run.prompts, run.teacher.completion_field), rows)
        for position, (prompt, text) in enumerate(recorded, start=1):
            body = _as_json([asdict(message) for message in prompt.messages])
            yield PreviewedPrompt(position, prompt, body, text, counter.count_prompt(prompt.messages), 0.0)
        return
    stages = stages_of(run)
    for position, prompt in enumerate(islice(prompts.rows(), rows), start=1):
        num_tokens = counter.count_prompt(prompt.messages)
        for stage in stages:
            requests = [request for _, request in stage.teacher.requests_of(prompt)]
            if requests:
                yield PreviewedPrompt(
                    position,
                    prompt,
                    _as_json(requests[0].body),
                    None,
                    num_tokens,
                    _most_usd(stage.teacher, requests),
                    _address(stage.teacher),
                    len(requests),
                    stage.teacher.spec.sampling.max_tokens,
                )


def _most_usd(teacher: LiveTeacher, requests: Sequence[Request]) -> float | None:
    """Price of all samples of a prompt in the worst case, as a cap reserves it."""
    if isinstance(teacher.spec, ApiTeacherSpec) and teacher.price is None:
        return None
    return len(requests) * teacher.tariff.of_attempt(worst_case(requests[0], teacher.provider)).usd


def _address(teacher: LiveTeacher) -> str:
    if isinstance(teacher.spec, ApiTeacherSpec):
        return teacher.provider.url(teacher.spec.base_url.rstrip("/"), teacher.model)
    return "the embedded teacher, on a local port of its own"


def _as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _prompt_text(one: PreviewedPrompt, preview: Preview, about: str) -> str:
    task = f", task {one.prompt.task!r}" if one.prompt.task else ""
    head = f"prompt {one.position} of {preview.num_prompts:,} ({one.prompt.source}{task})"
    if one.completion is not None:
        text = one.completion or "(empty: the row counts as failed)"
        return (
            f"{head}\n{one.body}\nrecorded completion:\n{text}\n{one.prompt_tokens:,} tokens in{about}; nothing is sent"
        )
    sent = one.num_calls
    times, each = ("", "") if sent == 1 else (f"; sent {sent} times, each with a seed of its own", " each")
    return (
        f"{head}\nPOST {one.address}{times}\n{one.body}\nabout {one.prompt_tokens:,} tokens in{each}{about}, "
        f"at most {one.max_tokens:,} out{each}; {_usd_text(one.usd)}{' together' if times else ''}"
    )


def _run_text(preview: Preview, about: str) -> str:
    if not preview.num_calls:
        return f"the whole run: {preview.num_prompts:,} prompts with recorded completions, no calls, 0.00 USD"
    whole = _calls_text(preview.num_calls, preview.calls_left, _most_tokens(preview.teachers), preview, about)
    lines = [f"the whole run: {preview.num_prompts:,} prompts, {whole}; {_usd_text(preview.usd_left)}"]
    for one in preview.teachers if len(preview.teachers) > 1 else ():
        calls = _calls_text(one.num_calls, one.calls_left, _most_tokens([one]), preview, about)
        lines.append(f"- {one.model}: {one.num_prompts:,} prompts, {calls}; {_usd_text(one.usd_left)}")
    return "\n".join(lines)


def _calls_text(num_calls: int, calls_left: int, most_tokens: int, preview: Preview, about: str) -> str:
    known = num_calls - calls_left
    calls = f"{calls_left:,} calls" + (f" ({known:,} more are in the journal)" if known else "")
    tokens_in = round(calls_left * preview.lengths.prompt)
    return f"{calls}, about {tokens_in:,} tokens in{about}, at most {most_tokens:,} out"


def _most_tokens(teachers: Sequence[PreviewedTeacher]) -> int:
    return sum(one.calls_left * one.max_tokens for one in teachers)


def _usd_text(usd: float | None) -> str:
    if usd is None:
        return "price unknown: set teacher.price"
    return f"at most {usd:,.6f} USD" if 0 < usd < 0.01 else f"at most {usd:,.2f} USD" if usd else "0.00 USD"
