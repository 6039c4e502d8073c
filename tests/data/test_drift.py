"""Drift: silent at equality and at chance, loud at a change that is large and significant, symmetric."""

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.artifacts import ValidationResult, seal, write_json
from proxykd.config import ValidationSpec
from proxykd.data.accepted import accept, check_files, choose_baseline, hash_files, read_baseline
from proxykd.data.drift import compare, population_stability, stability_noise, two_proportion_p
from proxykd.data.summary import RULES, length_bin
from proxykd.exceptions import InputError

histograms = st.dictionaries(st.sampled_from([str(idx) for idx in range(12)]), st.integers(1, 500), min_size=1)


def measures(num_rows: int, broken: dict[str, int] | None = None, lengths: dict[str, int] | None = None) -> Any:
    rules = {rule.value: {"broken": (broken or {}).get(rule.value, 0), "measured": num_rows} for rule in RULES}
    return {"num_rows": num_rows, "rules": rules, "lengths": {"chars": lengths or {"10": num_rows}, "tokens": {}}}


@given(st.integers(1, 10_000), st.dictionaries(st.sampled_from(RULES), st.floats(0, 1)), histograms)
def test_nothing_drifts_at_equality(num_rows: int, shares: dict[str, float], lengths: dict[str, int]) -> None:
    same = measures(num_rows, {rule: int(share * num_rows) for rule, share in shares.items()}, lengths)
    found = compare(same, same, ValidationSpec())
    assert {drift.name for drift in found} == {*RULES, "length_chars"}
    assert not any(drift.has_drifted for drift in found)
    assert all(drift.distance == 0.0 for drift in found)


def test_a_change_must_be_both_large_and_significant() -> None:
    spec = ValidationSpec()

    def drifted(now: Any, before: Any) -> set[str]:
        return {drift.name for drift in compare(now, before, spec) if drift.has_drifted}

    # 10 % against 2 %: large; of 5000 rows significant, of 30 not; 2 % against 3 % of a million is not large.
    assert drifted(measures(5000, {"refused": 500}), measures(5000, {"refused": 100})) == {"refused"}
    assert drifted(measures(5000, {"refused": 100}), measures(5000, {"refused": 500})) == {"refused"}
    assert drifted(measures(30, {"refused": 3}), measures(30, {"refused": 0})) == set()
    assert drifted(measures(10**6, {"refused": 20_000}), measures(10**6, {"refused": 30_000})) == set()


def test_rules_that_are_not_compared_or_not_measured_are_left_out() -> None:
    spec = ValidationSpec.model_validate({"rules": {"refused": {"max_drift": None}}})
    now = measures(100)
    now["rules"]["unverified"]["measured"] = 0
    assert {drift.name for drift in compare(now, measures(100), spec)} == {*RULES, "length_chars"} - {
        "refused", "unverified",
    }  # fmt: skip


def test_the_test_agrees_with_its_hand_computed_value() -> None:
    # 30 of 100 against 20 of 100: pooled 0.25, variance 0.25 * 0.75 * 0.02 = 0.00375, z = 0.1 / 0.06124 = 1.633.
    assert two_proportion_p(30, 100, 20, 100) == pytest.approx(0.1025, abs=1e-4)
    assert two_proportion_p(0, 5, 0, 9) == two_proportion_p(5, 5, 9, 9) == 1.0


@given(histograms, histograms)
def test_stability_is_symmetric_and_zero_only_at_equal_shares(one: dict[str, int], other: dict[str, int]) -> None:
    psi = population_stability(one, other)
    assert psi >= 0.0
    assert psi == pytest.approx(population_stability(other, one))
    assert population_stability(one, {name: 3 * count for name, count in one.items()}) == pytest.approx(0.0, abs=1e-12)


def test_stability_equals_its_hand_computed_value() -> None:
    # (0.5 - 0.25) ln 2 + (0.5 - 0.75) ln(2 / 3) = 0.1733 + 0.1014
    assert population_stability({"a": 50, "b": 50}, {"a": 25, "b": 75}) == pytest.approx(0.2747, abs=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize("num_rows", [40, 200, 5000])
def test_samples_of_one_population_stay_below_the_noise(num_rows: int) -> None:
    rng = random.Random(num_rows)

    def sample(mean: float) -> Counter[str]:
        return Counter(str(length_bin(int(rng.lognormvariate(mean, 0.5)))) for _ in range(num_rows))

    pairs = [(sample(6.0), sample(6.0)) for _ in range(200)]
    above = sum(population_stability(*pair) > max(0.25, stability_noise(*pair)) for pair in pairs)
    assert above <= 4
    assert population_stability(sample(6.0), sample(6.7)) > 0.25


def validation(folder: Path, validated: str, num_rows: int) -> ValidationResult:
    result = ValidationResult(folder)
    write_json(folder / "result.json", measures(num_rows))
    seal(result, {"validated": validated})
    return result


def test_a_run_is_compared_with_the_last_accepted_one_on_other_rows(tmp_path: Path) -> None:
    path = tmp_path / "accepted" / "name.json"
    assert read_baseline(path) is None
    assert choose_baseline(None, "a") is None
    for rows, expected in (("a", None), ("a", None), ("b", "a"), ("b", "a"), ("a", "b")):
        found = choose_baseline(read_baseline(path), rows)
        assert (None if found is None else found["validated"]) == expected
        accept(validation(tmp_path / rows, rows, 7), path)
    assert list(path.parent.iterdir()) == [path]


def test_lengths_fall_into_bins_that_grow_with_them() -> None:
    bins = [length_bin(length) for length in range(5000)]
    assert bins == sorted(bins)
    assert length_bin(4000) - length_bin(2000) == 2
    assert math.isclose(bins[0], 0)


def test_the_hash_of_files_is_that_of_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.txt").write_text("two")
    paths = [tmp_path / "a.txt", tmp_path / "folder"]
    first = hash_files(paths)
    assert first == hash_files(paths) != hash_files(paths[::-1])
    (tmp_path / "folder" / "b.txt").write_text("three")
    assert hash_files(paths) != first
    with pytest.raises(InputError, match="missing"):
        hash_files([tmp_path / "missing"])


def test_files_in_another_state_than_the_submitted_one_are_refused_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("one")
    told = hash_files([file])
    check_files([file], told, section="evaluation")
    check_files([], hash_files([]), section="evaluation")
    file.write_text("two")
    with pytest.raises(InputError, match=rf"evaluation .*\(hash {told:.12}\), found others .*on the volume, or build"):
        check_files([file], told, section="evaluation")
    file.unlink()
    with pytest.raises(InputError, match=r"found not all of them .*questions\.jsonl.*run the same command again"):
        check_files([file], told, section="evaluation")


def test_what_programs_leave_in_a_folder_is_no_part_of_its_hash(tmp_path: Path) -> None:
    """The harness compiles a folder's functions there, and an image's copy of the folder has none of this."""
    folder = tmp_path / ".hidden" / "tasks"
    folder.mkdir(parents=True)
    (folder / "task.yaml").write_text("task: one")
    first = hash_files([folder])
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "functions.cpython-311.pyc").write_bytes(b"\0")
    (folder / ".DS_Store").write_bytes(b"\0")
    assert hash_files([folder]) == first
    (folder / "task.yaml").write_text("task: two")
    assert hash_files([folder]) != first
