"""The forecast, by hand: steps, prices and sizes follow from the specification and the number of prompts."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxykd import forecast as forecasting
from proxykd import fused
from proxykd.artifacts import ValidatedSet
from proxykd.config import RunSpec
from proxykd.config.teacher import BatchSpec
from proxykd.forecast import GIB, Asked, TextLengths, forecast_run
from proxykd.models.sizes import ModelSize
from proxykd.plan import Plan, plan_table
from proxykd.records import Side
from proxykd.student import module
from tests.support.trajectories import corrected, write_trajectories

SIDES = {Side.WARMUP: 100, Side.ALIGNMENT: 450, Side.DISTILLATION: 450, Side.DEVELOPMENT: 50, Side.HELDOUT: 100}
SIZES = {role: ModelSize(1_000_000, 1_000_000, 1000, 10_000, 4_000, 800_000) for role in ("proxy", "student")}
LENGTHS = TextLengths(prompt=20.0, completion=100.0, longest=150.0, are_exact=True)


def make_run(teacher: dict[str, Any] | None = None, **sections: Any) -> RunSpec:
    values = {
        "name": "run",
        "prompts": {"kind": "jsonl", "path": "x.jsonl"},
        "teacher": teacher or {"kind": "openai", "model": "m"},
        "proxy": {"model": {"source": "embedded:proxy"}},
        "student": {"model": {"source": "embedded:student"}},
        "registry": {"model_name": "student"},
    }
    return RunSpec.model_validate({**values, **sections})


def forecast(run: RunSpec, calls_left: int = 1150, lengths: TextLengths = LENGTHS) -> Any:
    asked = [Asked(run.teacher, SIDES, calls_left)]
    return forecast_run(run, sides=SIDES, sizes=SIZES, lengths=lengths, asked=asked)


def proxy(**stages: Any) -> dict[str, Any]:
    return {"model": {"source": "embedded:proxy"}, "warmup": None, "preference": None, **stages}


@pytest.mark.parametrize(
    ("section", "steps"),
    [
        (proxy(), 0),
        (proxy(warmup={"epochs": 1.5, "optimizer": {"batch_size": 16}}), 10),  # ceil(150 / 16)
        # 450 texts in 4 rounds: 113, 113, 112, 112; each ends in a batch of its own: 8 + 8 + 7 + 7
        (proxy(preference={"rounds": 4, "optimizer": {"batch_size": 16}}), 30),
    ],
)
def test_steps_of_the_proxy(section: dict[str, Any], steps: int) -> None:
    assert forecast(make_run(proxy=section)).proxy_steps == steps


def test_every_sample_of_a_prompt_is_a_text_to_train_on() -> None:
    teacher = {"kind": "openai", "model": "m", "sampling": {"num_samples": 3}}
    found = forecast(make_run(teacher, proxy=proxy(warmup={"optimizer": {"batch_size": 16}})))
    assert (found.calls, found.proxy_steps) == (3450, 19)  # ceil(300 / 16)


def test_rounds_are_cut_as_the_alignment_cuts_them() -> None:
    from proxykd.proxy.rounds import round_indices

    section = {"rounds": 7, "epochs": 0.9, "optimizer": {"batch_size": 8}}
    parts = round_indices(450, epochs=0.9, rounds=7, seed=0)
    expected = sum(-(-len(part) // 8) for part in parts)
    assert forecast(make_run(proxy=proxy(preference=section))).proxy_steps == expected


@pytest.mark.parametrize(
    ("settings", "runs"),
    [({}, 1), ({"seeds": [0, 1, 2]}, 3), ({"learning_rates": [1e-3, 1e-4, 1e-5], "seeds": [0, 1]}, 4)],
)
def test_the_search_uses_the_first_seed_and_its_winner_is_kept(settings: dict[str, Any], runs: int) -> None:
    student = {"model": {"source": "embedded:student"}, "steps": 10, **settings}
    found = forecast(make_run(student=student))
    assert (found.student_runs, found.student_steps) == (2 * runs, 20 * runs)


def test_the_price_is_that_of_the_calls_that_are_left() -> None:
    price = {"input_usd_per_million": 1.0, "output_usd_per_million": 10.0}
    run = make_run({"kind": "openai", "model": "m", "price": price})
    # 150 calls of 20 tokens in and 100 out: 150 * (20 * 1 + 100 * 10) / 1e6
    assert forecast(run, calls_left=150).usd_left == pytest.approx(0.153)
    halved = run.model_copy(update={"teacher": run.teacher.model_copy(update={"batch": BatchSpec()})})
    assert forecast(halved, calls_left=150).usd_left == pytest.approx(0.153 / 2)
    assert forecast(run, calls_left=0).usd_left == 0.0
    assert forecast(make_run()).usd_left is None
    assert forecast(make_run({"kind": "recorded"})).usd_left == 0.0


def test_memory_is_that_of_the_hungriest_stage() -> None:
    # 16 bytes a weight; 2 * 16 rows of 150 tokens with 10,000 numbers each; 3 copies of 32 * 100 * 1000 scores
    expected = 16e6 + 4 * 32 * 150 * 10_000 + 3 * 4 * 32 * 100 * 1000
    assert forecast(make_run()).memory_bytes - int(1.1 * GIB) == pytest.approx(expected)


def student_memory(**settings: Any) -> int:
    """What the student's stage takes beyond the libraries; the proxy's stages are left out."""
    optimizer = {"batch_size": settings.pop("batch_size", 16)}
    student = {"model": {"source": "embedded:student"}, "optimizer": optimizer, **settings}
    found: int = forecast(make_run(proxy=proxy(), student=student)).memory_bytes
    return found - int(1.1 * GIB)


def test_the_students_memory_does_not_grow_beyond_a_micro_batch() -> None:
    # 16 texts of 150 tokens with 10,000 numbers each; 3 copies of 16 * 100 * 1000 scores
    assert student_memory() == pytest.approx(16e6 + 4 * 16 * 150 * 10_000 + 3 * 4 * 16 * 100 * 1000)
    # 164 texts of 100 completion tokens are 2 ** 14 of them; their scores pass through 640 MiB
    largest = 16e6 + 4 * 164 * 150 * 10_000 + 3 * 4 * 164 * 100 * 1000
    assert student_memory(batch_size=1000) == student_memory(batch_size=10**6) == pytest.approx(largest)


def test_the_students_memory_is_that_of_its_settings() -> None:
    plain = student_memory()
    # 4,000 numbers a token in place of 10,000
    assert plain - student_memory(gradient_checkpointing=True) == pytest.approx(4 * 16 * 150 * 6_000)
    # the proxy's million weights, and the scores of a chunk of positions of both models
    beside = student_memory(living_teacher={"kind": "okd"}) - plain
    assert beside == pytest.approx(4e6 + forecasting._DENSE_BYTES)
    assert student_memory(processes=3) - plain == pytest.approx(2 * (0.45 * GIB + 4e6), rel=1e-6)


def test_the_alignments_memory_is_that_of_its_settings() -> None:
    def memory(**settings: Any) -> int:
        model = {"source": "embedded:proxy", **settings.pop("model", {})}
        warmup = settings.pop("warmup", {"optimizer": {"batch_size": 32}})
        # A student so small that the proxy needs more.
        student = {"model": {"source": "embedded:student"}, "optimizer": {"batch_size": 1}}
        spec = {"model": model, "warmup": warmup, "preference": None, **settings}
        return forecast(make_run(proxy=spec, student=student)).memory_bytes

    plain, activations = memory(), 32 * 150 * 10_000
    assert plain - memory(gradient_checkpointing=True) == pytest.approx(4 * 32 * 150 * 6_000)
    assert memory(processes=3) - plain == pytest.approx(2 * (0.45 * GIB + 16e6), rel=1e-6)
    assert memory(processes=3, fsdp=True) - plain == pytest.approx(2 * 0.45 * GIB, rel=1e-6)
    low, adapters = {"precision": "bfloat16"}, {"lora": {"rank": 2}}
    assert plain - memory(model=low) == pytest.approx(2 * activations)
    assert memory(model=low) - memory(model={**low, **adapters}) == pytest.approx(2 * 800_000)
    assert memory(model=adapters) == plain
    # Small steps: 1 text of 150 tokens; what is shared out or lowered comes into memory whole, before and after.
    small = {"gradient_checkpointing": True, "warmup": {"optimizer": {"batch_size": 1}}}
    steps = 2 * 150 * 4_000 + 3 * 4 * 100 * 1000
    assert memory(**small, model={**low, **adapters}) - memory(**small, model=low) == 4_000_000 - 1_600_000 - steps


def test_the_forecast_knows_how_the_student_works_off_a_batch() -> None:
    """The forecast imports no torch, so that it holds these numbers twice."""
    assert forecasting._MICRO_BATCH_TOKENS == module._MICRO_BATCH_TOKENS
    assert forecasting._FUSED_BYTES == 2 * fused._CHUNK_BYTES_CPU


def test_memory_does_not_grow_beyond_the_longest_sequence() -> None:
    longer = TextLengths(20.0, 1e6, 1e6, are_exact=True)
    assert forecast(make_run(), lengths=longer).memory_bytes < 8 * GIB


@pytest.mark.parametrize(
    ("calls_left", "lengths", "words"),
    [
        (
            1150,
            LENGTHS,
            ["1,150", "at most 115,000", "unknown: the package lists no price", "teacher.price is not set"],
        ),
        (150, LENGTHS, ["150 (1,000 more are in the journal)"]),
        (0, TextLengths(20.0, 100.0, 150.0, are_exact=False), ["4 characters a token"]),
    ],
)
def test_the_table_says_what_is_bound_estimated_or_unknown(
    calls_left: int, lengths: TextLengths, words: list[str]
) -> None:
    plan = Plan("run", "0" * 64, {}, forecast(make_run(), calls_left, lengths))
    cells = [str(cell) for column in plan_table(plan).columns for cell in column.cells]
    assert all(any(word in cell for cell in cells) for word in words)


def test_every_teacher_of_a_staged_run_is_counted_by_itself() -> None:
    price = {"input_usd_per_million": 1.0, "output_usd_per_million": 10.0}
    cheap = {"kind": "openai", "model": "cheap", "price": price, "sampling": {"max_tokens": 300, "num_samples": 2}}
    main = {"kind": "openai", "model": "better", "price": {**price, "output_usd_per_million": 100.0}}
    section = proxy(warmup={"optimizer": {"batch_size": 10}})
    run = make_run(main, staging={"earlier": [{"teacher": cheap}], "fraction": 0.2}, proxy=section)
    asked_cheap = {**dict.fromkeys(Side, 0), Side.WARMUP: 100, Side.ALIGNMENT: 450, Side.DISTILLATION: 450}
    asked_main = {**SIDES, Side.WARMUP: 20, Side.ALIGNMENT: 90, Side.DISTILLATION: 90}
    asked = [Asked(run.staging.earlier[0].teacher, asked_cheap, 2000), Asked(run.teacher, asked_main, 150)]  # type: ignore[union-attr]
    found = forecast_run(run, sides=SIDES, sizes=SIZES, lengths=LENGTHS, asked=asked)
    assert [(one.num_prompts, one.calls) for one in found.teachers] == [(1000, 2000), (350, 350)]
    # 2000 calls of 20 in and 300 out at 1 and 10; 150 calls of 20 in and 100 out at 1 and 100 USD a million
    usd = [2000 * (20 + 3000) / 1e6, 150 * (20 + 10_000) / 1e6]
    assert [one.usd_left for one in found.teachers] == pytest.approx(usd)
    assert found.usd_left == pytest.approx(sum(usd))
    assert (found.calls, found.calls_left) == (2350, 2150)
    assert found.completion_tokens == 2000 * 300 + 350 * 100
    # The proxy learns from the main teacher's 20 warm-up texts alone.
    assert found.proxy_steps == 2
    cells = [str(cell) for column in plan_table(Plan("run", "0" * 64, {}, found)).columns for cell in column.cells]
    assert "- from cheap" in cells
    assert any("150 of 350 calls on 350 prompts" in cell and "at most 1.50 USD" in cell for cell in cells)


STUDENT = {"model": {"source": "embedded:student", "max_seq_tokens": 200}, "steps": 10, "optimizer": {"batch_size": 4}}


@pytest.mark.parametrize(
    ("teacher", "own_tokens", "own_passes", "arithmetic"),
    [
        # A text of 120 tokens is learnt at 3 passes of the student a token; the proxy is as large as the student.
        ({"kind": "okd"}, 0, 0, 2.0),
        ({"kind": "gkd", "on_policy": 0.0}, 0, 0, 4 / 3),
        # 10 steps of 4 texts of 30 tokens behind prompts of 20; written in 1 pass a token, learnt in 3, read in 1.
        ({"kind": "gkd", "on_policy": 1.0, "max_new_tokens": 30}, 1200, 300, (360 + 5 * 50) / 360),
        ({"kind": "gkd", "on_policy": 0.5, "max_new_tokens": 30}, 600, 150, (0.5 * 610 + 0.5 * 480) / 360),
        ({"kind": "minillm", "max_new_tokens": 30}, 1200, 300, (360 + 6 * 50) / 360),
        ({"kind": "minillm", "max_new_tokens": 30, "teacher_mix": 0.0}, 1200, 300, (360 + 5 * 50) / 360),
        # No more than fits behind the prompt: 180 tokens.
        ({"kind": "minillm", "max_new_tokens": 500, "teacher_mix": 0.0}, 7200, 1800, (360 + 5 * 200) / 360),
    ],
)
def test_a_living_teacher_costs_what_it_writes_and_reads(
    teacher: dict[str, Any], own_tokens: int, own_passes: int, arithmetic: float
) -> None:
    found = forecast(make_run(student={**STUDENT, "living_teacher": teacher}))
    assert (found.living.own_tokens, found.living.own_passes) == (own_tokens, own_passes)
    assert found.living.arithmetic == pytest.approx(arithmetic)
    assert not found.has_targets
    assert found.disk_bytes < forecast(make_run(student=STUDENT)).disk_bytes
    assert found.memory_bytes > forecast(make_run(student=STUDENT)).memory_bytes


def test_seeds_and_rates_write_texts_of_their_own_and_large_batches_are_written_in_parts() -> None:
    living = {"kind": "minillm", "max_new_tokens": 30}
    one = forecast(make_run(student={**STUDENT, "living_teacher": living})).living
    several = {**STUDENT, "living_teacher": living, "seeds": [0, 1], "learning_rates": [1e-3, 1e-4]}
    assert forecast(make_run(student=several)).living.own_tokens == 3 * one.own_tokens
    large = {**STUDENT, "living_teacher": living, "optimizer": {"batch_size": 400}}  # 400 * 50 tokens: two parts
    assert forecast(make_run(student=large)).living.own_passes == 2 * one.own_passes


def test_texts_are_forecast_to_be_written_as_they_are() -> None:
    from proxykd.forecast import WRITTEN_TOGETHER
    from proxykd.models.sampling import SAMPLING_BATCH_TOKENS

    assert WRITTEN_TOGETHER == SAMPLING_BATCH_TOKENS


def rows_of(run: RunSpec, **more: Any) -> dict[str, str]:
    columns = plan_table(Plan("run", "0" * 64, {}, forecast(run), **more)).columns
    names, values = (list(map(str, column.cells)) for column in columns)
    return dict(zip(names, values, strict=True))


def test_the_table_says_what_is_not_estimated_written_and_learnt_beside() -> None:
    plain = rows_of(make_run(student=STUDENT))
    assert not {"targets", "living teacher", "students' own texts", "trajectories"} & plain.keys()
    living = rows_of(make_run(student={**STUDENT, "living_teacher": {"kind": "minillm", "max_new_tokens": 30}}))
    assert "none" in living["targets"]
    assert "1,200 tokens" in living["students' own texts"]
    assert "300 passes" in living["students' own texts"]
    assert "1.8 times" in living["living teacher"]
    assert "none" in rows_of(make_run(student={**STUDENT, "alpha": 0.0}))["targets"]
    assert rows_of(make_run(student=STUDENT), num_trajectories=12)["trajectories"].startswith("12 ")


def test_folders_of_trajectories_are_looked_at_before_anything_is_spent(
    proxykd: Any, write: Any, validated: ValidatedSet, tmp_path: Path
) -> None:
    ended = proxykd("plan", write(student__trajectories=["nothing"]), "-q")
    assert ended.status == 2
    assert f"trajectories/manifest.json in {tmp_path / 'nothing'}" in ended.err
    rows = list(validated.rows())
    kept = [replace(corrected(row), is_kept=number < 7) for number, row in enumerate(rows)]
    write_trajectories(kept, tmp_path / "some")
    assert re.search(r"trajectories +│ 7 beside", proxykd("plan", write(student__trajectories=["some"]), "-q").out)
    write_trajectories(kept[7:], tmp_path / "none")
    ended = proxykd("plan", write(student__trajectories=["none"]), "-q")
    assert ended.status == 2
    assert "trajectories that teach" in ended.err


def test_the_longest_trajectory_counts_for_the_memory(
    proxykd: Any, write: Any, validated: ValidatedSet, tmp_path: Path
) -> None:
    row = next(validated.rows())
    write_trajectories([corrected(replace(row, text="2 and 3 are 5. " * 2000))], tmp_path / "long")
    peaks = []
    for folders in ([], ["long"]):
        ended = proxykd("plan", write(student__trajectories=folders), "-q")
        found = re.search(r"memory +│ (?:at most|about) ([\d.]+) GiB", ended.out)
        assert found is not None, ended
        peaks.append(float(found[1]))
    assert peaks[0] < peaks[1]


@pytest.mark.parametrize(
    ("judge", "calls"),
    [({}, 2 * 50 * 3), ({"limit": 10, "reasks": 0}, 2 * 10), ({"kind": "graded"}, 2 * 50 * 3)],
)
def test_a_judge_is_counted_by_pairs_orders_and_tries(judge: dict[str, Any], calls: int) -> None:
    price = {"input_usd_per_million": 1.0, "output_usd_per_million": 2.0}
    spec = {"teacher": {"kind": "openai", "model": "referee", "price": price}, **judge}
    found = forecast(make_run(evaluation={"drift": {"num_prompts": 50}, "judge": spec})).judge
    assert found is not None
    assert (found.model, found.calls) == ("referee", calls)
    least = calls * (20 + 2 * 512) / 1e6  # the question in, the longest reply out
    assert found.usd is not None
    assert least < found.usd < 5 * least
    assert forecast(make_run()).judge is None
