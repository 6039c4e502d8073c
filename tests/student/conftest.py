"""What tests of the training share."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from proxykd.artifacts import ProxyModel, SplitSet, Targets, TrajectorySet, ValidatedSet, seal
from proxykd.config import RunSpec
from proxykd.data.splits import TRAINING_SIDES, corpus_identity, select_rows, sides_for
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.data.trajectory_rows import TrajectoryRows
from proxykd.models.loading import load_model, load_tokenizer, save_model
from proxykd.models.tokenizers import tokenizer_fingerprint
from proxykd.student.inputs import TrainingData
from proxykd.targets.codec import Positions
from proxykd.targets.reader import TargetReader
from proxykd.targets.writer import TargetWriter
from tests.support.trajectories import correct_all

Corpus = tuple[ValidatedSet, SplitSet]
MakeRun = Callable[..., RunSpec]
_TOP_K = 4


@pytest.fixture(scope="session")
def training_data(corpus: Corpus, make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """The tokenised training side with targets drawn at random."""
    folder, run = tmp_path_factory.mktemp("data"), make_run()
    tokenizer = load_tokenizer(run.student.model)
    rows = select_rows(*corpus, sides_for("sft", run.split))
    texts = TokenizedCorpus.build(rows, tokenizer, max_seq_tokens=160, path=folder / "rows.arrow")
    writer = TargetWriter(folder / "targets", scratch=folder, top_k=_TOP_K, vocab_size=len(tokenizer))
    rng = np.random.default_rng(0)
    for example in texts:
        length = len(example.completion_ids)
        probs = rng.dirichlet(np.ones(_TOP_K + 1), size=length).astype(np.float32)
        ids = np.stack([rng.choice(len(tokenizer), _TOP_K, replace=False) for _ in range(length)]).astype(np.int32)
        positions = Positions(ids, np.log(probs[:, :_TOP_K]), np.log(probs[:, _TOP_K]))
        writer.add(example.prompt_id, example.sample_idx, positions, sequence_logprob=-1.0)
    facts = {"tokenizer": tokenizer_fingerprint(tokenizer), "max_seq_tokens": 160, "corpus": corpus_identity(*corpus)}
    writer.finish(lambda logprobs, lengths: np.full(len(lengths), 0.5), lambda: facts)
    seal(Targets(folder / "targets"))
    return TrainingData(texts, TargetReader(folder / "targets"), tokenizer.pad_token_id)


@pytest.fixture(scope="session")
def found(validated: ValidatedSet, tmp_path_factory: pytest.TempPathFactory) -> TrajectorySet:
    """Trajectories that correct every text."""
    return correct_all(validated, tmp_path_factory.mktemp("corrections"))


@pytest.fixture(scope="session")
def mixed(
    corpus: Corpus, found: TrajectorySet, training_data: TrainingData, make_run: MakeRun,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainingData:  # fmt: skip
    """The teacher's texts with their targets, and trajectories without."""
    rows = TrajectoryRows([found], *corpus, TRAINING_SIDES).after(select_rows(*corpus, TRAINING_SIDES))
    path, tokenizer = tmp_path_factory.mktemp("mixed") / "rows.arrow", load_tokenizer(make_run().student.model)
    return replace(training_data, corpus=TokenizedCorpus.build(rows, tokenizer, max_seq_tokens=160, path=path))


@pytest.fixture(scope="session")
def student_run(make_run: MakeRun) -> MakeRun:
    """``make_run`` of the student's section alone; ``model`` adds to the tiny student's settings."""

    def make(**student: object) -> RunSpec:
        tiny = {"source": "embedded:student", "num_layers": 1, "max_seq_tokens": 160}
        model = student.pop("model", {})
        assert isinstance(model, dict)
        return make_run(student={**student, "model": tiny | model})

    return make


@pytest.fixture(scope="session")
def proxy_artifact(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> ProxyModel:
    """A saved proxy with random weights."""
    folder, spec = tmp_path_factory.mktemp("proxy"), make_run().proxy.model
    save_model(load_model(spec, seed=7), load_tokenizer(spec), folder / "model")
    seal(ProxyModel(folder))
    return ProxyModel(folder)
