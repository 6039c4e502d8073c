"""What is known of every metric: its name for readers, its unit, which way is better, and what it may be compared over.

The report carries this knowledge (``report["metrics"]``), so that whoever reads a report (decision, page, card,
tracking) needs no list of its own. A metric of a family (``accuracy/<task>``) is described by the family.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Direction = Literal["lower", "higher", "none"]
"""Which way a metric is better; "none" = neither way is (a length, say), so that nothing is decided on it."""


Form = Literal["ratio", "exponential", "bins"]
"""How a metric is computed from sums over prompts."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a reader and a statistic need to know of a metric.

    Attributes:
        label: Name for readers, without the unit.
        unit: Unit of a value, "" for a share or a plain number.
        direction: Which way is better.
        is_judgement: Each unit of it is a judgement from 0 (wrong, lost) to 1 (right, won), so that a clean sheet
            is no proof; McNemar's test applies where a prompt has one judgement that is either.
        is_per_token: Its denominator counts tokens of the model's own tokenizer, so that two models with different
            tokenizers cannot be compared by it.
        rank: Smaller = stands further to the left in tables.
        form: What is made of the sums: their ratio; the exponential of the ratio ``heldout_nll``; or, of one pair of
            sums a bin, sum |numerators| / sum denominators.
    """

    label: str
    unit: str = ""
    direction: Direction = "higher"
    is_judgement: bool = False
    is_per_token: bool = False
    rank: int = 50
    form: Form = "ratio"

    @property
    def title(self) -> str:
        """Label with unit.

        Example:
            >>> METRICS["exact_kl"].title
            'exact KL, nats/token'
        """
        return f"{self.label}, {self.unit}" if self.unit else self.label


METRICS: dict[str, Metric] = {
    "exact_kl": Metric("exact KL", "nats/token", "lower", is_per_token=True, rank=0),
    "heldout_nll": Metric("held-out NLL", "nats/token", "lower", is_per_token=True, rank=1),
    "top1_agreement": Metric("top-1 agreement", "", "higher", is_per_token=True, rank=2),
    "win_rate/teacher": Metric("win rate against the teacher", "", "higher", is_judgement=True, rank=9),
    "perplexity": Metric("perplexity", "", "lower", is_per_token=True, rank=40, form="exponential"),
    "ece/tokens": Metric("calibration error (ECE) tokens", "", "lower", is_per_token=True, rank=21, form="bins"),
    "length_ratio": Metric("length, of the teacher's", "", "none", rank=60),
    "refusal_rate": Metric("refusals", "", "none", is_judgement=True, rank=61),
    "refusal_drift": Metric("refusals beyond the teacher's", "", "none", rank=62),
    "cut_rate": Metric("answers without an end", "", "lower", is_judgement=True, rank=63),
}
"""Metrics with a name of their own."""

FAMILIES: dict[str, Metric] = {
    "accuracy": Metric("accuracy", "", "higher", is_judgement=True, rank=10),
    "accuracy_normalised": Metric("length-normalised accuracy", "", "higher", is_judgement=True, rank=11),
    "pass@k": Metric("pass@k", "", "higher", is_judgement=True, rank=12),
    "score": Metric("score", "", "higher", is_judgement=True, rank=13),
    "answer_agreement": Metric("agreement with the teacher's answers,", "", "higher", is_judgement=True, rank=14),
    "nll": Metric("NLL", "nats/token", "lower", is_per_token=True, rank=15),
    "bits_per_byte": Metric("bits a byte", "", "lower", rank=16),
    "nll_per_word": Metric("NLL", "nats/word", "lower", rank=17),
    "nll_per_byte": Metric("NLL", "nats/byte", "lower", rank=18),
    "brier": Metric("Brier score", "", "lower", rank=20),
    "ece": Metric("calibration error (ECE)", "", "lower", rank=21, form="bins"),
}
"""Metrics named ``<family>/<task>``; ``pass@k`` stands for every k."""


def metric_of(name: str) -> Metric:
    """What is known of the metric ``name``; of an unknown one nothing but its name, and no way is better.

    Example:
        >>> metric_of("accuracy/sums").label, metric_of("accuracy/sums").is_judgement
        ('accuracy sums', True)
        >>> metric_of("surprise").direction
        'none'
    """
    if name in METRICS:
        return METRICS[name]
    family, _, task = name.partition("/")
    found = FAMILIES["pass@k"] if family.startswith("pass@") else FAMILIES.get(family)
    if task and found is not None:
        label = family if family.startswith("pass@") else found.label
        return replace(found, label=f"{label} {task}")
    return Metric(name.replace("/", " ").replace("_", " "), direction="none", rank=90)


def sums_of(name: str) -> str:
    """The metric whose sums a metric is computed from.

    Example:
        >>> sums_of("perplexity"), sums_of("accuracy/sums")
        ('heldout_nll', 'accuracy/sums')
    """
    return "heldout_nll" if metric_of(name).form == "exponential" else name


def describe_metrics(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """``report["metrics"]``: name -> the fields of its ``Metric``, the most telling metric first."""
    return {name: asdict(metric_of(name)) for name in sorted(set(names), key=lambda name: (metric_of(name).rank, name))}


def described(report: Mapping[str, Any], name: str) -> Metric:
    """The metric as a report describes it; what the library knows of it where the report says nothing."""
    found = report.get("metrics", {}).get(name)
    return metric_of(name) if found is None else Metric(**found)
