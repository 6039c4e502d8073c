"""Every estimator and every reduction, from a teacher that is really asked to a student that learns from it."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from proxykd.artifacts import CompletionSet, ProxyModel, SplitSet, Targets, ValidatedSet, read_json, seal
from proxykd.config import RunSpec
from proxykd.data.portions import Portion
from proxykd.data.splits import build_splits, select_rows, sides_for
from proxykd.data.tokenizing import Example, TokenizedCorpus
from proxykd.estimation.estimating import estimate_distributions, estimate_portion, join_portions
from proxykd.exceptions import ArtifactError, ConfigError
from proxykd.models.loading import load_model, load_tokenizer, save_model
from proxykd.records import ValidatedRow
from proxykd.student.training import distill_student
from proxykd.targets.reader import SparseTarget, TargetReader
from proxykd.targets.summary import PRIOR_FOLDER
from proxykd.teacher.query import collect_prompts, query_teacher

pytestmark = pytest.mark.integration

MakeRun = Callable[..., RunSpec]
TELLING = {"kind": "embedded", "sampling": {"top_logprobs": 5, "max_tokens": 256}}
EVERYTHING = {"reduction": {"kind": "top_k", "k": 1024}, "store": {"kind": "plain"}}


class Home(NamedTuple):
    """What the stages before left."""

    completions: CompletionSet
    validated: ValidatedSet
    splits: SplitSet
    proxy: ProxyModel


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Home:
    """The embedded teacher's answers with what its API told, all kept, and a proxy with random weights."""
    folder, run = tmp_path_factory.mktemp("home"), make_run(teacher=TELLING)
    prompts = collect_prompts(run.prompts, seed=run.seed, output=folder / "prompts")
    completions = query_teacher(prompts, run, journal_path=folder / "journal.sqlite", output=folder / "completions")
    validated, asked = ValidatedSet(folder / "validated"), {row.prompt_id: row for row in prompts.rows()}
    validated.write(
        ValidatedRow(
            row.prompt_id, row.sample_idx, asked[row.prompt_id].messages, row.text, "", None, row.outcome, "keep", ""
        )
        for row in completions.rows()
    )
    seal(validated)
    splits = build_splits(validated, run.split, output=folder / "splits")
    spec = run.proxy.model
    save_model(load_model(spec, seed=0), load_tokenizer(spec), folder / "proxy" / "model")
    seal(ProxyModel(folder / "proxy"))
    return Home(completions, validated, splits, ProxyModel(folder / "proxy"))


@pytest.fixture
def estimate(home: Home, make_run: MakeRun, tmp_path: Path) -> Callable[..., Targets]:
    """Estimates with some settings; each call into a folder of its own."""

    def make(name: str = "targets", **targets: Any) -> Targets:
        run = make_run(teacher=TELLING, targets=targets)
        return estimate_distributions(*home, run, output=tmp_path / name, scratch=tmp_path / f"{name}-scratch")

    return make


@pytest.fixture
def examples(home: Home, make_run: MakeRun, tmp_path: Path) -> list[Example]:
    """The first texts of the distillation side."""
    rows = select_rows(home.validated, home.splits, sides_for("distillation", make_run().split))
    tokenizer = load_tokenizer(make_run().proxy.model)
    return TokenizedCorpus.build(rows, tokenizer, max_seq_tokens=160, path=tmp_path / "rows.arrow")[:6]


def dense(target: SparseTarget, vocab: int = 1024) -> np.ndarray[Any, Any]:
    found = np.zeros((len(target.token_ids), vocab + 1))
    np.put_along_axis(found, np.where(target.token_ids < 0, vocab, target.token_ids), np.exp(target.logprobs), 1)
    return found[:, :vocab]


def each(targets: Targets, examples: list[Example], folder: str = "") -> Iterator[np.ndarray[Any, Any]]:
    reader = TargetReader(targets.path / folder)
    return (dense(reader.get(one.prompt_id, one.sample_idx)) for one in examples)


