"""From a file of a student's attempts to a folder of trajectories that a trainer can read: what ``correct`` does."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from proxykd.artifacts import PromptSet, TrajectorySet, read_json
from proxykd.config.specification import DataSplitSpec, RunSpec
from proxykd.data.segments import render_trajectory, segment_spans
from proxykd.data.splits import TRAINING_SIDES, side_of
from proxykd.exceptions import InputError
from proxykd.progress import report
from proxykd.teacher.query import collect_prompts
from proxykd.teacher.trajectories import SUMMARY, build_trajectories, read_attempts
from proxykd.trajectories import Trajectory

EXPORT = "trajectories.jsonl"


def correct_attempts(run: RunSpec, attempts: Path, *, journal_path: Path, output: Path) -> dict[str, Any]:
    """Correct the wrong attempts of a file; the folder appears whole or not at all.

    Args:
        run: Prompts, teacher, verifier and corrections are read.
        attempts: JSONL, ``prompt_id`` and ``text`` a line. Those at prompts that are held out or of the development
            side are passed over, because they must not teach.
        journal_path: The journal; a call that was cut off goes on from there and pays nothing twice.
        output: Must not exist; gets ``trajectories/`` (the artifact, all trajectories) and ``trajectories.jsonl``
            (those that teach, as text with weighted spans).

    Returns:
        The summary: attempts, how they ended, how many teach, what the calls cost.

    Raises:
        InputError: if ``output`` exists, or prompts or attempts cannot be used.
        ConfigError, TeacherError, SandboxError, StorageError: as ``build_trajectories``.
    """
    if output.exists():
        raise InputError(f"expected a new folder for the trajectories, {output} exists; name another or remove it")
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        prompts = collect_prompts(run.prompts, seed=run.seed, output=partial / "prompts")
        taught = _on_training_sides(read_attempts(attempts), prompts, run.split)
        trajectories = build_trajectories(
            prompts, taught, run, journal_path=journal_path, output=partial / "trajectories"
        )
        shutil.rmtree(prompts.path)
        _export(trajectories, partial / EXPORT)
        summary = read_json(trajectories.path / SUMMARY)
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _on_training_sides(
    attempts: Iterable[tuple[str, str]], prompts: PromptSet, split: DataSplitSpec
) -> Iterator[tuple[str, str]]:
    num_passed_over = 0
    split_keys = {prompt.prompt_id: prompt.split_key for prompt in prompts.rows() if prompt.group}
    for prompt_id, text in attempts:
        if side_of(split_keys.get(prompt_id, prompt_id), split) in TRAINING_SIDES:
            yield prompt_id, text
        else:
            num_passed_over += 1
    if num_passed_over:
        report(f"Passed over {num_passed_over} attempts at prompts that must not teach (held out or development)")


def _export(trajectories: TrajectorySet, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for trajectory in trajectories.rows():
            if trajectory.is_kept:
                file.write(json.dumps(_line(trajectory), ensure_ascii=False) + "\n")


def _line(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "prompt_id": trajectory.prompt_id,
        "messages": [{"role": message.role, "content": message.content} for message in trajectory.messages],
        "completion": render_trajectory(trajectory),
        "spans": [list(span) for span in segment_spans(trajectory)],
    }
