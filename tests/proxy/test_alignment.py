"""The whole stage on the embedded teacher's texts: it aligns, it repeats, and each ablation is what it says."""

from dataclasses import replace

import pytest

from proxykd.artifacts import ValidatedSet, read_json, seal
from proxykd.config import RunSpec
from proxykd.data.splits import TRAINING_SIDES, build_splits, select_rows
from proxykd.exceptions import ConfigError, GateError, ModelError
from proxykd.models.loading import load_saved
from proxykd.proxy.launch import align_proxy
from proxykd.records import Side

OPTIMIZER = {"learning_rate": 3e-3, "batch_size": 8}
PROXY = {
    "model": {"source": "embedded:student", "num_layers": 2, "max_seq_tokens": 160},
    "warmup": {"optimizer": OPTIMIZER, "epochs": 2},
    "preference": {"optimizer": {**OPTIMIZER, "learning_rate": 3e-4}, "rounds": 2, "max_new_tokens": 48},
}


@pytest.fixture(scope="module")
def corpus(validated, tmp_path_factory):
    return validated, build_splits(validated, specify().split, output=tmp_path_factory.mktemp("splits"))


def specify(staging=None, **changes):
    return RunSpec.view(
        {
            "seed": 0,
            "split": {"mode": "shared", "heldout": 0.05, "development": 0.2},
            "proxy": {**PROXY, **changes},
            "staging": staging,
        }
    )


def align(corpus, folder, run):
    for name in ("output", "scratch"):
        (folder / name).mkdir(parents=True)
    proxy = align_proxy(*corpus, run, output=folder / "output", scratch=folder / "scratch")
    proxy.verify()
    return proxy, read_json(proxy.path / "fidelity.json")["stages"]


def without_seconds(stages):
    return [{key: value for key, value in stage.items() if key != "seconds"} for stage in stages]


@pytest.mark.integration
def test_alignment_lowers_development_nll_and_repeats_to_the_digit(corpus, tmp_path):
    proxy, stages = align(corpus, tmp_path / "one", specify())
    assert [stage["stage"] for stage in stages] == ["unaligned", "warmup", "round 1 of 2", "round 2 of 2"]
    before, warm, *rounds = stages
    assert warm["development_nll"] < before["development_nll"] - 0.5
    assert rounds[-1]["development_nll"] < warm["development_nll"]
    assert rounds[-1]["top1_agreement"] > before["top1_agreement"]
    for stage in rounds:
        assert stage["preference"]["reward_margin"] > 0.0
        assert set(stage["seconds"]) == {"sampling_s", "reference_s", "training_s", "measuring_s"}
    _, again = align(corpus, tmp_path / "two", specify())
    assert without_seconds(again) == without_seconds(stages)
    load_saved(proxy.path / "model")


@pytest.mark.integration
def test_without_the_preference_term_nothing_is_sampled(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("proxykd.proxy.alignment.sample_examples", None)
    run = specify(preference={**PROXY["preference"], "preference_coef": 0.0})
    _, stages = align(corpus, tmp_path, run)
    assert [stage["stage"] for stage in stages] == ["unaligned", "warmup", "round 1 of 2", "round 2 of 2"]
    assert stages[-1]["development_nll"] < stages[1]["development_nll"]
    assert all("preference" not in stage for stage in stages)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_adapters_on_the_head_would_never_be_trained_and_are_refused(corpus, tmp_path):
    model = {**PROXY["model"], "lora": {"rank": 2, "target_modules": ["q_proj", "lm_head"]}}
    with pytest.raises(ModelError, match=r"found them on its head.*take it out of proxy.model.lora.target_modules"):
        align(corpus, tmp_path, specify(model=model))


def test_an_unaligned_proxy_is_measured_and_saved_as_it_is(corpus, tmp_path):
    proxy, stages = align(corpus, tmp_path, specify(warmup=None, preference=None))
    assert [stage["stage"] for stage in stages] == ["unaligned"]
    assert stages[0]["num_tokens"] > 0
    model, _ = load_saved(proxy.path / "model")
    assert model.config.num_hidden_layers == 2


def test_the_development_side_is_measured_and_the_heldout_side_only_without_it(corpus, tmp_path):
    validated, splits = corpus
    run = specify(warmup=None, preference=None)
    proxy, stages = align(corpus, tmp_path / "one", run)
    assert read_json(proxy.path / "fidelity.json")["side"] == "development"
    assert "heldout_nll" not in stages[0]
    assert stages[0]["num_examples"] == sum(1 for _ in select_rows(validated, splits, {Side.DEVELOPMENT})) > 0

    empty = RunSpec.view({**run.model_dump(mode="json"), "split": {"heldout": 0.3, "development": 0.0}})
    (tmp_path / "splits").mkdir()
    bare = validated, build_splits(validated, empty.split, output=tmp_path / "splits")
    proxy, stages = align(bare, tmp_path / "two", empty)
    assert read_json(proxy.path / "fidelity.json")["side"] == "heldout"
    assert "development_nll" not in stages[0]
    assert stages[0]["num_examples"] == sum(1 for _ in select_rows(*bare, {Side.HELDOUT})) > 0


def test_a_loss_without_terms_is_refused(corpus, tmp_path):
    run = specify(preference={"nll_coef": 0.0, "preference_coef": 0.0})
    with pytest.raises(ConfigError, match="nll_coef and preference_coef"):
        align_proxy(*corpus, run, output=tmp_path / "output", scratch=tmp_path)


def test_a_side_without_texts_is_explained(corpus, tmp_path):
    run = specify(model={**PROXY["model"], "max_seq_tokens": 16})
    with pytest.raises(
        GateError, match=r"warmup side, .*0 with an empty .*no room within proxy\.model\.max_seq_tokens=16; raise it"
    ):
        align_proxy(*corpus, run, output=tmp_path / "output", scratch=tmp_path)


def test_the_proxy_reads_the_main_teacher_s_texts_alone(corpus, tmp_path):
    """With an earlier teacher's texts on the training sides and nothing else there, the warm-up finds none."""
    cheap = {"teacher": {"kind": "openai", "model": "cheap"}}
    run = specify(staging={"earlier": [cheap]}, warmup={"epochs": 1.0}, preference=None)
    told = ValidatedSet(tmp_path / "validated")
    sides = {split.prompt_id: split.side for split in corpus[1].rows()}
    told.write(replace(row, stage=int(sides[row.prompt_id] not in TRAINING_SIDES)) for row in corpus[0].rows())
    seal(told)
    with pytest.raises(GateError, match="warmup side, found none"):
        align((told, corpus[1]), tmp_path / "out", run)
