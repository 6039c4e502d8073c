"""The model card says what, how good and from what."""

from proxykd.artifacts import Evaluation, read_json
from proxykd.config import RunSpec
from proxykd.evaluation.card import model_card


def test_card_has_numbers_lineage_and_teacher(evaluation: Evaluation, run_spec: RunSpec) -> None:
    card = model_card(read_json(evaluation.path / "report.json"), run_spec)
    assert card.startswith("# tiny\n")
    assert "the embedded teacher" in card
    assert "| Proxy-KD |" in card
    assert "seed 3" in card
    assert "ab" * 32 in card
    assert "100 completions, USD 0.25" in card
