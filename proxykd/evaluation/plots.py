"""The report's plots: arms with their intervals, the proxy's fidelity by stage, training curves.

matplotlib is part of the extra ``pipeline`` and is imported when a plot is drawn; nothing is ever shown on a screen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykd.evaluation.metrics import described
from proxykd.evaluation.report import ARM_LABELS, metric_label, metrics_of, teacher_label
from proxykd.exceptions import ModelError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"none": "#8d99ae", "sft": "#457b9d", "proxy_kd": "#d1495b", "proxy": "#edae49", "champion": "#2a9d8f"}
OTHER_COLOUR = "#6c757d"
FIDELITY_LABELS = {
    "development_nll": "development NLL, nats/token",
    "heldout_nll": "held-out NLL, nats/token",
    "top1_agreement": "top-1 agreement",
}


def write_plots(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the report has numbers for.

    Args:
        report: Content of ``report.json``.
        folder: Where the PNG files go.

    Returns:
        The files: ``arms.png``, then ``fidelity.png`` and ``curves.png`` where the facts have them.

    Raises:
        ModelError: if matplotlib is not installed.
    """
    facts = report["facts"]
    drawn = {"arms.png": _draw_arms(report)}
    if facts.get("fidelity"):
        drawn["fidelity.png"] = _draw_fidelity(facts["fidelity"])
    if facts.get("curves"):
        drawn["curves.png"] = _draw_curves(facts["curves"])
    for name, figure in drawn.items():
        # No software version and no date inside: the same numbers give the same file.
        figure.savefig(folder / name, dpi=110, metadata={"Software": None})
    return [folder / name for name in drawn]


def _draw_arms(report: Mapping[str, Any]) -> "Figure":
    metrics, arms = metrics_of(report), list(report["arms"])
    figure, panels = _panels(len(metrics), height=0.55 * len(arms) + 1.3)
    for panel, metric in zip(panels, metrics, strict=True):
        _draw_metric(panel, report, metric, arms)
    return figure


def _draw_metric(panel: "Axes", report: Mapping[str, Any], metric: str, arms: Sequence[str]) -> None:
    for row, arm in enumerate(arms):
        if (measure := report["arms"][arm].get(metric)) is None or measure["value"] is None:
            continue
        value, colour = measure["value"], COLOURS.get(arm, OTHER_COLOUR)
        if measure["low"] is not None and measure["high"] is not None:
            panel.plot([measure["low"], measure["high"]], [row, row], color=colour, linewidth=2.5)
        seeds = [seed for seed in measure["per_seed"].values() if seed is not None]
        panel.plot(seeds, [row + 0.22] * len(seeds), "|", color=colour, markersize=6)
        panel.plot([value], [row], "o", color=colour, markersize=7)
        panel.annotate(f"{value:.3f}", (value, row), (0, 8), textcoords="offset points", ha="center", fontsize=8)
    entropy = report["teacher"].get("entropy")
    if metric == "heldout_nll" and entropy and entropy["value"] is not None:
        panel.axvline(entropy["value"], color="#444444", linestyle=":", linewidth=1)
        panel.set_xlabel(f"dotted: own entropy of the {teacher_label(report)}", fontsize=8)
    panel.set_yticks(range(len(arms)), [ARM_LABELS.get(arm, arm) for arm in arms])
    panel.set_ylim(len(arms) - 0.4, -0.7)
    if described(report, metric).direction == "lower" and _is_wide(report, metric):
        panel.set_xscale("log")
    panel.margins(x=0.15)
    panel.set_title(metric_label(metric), fontsize=10, loc="left")


def _is_wide(report: Mapping[str, Any], metric: str) -> bool:
    """Whether an untrained arm would squeeze the others together on a linear axis."""
    measures = [measures[metric] for measures in report["arms"].values() if metric in measures]
    values = [measure["value"] for measure in measures if measure["value"] is not None]
    return min(values, default=0.0) > 0 and max(values) > 5 * min(values)


def _draw_fidelity(stages: Sequence[Mapping[str, Any]]) -> "Figure":
    measured = [key for key in FIDELITY_LABELS if any(one.get(key) is not None for one in stages)]
    figure, panels = _panels(len(measured), height=2.8)
    labels = [str(one.get("stage", position)) for position, one in enumerate(stages)]
    for panel, key in zip(panels, measured, strict=True):
        values = [float("nan") if one.get(key) is None else float(one[key]) for one in stages]
        panel.plot(range(len(stages)), values, "o-", color=COLOURS["proxy"])
        panel.set_xticks(range(len(stages)), labels, rotation=20, ha="right", fontsize=8)
        panel.set_title(f"proxy: {FIDELITY_LABELS[key]}", fontsize=10, loc="left")
    return figure


def _draw_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> "Figure":
    keys = sorted({key for points in curves.values() for point in points for key in point} - {"step", "lr"})
    figure, panels = _panels(len(keys), height=2.8)
    for panel, key in zip(panels, keys, strict=True):
        for name, points in curves.items():
            drawn = [(point["step"], point[key]) for point in points if point.get(key) is not None]
            if drawn:
                colour = COLOURS.get(name.split("/")[0], OTHER_COLOUR)
                panel.plot(*zip(*drawn, strict=True), color=colour, linewidth=1.2, alpha=0.8, label=name)
        panel.set_title(key.replace("_", " "), fontsize=10, loc="left")
        panel.set_xlabel("step", fontsize=8)
        panel.legend(fontsize=7, frameon=False)
    return figure


def _panels(count: int, *, height: float) -> "tuple[Figure, list[Axes]]":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModelError("plots need matplotlib: pip install 'proxykd[pipeline]'") from error
    columns = max(1, min(count, 2))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(4.6 * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, columns, position + 1) for position in range(count)]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return figure, panels
