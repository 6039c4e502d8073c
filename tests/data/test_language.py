# ruff: noqa: RUF001
"""Languages: told where there is enough prose, not guessed where there is not."""

import pytest

from proxykd.data.language import UNDETERMINED, find_language, language_of

PROSE = {
    "en": "Yesterday we walked through the old forest and saw many rare birds that nobody had seen before.",
    "de": "Gestern gingen wir durch den alten Wald und sahen viele seltene Vögel, die niemand kannte.",
    "fr": "Le petit village au bord de la mer accueille chaque été des milliers de visiteurs venus de partout.",
    "es": "La casa de mi abuela está cerca del río y siempre huele a pan recién hecho por las mañanas.",
    "ru": "Вчера вечером мы долго гуляли по набережной и разговаривали о будущем нашей страны.",
    "zh": "昨天我们去了公园,看到了很多美丽的花,还和朋友们一起吃了午饭。我们非常高兴,希望下次还能再来这里玩。",
    "ja": "昨日は友達と一緒に公園へ行って、きれいな花をたくさん見ました。とても楽しかったので、また行きたいです。",
}
UNKNOWABLE = [
    "",
    "Hola",
    "42",
    "x = [i ** 2 for i in range(10)]; print(sum(x) / len(x)); y = {k: v for k, v in zip(a, b)}; z = x[1:] + x[:1]",
    "12 + 30 = 42; 42 / 6 = 7; 7 * 3 = 21; 21 - 1 = 20; 20 * 20 = 400; 400 / 8 = 50; 50 - 49 = 1; 1 + 1 = 2",
    "```python\ndef the_function_that_computes_the_answer(question, answer):\n    return question + answer\n```",
]


@pytest.mark.parametrize(("code", "text"), PROSE.items())
def test_prose_is_recognised(code: str, text: str) -> None:
    assert language_of(text) == code
    assert language_of(f"{text}\n```python\nprint('hello world, this is a long line of code')\n```") == code


@pytest.mark.parametrize("text", UNKNOWABLE)
def test_what_cannot_be_told_is_not_guessed(text: str) -> None:
    assert language_of(text) == UNDETERMINED
    assert find_language(text, ["en"]) is None


def test_a_language_is_a_finding_only_where_it_is_not_allowed() -> None:
    assert find_language(PROSE["de"], ["en"]) == "de"
    assert find_language(PROSE["de"], ["en", "de"]) == ""
