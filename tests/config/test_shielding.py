"""What passes through an orchestrator comes back as it was, and names no variable that could be filled in."""

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxykd.config.shielding import shielded, unshielded

texts = st.text(st.sampled_from("${} aB_"), max_size=12)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@given(values)
def test_it_comes_back_as_it_was(value: Any) -> None:
    assert unshielded(shielded(value)) == value
    assert not re.search(r"\$\{", json.dumps(shielded(value)))


def test_by_hand() -> None:
    assert shielded({"api_key": "${KEY}", "list": ["$ {x}", 3]}) == {"api_key": "$ {KEY}", "list": ["$  {x}", 3]}
    assert unshielded({"api_key": "${KEY}"}) == {"api_key": "${KEY}"}
