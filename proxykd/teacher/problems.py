"""The embedded teacher: word problems worked through step by step, every choice drawn at known odds.

A text is written by one small probabilistic program (``wording.write``) whose only freedom is ``choose(options)``. Run
with a random ``choose`` it samples a completion; run over every sequence of choices it enumerates them all with their
probabilities. Both use the same odds, so the enumeration is the sampler's exact distribution. The odds depend on the
story and on its numbers (which one is larger, how small a factor is), so there is structure to learn beyond counting;
with small odds an arithmetic result is off by one, and the slip is carried through to the answer.

The question alone decides the distribution. Grammar and odds are described in ``docs/embedded-teacher.md``.
"""

import random
from collections.abc import Iterator

from proxykd.exceptions import ConfigError
from proxykd.records import Message, Prompt
from proxykd.teacher.stories import Problem, draw_problem, parse_question, render_question
from proxykd.teacher.wording import Options, OptionT, write

TASK = "word-problems"
SOURCE = "embedded"
MAX_PROMPTS = 100_000


def generate_prompts(count: int, seed: int) -> Iterator[Prompt]:
    """``count`` distinct prompts with their right answers as references.

    Args:
        count: 1 .. MAX_PROMPTS.
        seed: Same seed, same prompts in the same order; a smaller count gives a prefix.

    Raises:
        ConfigError: if ``count`` is more than the generator promises.
    """
    if count > MAX_PROMPTS:
        raise ConfigError(f"the embedded generator makes up to {MAX_PROMPTS} prompts, asked for {count}; lower count")
    rng = random.Random(f"prompts-{seed}")
    seen: set[Problem] = set()
    while len(seen) < count:
        if (problem := draw_problem(rng)) not in seen:
            seen.add(problem)
            message = Message("user", render_question(problem))
            yield Prompt.build([message], task=TASK, reference=str(problem.answer), source=SOURCE)


def sample_completion(question: str, rng: random.Random) -> str:
    """One text, drawn from the teacher's distribution.

    Args:
        question: A question as ``generate_prompts`` makes them.
        rng: Source of randomness.

    Raises:
        InputError: if the question is not one of the teacher's.
    """

    def choose(options: Options[OptionT]) -> OptionT:
        draw = rng.random()
        for option, odds in options:
            draw -= odds
            if draw < 0.0:
                return option
        return options[-1][0]

    return write(parse_question(question), choose)


def enumerate_completions(question: str) -> list[tuple[str, float]]:
    """Every text that the teacher can write, with its probability; they sum to 1.

    Depth-first over the choices: each run of the writer replays the recorded choices and then takes first options;
    between runs the last choice that has another option moves on by one.

    Args:
        question: A question as ``generate_prompts`` makes them.

    Returns:
        (text, probability) pairs, texts distinct, in a fixed order.

    Raises:
        InputError: if the question is not one of the teacher's.
    """
    problem = parse_question(question)
    masses: dict[str, float] = {}
    taken: list[int] = []
    while True:
        path = _Path(taken)
        text = write(problem, path.choose)
        masses[text] = masses.get(text, 0.0) + path.prob
        if (following := path.next_taken()) is None:
            return list(masses.items())
        taken = following


class _Path:
    """One run of the writer: replays ``taken``, then takes first options; knows its probability."""

    def __init__(self, taken: list[int]) -> None:
        self.prob = 1.0
        self._taken, self._widths = taken, list[int]()

    def choose(self, options: Options[OptionT]) -> OptionT:
        depth = len(self._widths)
        self._widths.append(len(options))
        if depth == len(self._taken):
            self._taken.append(0)
        option, odds = options[self._taken[depth]]
        self.prob *= odds
        return option

    def next_taken(self) -> list[int] | None:
        for depth in reversed(range(len(self._widths))):
            if self._taken[depth] + 1 < self._widths[depth]:
                return [*self._taken[:depth], self._taken[depth] + 1]
        return None
