"""The page on scale: what its command prints; the arithmetic behind it in its limits, its slopes and by hand."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from proxykd.config.models import ModelSpec, ProxySpec
from proxykd.config.placement import amount, load_placement
from proxykd.config.steps import STEPS
from proxykd.models.loading import load_model, load_saved, load_to_ask, save_model
from proxykd.models.sampling import TransformersSampler
from proxykd.models.tokenizers import load_tokenizer

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / "benchmarks" / "scale.py"


def load(name: str) -> ModuleType:
    """A module of the benchmarks, which are no package."""
    spec = importlib.util.spec_from_file_location(name, SCRIPT.with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


model = load("scale_model")
page = load("scale")
counts = st.integers(min_value=100, max_value=10**9)


def test_the_page_holds_what_the_command_prints() -> None:
    text = (CHECKOUT / "docs" / "scale.md").read_text(encoding="utf-8")
    printed = subprocess.run([sys.executable, str(SCRIPT)], check=True, capture_output=True, text=True, timeout=60)
    _, marker, shown = text.partition(page.MARKER)
    assert marker
    assert shown.strip() == printed.stdout.strip()


def test_the_command_writes_its_part_of_a_page_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"# Above\n\n{page.MARKER}\nold\n", encoding="utf-8")
    command = [sys.executable, str(SCRIPT), "--page", str(file)]
    subprocess.run(command, check=True, timeout=60)
    assert file.read_text(encoding="utf-8") == f"# Above\n\n{page.MARKER}\n{page.page()}"
    file.write_text("no marker", encoding="utf-8")
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "expected the line" in refused.stderr


@pytest.mark.parametrize("name", ["teachers.md", "validation.md", "target-store.md", "methods/prior.md"])
def test_the_rates_stand_on_the_pages_that_are_named(name: str) -> None:
    text = (CHECKOUT / "docs" / name).read_text(encoding="utf-8")
    figures = {
        "teachers.md": ["91.8", "1,060 MiB"],
        "validation.md": ["100000", "34.2 s"],
        "target-store.md": ["33.07", "73.44", "168.96", "381,914", "187,707", "75,260"],
        "methods/prior.md": ["462 MiB", "5.8 s", "20 million"],
    }
    assert not [figure for figure in figures[name] if figure not in text]


@given(texts=counts, factor=st.integers(min_value=2, max_value=9))
def test_work_and_bytes_grow_with_the_texts(texts: int, factor: int) -> None:
    small, large = (model.Corpus(n, most_heldout=0) for n in (texts, texts * factor))
    proxy, student = page.PROXY, page.STUDENTS[0]
    for quantity in (
        lambda corpus: model.query_usd(corpus, page.ACCOUNT),
        lambda corpus: model.query_hours(corpus, page.ACCOUNT, page.RATES),
        lambda corpus: model.journal_gb(corpus, page.RATES),
        lambda corpus: model.texts_gb(corpus, page.RATES),
        lambda corpus: model.estimation_flop(corpus, proxy),
        lambda corpus: model.sampling_hours(corpus, proxy, page.H100, page.UTILISATION),
        lambda corpus: model.distillation_flop(corpus, student),
        lambda corpus: model.store_gb(corpus, page.RATES, 50),
        lambda corpus: model.ngram_gb(corpus, page.RATES),
    ):
        assert quantity(large) == pytest.approx(factor * quantity(small), rel=1e-9)


@given(texts=counts)
def test_every_text_is_on_one_side(texts: int) -> None:
    corpus = model.Corpus(texts)
    assert corpus.training + corpus.heldout == texts
    assert 0 <= corpus.heldout <= min(texts / 10, corpus.most_heldout)
    assert corpus.positions < corpus.training_tokens


@given(texts=counts, calls=st.floats(1, 1e6), tokens=st.floats(1, 1e9))
def test_asking_is_as_slow_as_the_tightest_limit(texts: int, calls: float, tokens: float) -> None:
    corpus, account = model.Corpus(texts), model.Account(calls, tokens, 1, 1)
    hours = model.query_hours(corpus, account, page.RATES)
    assert hours >= texts / calls / 60 * (1 - 1e-12)
    assert hours >= texts * corpus.length / tokens / 60 * (1 - 1e-12)
    assert model.query_hours(corpus, replace(account, requests_per_minute=2 * calls), page.RATES) <= hours


def test_without_limits_the_engine_decides() -> None:
    corpus = model.Corpus(1_000_000)
    unbounded = model.Account(1e12, 1e18, 0, 0)
    assert model.query_hours(corpus, unbounded, page.RATES) == pytest.approx(1e6 / (200_000 / 91.8) / 3600)
    assert model.query_usd(corpus, unbounded) == 0


@pytest.mark.parametrize("utilisation", [0.0, -0.1, 1.1])
def test_a_utilisation_that_is_none_is_refused(utilisation: float) -> None:
    with pytest.raises(ValueError, match="utilisation"):
        model.gpu_hours(1e18, page.H100, utilisation)


def test_hours_by_hand() -> None:
    # 1e6 - 20,000 = 980,000 texts of 500 tokens, 2 x 70e9 FLOP each: 6.86e19 FLOP; at 494.7e12 a second 138,670 s.
    corpus = model.Corpus(1_000_000)
    flop = model.estimation_flop(corpus, page.PROXY)
    assert flop == pytest.approx(6.86e19)
    assert model.gpu_hours(flop, page.H100, 0.5) == pytest.approx(138_670 / 3600, rel=1e-4)
    # 980,000 x 300 positions x 73.44 bytes.
    assert model.store_gb(corpus, page.RATES, 50) == pytest.approx(21.59, abs=0.01)
    # 70,000 x (200 x 2.5 + 300 x 10) / 1e6.
    assert model.query_usd(model.Corpus(70_000), page.ACCOUNT) == pytest.approx(245.0)
    assert model.query_usd(model.Corpus(70_000), page.ACCOUNT, discount=0.5) == pytest.approx(122.5)


def test_writing_is_bound_by_the_link_with_few_texts_and_by_arithmetic_with_many() -> None:
    proxy, full = replace(page.PROXY, kv_bytes=0), model.Utilisation(1.0, 1.0, 1.0, 1.0)

    def seconds(texts: int, devices: int = 8) -> float:
        options = {"devices": devices, "texts": texts, "length": 500, "utilisation": full}
        return float(model.sampling_pass_s(proxy, page.H100, **options))

    # 2 x (70e9 - 2.1e9) + 4 x 2.1e9 bytes, seven eighths of them over the link.
    assert seconds(1) == pytest.approx(144.2 * 7 / 8 / 450, rel=1e-3)
    assert seconds(100) == seconds(1)
    # Many: 2 N FLOP a token.
    assert seconds(100_000) == pytest.approx(100_000 * 140e9 / 989.4e12)
    small = model.Model("small", 1e9)
    # One device that has it all reads it from its own memory.
    alone = model.sampling_pass_s(small, page.H100, devices=1, texts=1, length=1, utilisation=full)
    assert alone == pytest.approx(2 / 3350)


def test_what_does_not_fit_is_refused() -> None:
    options = {"length": 500, "utilisation": page.UTILISATION}
    with pytest.raises(ValueError, match="expected a H100 80 GB SXM of 2 to hold 92 GB"):
        model.sampling_pass_s(page.PROXY, page.H100, devices=2, texts=1, **options)
    with pytest.raises(ValueError, match="fewer texts"):
        model.sampling_pass_s(page.PROXY, page.H100, devices=8, texts=1000, **options)


def test_a_step_hides_the_gathering_from_the_size_at_which_both_take_as_long() -> None:
    full = model.Utilisation(1.0, 1.0, 1.0, 1.0)
    tokens = model.hiding_tokens(page.PROXY, page.H100, devices=8, utilisation=full)
    arithmetic_s = tokens * 6 * 70e9 / 989.4e12
    assert arithmetic_s == pytest.approx(2 * model.gathering_s(page.PROXY, page.H100, devices=8, utilisation=1.0))
    assert model.gathering_s(page.PROXY, page.H100, devices=1, utilisation=1.0) == 0.0


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_model_has_the_bytes_of_the_page_whatever_its_file_holds(tmp_path: Path, stored: torch.dtype) -> None:
    spec = ModelSpec(source="embedded:student")
    save_model(load_model(spec, seed=0).to(stored), load_tokenizer(spec), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    assert {one.dtype for one in load_file(file).values()} == {stored}
    # As an artifact of the run, and as a specification's model.
    for loaded in (load_saved(tmp_path)[0], load_model(ModelSpec(source=str(tmp_path)), seed=0)):
        assert num_bytes(loaded.parameters()) == model.LOADED * loaded.num_parameters()
    frozen, embeddings = load_to_ask(tmp_path, precision="bfloat16")[0], loaded.get_input_embeddings().weight.numel()
    norms = sum(one.numel() for one in frozen.parameters() if one.ndim == 1)
    told = model.Model("tiny", frozen.num_parameters(), embeddings=embeddings + norms)
    assert num_bytes(frozen.parameters()) == pytest.approx(1e9 * model.weights_gb(told, is_frozen=True))
    # Nor is there a second copy while it writes.
    assert TransformersSampler(frozen, load_tokenizer(spec), precision="bfloat16")._models[0] is frozen


def test_a_student_in_training_has_the_bytes_of_the_page() -> None:
    student = load_model(ModelSpec(source="embedded:student"), seed=0)
    optimizer = torch.optim.AdamW(student.parameters())
    ids = torch.arange(8)[None]
    student(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    weights = list(student.parameters())
    held = num_bytes([*weights, *(one.grad for one in weights if one.grad is not None), *moments])
    assert held == pytest.approx(1e9 * model.training_gb(model.Model("tiny", student.num_parameters())))


def test_the_largest_proxy_is_the_one_whose_weights_just_fit() -> None:
    # 64 GB at 2 and at 4 bytes a parameter.
    assert model.most_parameters(page.H100) == pytest.approx(32e9)
    largest = model.Model("largest", model.most_parameters(page.H100, precision="float32"))
    assert largest.parameters == pytest.approx(16e9)
    assert model.weights_gb(largest) == pytest.approx(64)
    # 144.2 / 8 + 2 x 4 x 2.1 + 2 x 2 x 67.9 / 80.
    assert model.sharded_gb(page.PROXY, 8) == pytest.approx(38.2, abs=0.1)
    # With the keys and values of 81,920 tokens, 327,680 bytes each.
    assert 38.2 + 81_920 * page.PROXY.kv_bytes / 1e9 < 0.85 * page.H100.gb


def test_shards_keep_their_answers_beside_the_journal_on_a_claim_of_this_size() -> None:
    claim = yaml.safe_load((CHECKOUT / "k8s" / "base" / "storage" / "journal.yaml").read_text(encoding="utf-8"))
    assert pytest.approx(float(amount(claim["spec"]["resources"]["requests"]["storage"])) / 1e9) == page.CLAIM_GB
    # 100e6 x (903.5 + 4 x 300) bytes, twice; 2,203 of targets; 32 of a student and twice 96 of its checkpoint.
    (workspace,) = (one for one in page.strains(page.SIZES[-1]) if one.what == "the workspace's claim")
    assert workspace.value == pytest.approx(421 + 2203 + 32 + 192, abs=1)
    # A million texts fit: 4.2 GB, and the 70B proxy's 280 or 21.6 + 224 while the 8B student trains.
    claim = model.claim_gb(page.SIZES[1], page.RATES, proxy=page.PROXY, student=page.STUDENTS[-1])
    assert claim == pytest.approx(284.2, abs=0.1)
    assert claim < page.CLAIM_GB


@pytest.mark.parametrize(("name", "proxy"), [("gpu", page.PLACED), ("pools", page.PLACED), ("large", page.PROXY)])
def test_the_shipped_placements_give_the_disk_of_a_million_texts(name: str, proxy: Any) -> None:
    placement = load_placement(CHECKOUT / "k8s" / "placements" / f"{name}.yaml")
    corpus = model.Corpus(1_000_000)
    needed = model.artifacts_gb(corpus, page.RATES, proxy=proxy, student=page.STUDENTS[-1])
    # 2 x 2 GB of texts, 21.6 of targets, 40 or 280 of the proxy, 2 x 32 of students.
    assert needed["evaluate_student"] == pytest.approx(129.6 if proxy is page.PLACED else 369.6, abs=0.1)
    for step in STEPS:
        gb = max((value for own, value in needed.items() if step.startswith(own)), default=0.0)
        assert gb < 0.95 * float(amount(placement.step(step).scratch)) / 1e9, step


def test_the_placement_of_a_large_proxy_has_the_gpus_and_the_memory_that_it_needs() -> None:
    placement, proxy = load_placement(CHECKOUT / "k8s" / "placements" / "large.yaml"), page.PROXY
    frozen, whole = model.weights_gb(proxy, is_frozen=True), model.weights_gb(proxy)
    launcher = placement.step("align_proxy").launcher
    assert not placement.pools[str(launcher.pool)].spot  # a preemption would cost a whole stage
    assert model.sharded_gb(proxy, launcher.processes_per_node) < 0.8 * page.H100.gb
    assert launcher.gpus == launcher.processes_per_node
    memory = {"align_proxy": amount(launcher.memory)}
    for name, held in (("estimate_distributions", frozen), ("evaluate_student", whole)):
        step = placement.step(name)
        assert step.gpus >= model.least_devices(held, page.H100)
        memory[name] = amount(step.memory)
    # A model comes into the host's memory whole, in float32.
    assert all(float(found) > 1.2e9 * whole for found in memory.values())


def test_the_run_of_a_large_proxy_on_the_page_is_one() -> None:
    text = (CHECKOUT / "docs" / "scale.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(proxy:.*?)```", text, re.DOTALL)
    spec = ProxySpec.model_validate(yaml.safe_load(block)["proxy"])
    assert spec.fsdp
    assert spec.model.lora is not None
    assert spec.preference is not None
    assert spec.preference.sampling_batch_tokens == page.SAMPLING["batch_tokens"]
    assert spec.preference.max_new_tokens == page.SAMPLING["max_new_tokens"]


@given(gb=st.floats(min_value=0.1, max_value=1e5))
def test_enough_devices_hold_it_and_one_fewer_does_not(gb: float) -> None:
    devices = model.least_devices(gb, page.H100)
    assert devices * 80 * 0.8 >= gb * (1 - 1e-12)
    assert devices == 1 or (devices - 1) * 80 * 0.8 < gb


def test_the_proxys_size_breaks_first_and_hours_where_texts_are_many() -> None:
    smallest, largest = page.strains(page.SIZES[0]), page.strains(page.SIZES[-1])
    assert [one.what for one in smallest if one.ratio > 1] == ["the proxy on one H100"]
    assert largest[0].what == "alignment on one node"
    assert [one.ratio for one in largest] == sorted((one.ratio for one in largest), reverse=True)
    assert {one.what for one in largest if one.ratio > 1} >= {"estimation on one node", "the n-gram prior in memory"}


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0312, "0.03"), (0.25, "0.25"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_quantities_have_three_digits(value: float, text: str) -> None:
    assert page.quantity(value) == text
