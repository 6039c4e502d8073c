"""Programs against tests: pass@k.

Of n sampled programs, c pass all tests of a problem. The chance that k of them, drawn without replacement, hold at
least one that passes is, without bias,

    pass@k = 1 - C(n - c, k) / C(n, k)

(Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv:2107.03374, Eq. 1). Programs run in the
sandbox of ``proxykd.data.sandbox`` and nowhere else.
"""

from collections.abc import Iterator, Sequence
from math import comb
from os import cpu_count

from proxykd.artifacts import batched
from proxykd.config.evaluation import PassAtKTaskSpec
from proxykd.data.answers import find_code
from proxykd.data.sandbox import Sandbox
from proxykd.data.verifiers import Check, TestsVerifier, verify_many
from proxykd.evaluation.generation import Generation, Respondent
from proxykd.evaluation.task_answers import TaskAnswer
from proxykd.evaluation.tasks_files import FileRow, file_rows
from proxykd.exceptions import ShapeError
from proxykd.records import Prompt

_PROBLEMS_AT_ONCE = 256


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """The unbiased estimate of pass@k for one problem.

    Args:
        num_samples: Programs that were sampled, n.
        num_passed: Those of them that pass, c.
        k: Programs that one is allowed, 1 to n.

    Raises:
        ShapeError: if not 0 <= c <= n and 1 <= k <= n.

    Example:
        >>> pass_at_k(4, 2, 1), round(pass_at_k(4, 2, 2), 4)
        (0.5, 0.8333)
    """
    if not (0 <= num_passed <= num_samples and 1 <= k <= num_samples):
        raise ShapeError(f"expected 0 <= c <= n and 1 <= k <= n, got n={num_samples}, c={num_passed}, k={k}")
    return 1.0 - comb(num_samples - num_passed, k) / comb(num_samples, k)


def run_pass_at_k(spec: PassAtKTaskSpec, respondent: Respondent) -> Iterator[TaskAnswer]:
    """Sample programs for each problem and run them; the first sample of a problem carries its estimate.

    Args:
        spec: The task.
        respondent: The model.

    Raises:
        InputError: if the file cannot be used.
        SandboxError: if this machine cannot hold programs in.
    """
    sandbox = Sandbox(spec.sandbox)
    try:
        for rows in batched(file_rows(spec.file, task=spec.name, limit=spec.limit), _PROBLEMS_AT_ONCE):
            yield from _solve(spec, respondent, rows, TestsVerifier(sandbox))
    finally:
        sandbox.close()


def _solve(
    spec: PassAtKTaskSpec, respondent: Respondent, rows: Sequence[FileRow], verifier: TestsVerifier
) -> Iterator[TaskAnswer]:
    problems = [Prompt.build(row.messages(spec.prompt_field), reference=row.text(spec.tests_field)) for row in rows]
    how = Generation(spec.max_new_tokens, spec.temperature, spec.num_samples)
    token_ids = [respondent.encode_messages(problem.messages) for problem in problems]
    texts = [respondent.decode(one) for one in respondent.generate(token_ids, how, description=spec.name)]
    asked = [problem for problem in problems for _ in range(spec.num_samples)]
    checks = list(verify_many(zip(asked, texts, strict=True), verifier, workers=cpu_count() or 1))
    for place, (row, problem) in enumerate(zip(rows, problems, strict=True)):
        own = slice(place * spec.num_samples, (place + 1) * spec.num_samples)
        yield from _answers(spec, row, problem, texts[own], checks[own])


def _answers(
    spec: PassAtKTaskSpec, row: FileRow, problem: Prompt, texts: Sequence[str], checks: Sequence[Check]
) -> Iterator[TaskAnswer]:
    num_passed = sum(check.passed for check in checks)
    estimates = {f"pass@{k}/{spec.name}": (pass_at_k(len(checks), num_passed, k), 1.0) for k in spec.k}
    for sample_idx, (text, check) in enumerate(zip(texts, checks, strict=True)):
        yield TaskAnswer(
            task=spec.name,
            prompt_id=problem.prompt_id,
            text=text,
            answer=find_code(text),
            is_correct=check.passed,
            sums={} if sample_idx else estimates,
            sample_idx=sample_idx,
            slices=row.slices(spec.slice_field),
            question=problem.messages[-1].content,
            reference=problem.reference,
        )
