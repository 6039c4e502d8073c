"""What would be sent for the first few prompts, to the byte, and what each of them and the whole run cost.

Asks nobody, needs no key and writes nothing that stays.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

from proxykd.artifacts import PromptSet
from proxykd.config import RunSpec
from proxykd.config.prompts import FilePromptsSpec
from proxykd.config.teacher import ApiTeacherSpec, RecordedTeacherSpec
from proxykd.data.prompts import iter_recorded
from proxykd.forecast import TextLengths, num_samples, price_of_calls
from proxykd.plan import CHARACTERS_A_TOKEN, TokenCounter, measure_lengths
from proxykd.records import Prompt
from proxykd.teacher.budget import worst_case
from proxykd.teacher.live import LiveTeacher, provider_for
from proxykd.teacher.query import collect_prompts, look_ahead
from proxykd.teacher.replies import Request
from proxykd.workspace import Workspace


@dataclass(frozen=True, slots=True)
class PreviewedPrompt:
    """One prompt as it goes out.

    Attributes:
        prompt: The prompt.
        body: The JSON object that is sent, indented; the messages alone where nothing is sent.
        completion: The recorded text; None = a teacher will be asked.
        prompt_tokens: Counted as the plan counts them.
        usd: What its calls cost at most; 0 where nobody asks for money, None = no price is known.
    """

    prompt: Prompt
    body: str
    completion: str | None
    prompt_tokens: int
    usd: float | None


@dataclass(frozen=True, slots=True)
class Preview:
    """The first prompts of a run, and the run as a whole.

    Attributes:
        prompts: The first ones.
        address: Where bodies are sent; "" = nothing is sent.
        num_prompts: Prompts of the run.
        num_calls: Calls of the run on an empty journal.
        calls_left: Those that the journal has no answer to.
        max_tokens: Longest completion that is asked for; 0 = none is.
        lengths: Of a sample of the texts.
        usd_left: Price of the calls that are left, at most; None = no price is known.
    """

    prompts: tuple[PreviewedPrompt, ...]
    address: str
    num_prompts: int
    num_calls: int
    calls_left: int
    max_tokens: int
    lengths: TextLengths
    usd_left: float | None


def make_preview(run: RunSpec, *, workspace: Workspace, rows: int = 3) -> Preview:
    """Read the prompts and see what the first of them become.

    Args:
        run: The specification, ablations applied.
        workspace: Its journal is read if there is one.
        rows: How many prompts to show, at least one.

    Raises:
        ProxykdError: if the prompts or the proxy's tokenizer cannot be read.
    """
    if isinstance(run.teacher, ApiTeacherSpec):
        # No call is made, so no key is needed, and none can be shown.
        run = run.model_copy(update={"teacher": run.teacher.model_copy(update={"api_key": None})})
    with workspace.temporary_folder("preview") as folder:
        prompts = collect_prompts(run.prompts, seed=run.seed, output=folder / "prompts")
        lengths = measure_lengths(run, prompts)
        outlook = look_ahead(prompts, run, journal_path=workspace.journal)
        shown = tuple(_preview(run, prompts, rows))
        num_prompts = prompts.num_rows
    left = outlook.num_requests - outlook.num_known
    return Preview(
        shown,
        _address(run),
        num_prompts,
        outlook.num_requests,
        left,
        0 if isinstance(run.teacher, RecordedTeacherSpec) else run.teacher.sampling.max_tokens,
        lengths,
        price_of_calls(run, left, lengths),
    )


def preview_text(preview: Preview) -> str:
    """The preview for a terminal; bodies can be copied as they are."""
    about = "" if preview.lengths.are_exact else f", estimated at {CHARACTERS_A_TOKEN} characters a token"
    parts = [_prompt_text(position, one, preview, about) for position, one in enumerate(preview.prompts, start=1)]
    return "\n\n".join([*parts, _run_text(preview, about)])


def _preview(run: RunSpec, prompts: PromptSet, rows: int) -> Iterator[PreviewedPrompt]:
    counter = TokenCounter.of(run)
    if isinstance(run.teacher, RecordedTeacherSpec):
        assert isinstance(run.prompts, FilePromptsSpec)  # the specification allows no other
        for prompt, text in islice(iter_recorded(run.prompts, run.teacher.completion_field), rows):
            body = _as_json([asdict(message) for message in prompt.messages])
            yield PreviewedPrompt(prompt, body, text, counter.count_prompt(prompt.messages), 0.0)
        return
    teacher = LiveTeacher.of(run, run.teacher)
    for prompt in islice(prompts.rows(), rows):
        request = teacher.request(prompt, 0)
        num_tokens = counter.count_prompt(prompt.messages)
        yield PreviewedPrompt(prompt, _as_json(request.body), None, num_tokens, _most_usd(run, teacher, request))


def _most_usd(run: RunSpec, teacher: LiveTeacher, request: Request) -> float | None:
    """Price of all samples of a prompt in the worst case, as a cap reserves it."""
    if isinstance(run.teacher, ApiTeacherSpec) and teacher.price is None:
        return None
    return num_samples(run) * teacher.tariff.of_attempt(worst_case(request, teacher.provider)).usd


def _address(run: RunSpec) -> str:
    if isinstance(run.teacher, RecordedTeacherSpec):
        return ""
    if isinstance(run.teacher, ApiTeacherSpec):
        return provider_for(run.teacher).url(run.teacher.base_url.rstrip("/"), run.teacher.model)
    return "the embedded teacher, on a local port of its own"


def _as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _prompt_text(position: int, one: PreviewedPrompt, preview: Preview, about: str) -> str:
    task = f", task {one.prompt.task!r}" if one.prompt.task else ""
    head = f"prompt {position} of {preview.num_prompts:,} ({one.prompt.source}{task})"
    if one.completion is not None:
        text = one.completion or "(empty: the row counts as failed)"
        return (
            f"{head}\n{one.body}\nrecorded completion:\n{text}\n{one.prompt_tokens:,} tokens in{about}; nothing is sent"
        )
    samples = preview.num_calls // preview.num_prompts
    times, each = ("", "") if samples == 1 else (f"; sent {samples} times, each with a seed of its own", " each")
    return (
        f"{head}\nPOST {preview.address}{times}\n{one.body}\nabout {one.prompt_tokens:,} tokens in{each}{about}, "
        f"at most {preview.max_tokens:,} out{each}; {_usd_text(one.usd)}{' together' if times else ''}"
    )


def _run_text(preview: Preview, about: str) -> str:
    if not preview.num_calls:
        return f"the whole run: {preview.num_prompts:,} prompts with recorded completions, no calls, 0.00 USD"
    known = preview.num_calls - preview.calls_left
    calls = f"{preview.calls_left:,} calls" + (f" ({known:,} more are in the journal)" if known else "")
    tokens_in = round(preview.calls_left * preview.lengths.prompt)
    return (
        f"the whole run: {preview.num_prompts:,} prompts, {calls}, about {tokens_in:,} tokens in{about}, "
        f"at most {preview.calls_left * preview.max_tokens:,} out; {_usd_text(preview.usd_left)}"
    )


def _usd_text(usd: float | None) -> str:
    if usd is None:
        return "price unknown: set teacher.price"
    return f"at most {usd:,.6f} USD" if 0 < usd < 0.01 else f"at most {usd:,.2f} USD" if usd else "0.00 USD"
