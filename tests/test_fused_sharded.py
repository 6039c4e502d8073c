"""A head whose weight is sharded over two processes (FSDP2) learns what one process learns from all rows."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

NUM_ROWS, VOCAB, WIDTH = 6, 37, 8
CASES = ("apart", "tied", "inside")


class Model(torch.nn.Module):
    """An embedding, a layer and a head, whose weight may be the embedding's."""

    def __init__(self, *, is_tied: bool) -> None:
        super().__init__()
        self.decoder = torch.nn.Sequential(torch.nn.Embedding(VOCAB, WIDTH), torch.nn.Linear(WIDTH, WIDTH))
        self.head = torch.nn.Linear(WIDTH, VOCAB)
        if is_tied:
            self.tie()

    def tie(self) -> None:
        self.head.weight = self.decoder[0].weight

    def forward(self, rows: slice) -> Tensor:
        """Mean loss over some of the rows; the head is not called."""
        from proxykd.factored_logits import FactoredLogits
        from proxykd.student.objective import student_objective

        tokens = torch.arange(NUM_ROWS)[rows]
        hidden = self.decoder(tokens).tanh()
        logits = FactoredLogits((hidden,), (self.head.weight,), self.head.bias)
        return student_objective(logits, tokens + 1, None, alpha=0.0).loss / len(tokens)


def make_model(case: str) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(is_tied=case != "apart")


def shard(model: Model, case: str) -> None:
    """Three ways in which a head's weight may be sharded."""
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.decoder[1])
    if case == "inside":  # FSDP gathers all weights around the forward pass that computes the loss
        fully_shard(model)
        return
    fully_shard(model.decoder)
    fully_shard(model.head)
    if case == "tied":
        model.tie()


def child(rank: int, port: int, folder: Path) -> None:
    """One of two processes: half of the rows, each case's gradients gathered and saved by the first."""
    from safetensors.torch import save_file

    store = torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.distributed.init_device_mesh("cpu", (2,))
    for case in CASES:
        model = make_model(case)
        shard(model, case)
        model(slice(3 * rank, 3 * rank + 3)).backward()
        gathered = {name: value.grad.full_tensor() for name, value in model.named_parameters()}
        if rank == 0:
            save_file(gathered, folder / f"{case}.safetensors")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the gradients of all cases."""
    folder = tmp_path_factory.mktemp("gathered")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, str(port), str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    failures = [process.communicate(timeout=240)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), failures
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_step_of_one(case: str, gathered: Path) -> None:
    model = make_model(case)
    model(slice(None)).backward()
    found = load_file(gathered / f"{case}.safetensors")
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], value.grad, rtol=1e-5, atol=1e-7)


if __name__ == "__main__":
    child(int(sys.argv[3]), int(sys.argv[1]), Path(sys.argv[2]))
