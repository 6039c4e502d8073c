"""How fast, how large and how hungry a model is: ``python -m proxykd.evaluation.speed FOLDER SETTINGS``.

Measured in a process of its own, so that neither its memory nor its time holds anything of the evaluation around it.
Prompts are random tokens, and the end token ends nothing: every model does the same work. Tokens a second are those
that are generated, the reading of the prompts included in the time.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from proxykd.config.evaluation import SpeedSpec
from proxykd.exceptions import ModelError
from proxykd.progress import report

_LONGEST_S = 3600.0
_GB = 1e9


def measure_speed(folder: Path, spec: SpeedSpec, *, precision: str) -> dict[str, Any]:
    """Measure the model in ``folder``.

    Args:
        folder: As ``save_model`` wrote it.
        spec: How much is generated.
        precision: Arithmetic, as in ``ModelSpec.precision``.

    Returns:
        ``tokens_per_s`` (batched), ``tokens_per_s_single`` (one prompt alone), ``size_gb`` (files on disk),
        ``memory_gb`` (peak: of the process on a CPU, interpreter included; of the tensors on an accelerator),
        ``num_parameters``, ``device``, ``num_threads``.

    Raises:
        ModelError: if the model cannot be loaded or does not generate.
    """
    settings = json.dumps({**spec.model_dump(mode="json"), "precision": precision})
    command = [sys.executable, "-m", "proxykd.evaluation.speed", str(folder), settings]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"expected the speed of {folder} within {_LONGEST_S:.0f} s; lower evaluation.speed, or set it to null"
        ) from error
    if done.returncode != 0:
        raise ModelError(
            f"expected the speed of {folder}, its measurement ended with {done.returncode}: "
            f"{done.stderr.strip()[-500:]}; set evaluation.speed=null to leave it out"
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    report(
        f"speed: {found['tokens_per_s']:,.0f} tokens/s batched, {found['tokens_per_s_single']:,.0f} alone, "
        f"{found['size_gb']:.3g} GB on disk, {found['memory_gb']:.3g} GB of memory"
    )
    return found


def size_gb(folder: Path) -> float:
    """Gigabytes (10^9 bytes) of the files in ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / _GB


def _measure(folder: Path, spec: SpeedSpec, precision: str) -> dict[str, Any]:
    import torch

    from proxykd.models.loading import load_saved
    from proxykd.models.sampling import TransformersSampler

    model, _ = load_saved(folder)
    model.eval()
    endless = SimpleNamespace(eos_token_id=-1)
    sampler = TransformersSampler(model, endless, precision=precision, max_tokens=1 << 30, description=None)
    generator = torch.Generator().manual_seed(0)
    shape = (spec.num_prompts, spec.prompt_tokens)
    prompts = torch.randint(model.config.vocab_size, shape, generator=generator).tolist()

    def generate(batch: list[list[int]]) -> None:
        sampler.sample(batch, max_new_tokens=spec.new_tokens, temperature=0.0, seed=0)

    single_s = _seconds(lambda: generate(prompts[:1]), spec.repeats)
    batched_s = _seconds(lambda: generate(prompts), spec.repeats)
    return {
        "tokens_per_s": spec.num_prompts * spec.new_tokens / batched_s,
        "tokens_per_s_single": spec.new_tokens / single_s,
        "size_gb": size_gb(folder),
        "memory_gb": _peak_bytes(model.device) / _GB,
        "num_parameters": sum(one.numel() for one in model.parameters()),
        "device": str(model.device),
        "num_threads": torch.get_num_threads(),
    }


def _seconds(run: Callable[[], None], repeats: int) -> float:
    run()  # the first one also warms up
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return median(times)


def _peak_bytes(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _main(folder: str, settings: str) -> None:
    given = json.loads(settings)
    precision = given.pop("precision")
    print(json.dumps(_measure(Path(folder), SpeedSpec.model_validate(given), precision)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