ESTIMATORS: dict[str, dict[str, Any]] = {
    "proxy": {"kind": "proxy"},
    "prior": {"kind": "prior", "order": 3},
    "posterior": {"kind": "posterior", "keep_prior": True},
    "draws": {"kind": "posterior", "hits": "sampled", "draws": 16},
    "logprobs": {"kind": "logprobs"},
}
REDUCTIONS: dict[str, dict[str, Any]] = {
    "top_k": {"kind": "top_k", "k": 8},
    "sampled": {"kind": "sampled", "draws": 20},
    "systematic": {"kind": "sampled", "draws": 20, "scheme": "systematic"},
    "threshold": {"kind": "threshold", "k": 8},
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_and_reduction_trains_a_student(
    home: Home, estimate: Any, make_run: MakeRun, tmp_path: Path, estimator: str, reduction: str
) -> None:
    settings = {"estimator": ESTIMATORS[estimator], "reduction": REDUCTIONS[reduction]}
    targets = estimate(**settings)
    targets.verify()
    described = read_json(targets.path / "targets.json")
    assert (described["estimator"]["kind"], described["reduction"]["kind"]) == (
        ESTIMATORS[estimator]["kind"],
        REDUCTIONS[reduction]["kind"],
    )
    assert described["top_k"] == (20 if "draws" in REDUCTIONS[reduction] else 8)
    assert (described["tail_prob_mean"] > 0.0) == (reduction == "top_k")
    objective = {"prior_alpha": 0.5} if estimator == "posterior" else {}
    run = make_run(teacher=TELLING, targets=settings, student={"steps": 2, "objective": objective})
    student = distill_student(
        home.validated, home.splits, targets, run, arm="proxy_kd", output=tmp_path / "student", scratch=tmp_path / "s"
    )
    curve = read_json(student.path / "training.json")["runs"][0]["curve"]
    assert all(math.isfinite(step["loss"]) and step["kl"] > 0.0 for step in curve)
    assert ("prior_divergence" in curve[0]) == (estimator == "posterior")


def test_the_closed_posterior_is_the_mixture_of_its_two_stores(estimate: Any, examples: list[Example]) -> None:
    settings = {"kappa": 6.0, "draws": 18}
    both = estimate("both", estimator={"kind": "posterior", "keep_prior": True, **settings}, **EVERYTHING)
    proxy = estimate("proxy", estimator={"kind": "proxy"}, **EVERYTHING)
    parts = zip(each(both, examples), each(both, examples, PRIOR_FOLDER), each(proxy, examples), strict=True)
    for found, prior, of_proxy in parts:
        np.testing.assert_allclose(found, 0.25 * prior + 0.75 * of_proxy, atol=1e-6)


def test_limits_of_the_posterior(estimate: Any, examples: list[Example]) -> None:
    def of(name: str, **estimator: Any) -> list[np.ndarray[Any, Any]]:
        return list(each(estimate(name, estimator=estimator, **EVERYTHING), examples))

    hard = of("hard", kind="posterior", draws=0, prior={"gamma": 1e12})
    for found, example in zip(hard, examples, strict=True):
        np.testing.assert_allclose(found[np.arange(len(found)), example.completion_ids], 1.0, atol=1e-6)
    for first, second in (
        (of("no-draws", kind="posterior", draws=0), of("prior", kind="prior")),
        (of("no-prior", kind="posterior", kappa=0.0), of("proxy", kind="proxy")),
    ):
        for one, other in zip(first, second, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_believed_api_probabilities_are_the_teachers_own(
    estimate: Any, examples: list[Example], home: Home, make_run: MakeRun
) -> None:
    targets = estimate(estimator={"kind": "logprobs", "evidence": 1e9}, **EVERYTHING)
    told = read_json(targets.path / "targets.json")["evidence"]
    assert told["num_texts_told"] == told["num_texts"] > 10
    assert told["num_texts_cut"] == 0
    assert 0.5 < told["position_share"] <= 1.0
    # The API's first token is a word of the text; where it is one of the proxy's, it has the probability told.
    tokenizer = load_tokenizer(make_run().proxy.model)
    first = {row.prompt_id: row.logprobs[0] for row in home.completions.rows() if row.logprobs}
    checked = 0
    for found, example in zip(each(targets, examples), examples, strict=True):
        row = first[example.prompt_id]
        if tokenizer.decode(example.completion_ids[:1]).encode() == row["bytes"]:
            checked += 1
            assert found[0, example.completion_ids[0]] == pytest.approx(math.exp(row["logprob"]), abs=1e-4)
    assert checked


def test_the_prior_without_weights_never_asks_the_proxy(home: Home, make_run: MakeRun, tmp_path: Path) -> None:
    spec = make_run().proxy.model
    model = load_model(spec, seed=0)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)  # asking would be noticed
    save_model(model, load_tokenizer(spec), tmp_path / "proxy" / "model")
    broken = ProxyModel(tmp_path / "proxy")
    seal(broken)
    run = make_run(teacher=TELLING, targets={"estimator": {"kind": "prior"}, "weighting": "none"})
    targets = estimate_distributions(*home[:3], broken, run, output=tmp_path / "targets", scratch=tmp_path / "scratch")
    assert read_json(targets.path / "targets.json")["statistics"]["weight_mean"] == 1.0


def test_estimates_are_the_same_again_and_other_with_another_seed(
    estimate: Any, home: Home, make_run: MakeRun, tmp_path: Path
) -> None:
    settings = {"estimator": ESTIMATORS["draws"], "reduction": REDUCTIONS["threshold"]}
    first, again = estimate("first", **settings), estimate("again", **settings)
    run = make_run(teacher=TELLING, targets=settings, seed=5)
    other = estimate_distributions(*home, run, output=tmp_path / "other", scratch=tmp_path / "other-scratch")
    hashes = [
        [digest for name, digest in one.manifest["files"].items() if name.endswith(".shard")]
        for one in (first, again, other)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_logprobs_without_completions_say_what_is_missing(home: Home, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(teacher=TELLING, targets={"estimator": {"kind": "logprobs"}})
    with pytest.raises(ConfigError, match="API told"):
        estimate_distributions(None, *home[1:], run, output=tmp_path / "targets", scratch=tmp_path / "scratch")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_portions_joined_are_the_whole(
    home: Home, estimate: Any, make_run: MakeRun, tmp_path: Path, estimator: str
) -> None:
    settings = {**EVERYTHING, "estimator": ESTIMATORS[estimator]}
    whole, run = estimate("whole", **settings), make_run(teacher=TELLING, targets=settings)
    parts = [
        estimate_portion(
            *home, run, Portion(number, 3), output=tmp_path / f"p{number}", scratch=tmp_path / f"s{number}"
        )
        for number in range(3)
    ]
    joined = join_portions(parts, *home, run, output=tmp_path / "joined", scratch=tmp_path / "joined-scratch")
    joined.verify()
    for part in parts:
        part.verify()  # what was joined is still what was handed over
    for folder in ("", PRIOR_FOLDER) if ESTIMATORS[estimator].get("keep_prior") else ("",):
        told, expected = (read_json(one.path / folder / "targets.json") for one in (joined, whole))
        for name in set(expected) - {"index", "shards", "checksum"}:
            assert_alike(told[name], expected[name], name)
        found, known = (TargetReader(one.path / folder) for one in (joined, whole))
        assert len(found) == len(known)
        for row in pq.read_table(whole.path / folder / "index.parquet").to_pylist():
            mine, same = (one.get(row["prompt_id"], row["sample_idx"]) for one in (found, known))
            np.testing.assert_allclose(dense(mine), dense(same), atol=2e-4)
            assert mine.weight == pytest.approx(same.weight, abs=1e-4)


def assert_alike(found: Any, expected: Any, name: str) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key in expected:
            assert_alike(found[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), name
    else:
        assert found == expected, name


def test_portions_of_other_texts_or_settings_are_not_joined(home: Home, make_run: MakeRun, tmp_path: Path) -> None:
    run, other = make_run(teacher=TELLING), make_run(teacher=TELLING, targets={"temperature": 2.0})
    part = estimate_portion(*home, run, Portion(0, 1), output=tmp_path / "part", scratch=tmp_path / "scratch")
    with pytest.raises(ArtifactError, match="this run's texts and proxy"):
        join_portions([part], *home, other, output=tmp_path / "joined", scratch=tmp_path / "s2")
