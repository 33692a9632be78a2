"""The CPU backend on torch's own threads: the same bits, from any thread and in a child process; skipped without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

PROGRAM = """
import os, sys, threading
import torch
import q4, samples

threads = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(2)
W = q4.Matrix.from_gptq(*map(torch.from_numpy, samples.gptq(512, 768, 64).tensors()))
x = [torch.from_numpy(samples.activations(rows, 512)) for rows in (1, 7, 130)]
expected = [each @ W for each in x]
torch.ones(2000, 2000).sum()  # starts torch's threads in any case
print("threads", threads())
print("sums", *(float(y.double().sum()) for y in expected))

def same():
    # Without torch's own operations: in a child process it would wait for its threads for ever.
    return all((each @ W).numpy().tobytes() == y.numpy().tobytes() for each, y in zip(x, expected))

torch.set_num_threads(1)
assert same()
torch.set_num_threads(2)
results = []
workers = [threading.Thread(target=lambda: results.append(all(same() for _ in range(5)))) for _ in range(6)]
for worker in workers:
    worker.start()
torch.randn(1000, 1000).sum()
for worker in workers:
    worker.join()
assert results == [True] * 6
child = os.fork()  # which has none of the threads
if child == 0:
    os._exit(0 if same() else 1)
assert os.waitpid(child, 0)[1] == 0
assert same()
print("done")
"""


def run(wanted: str) -> "dict[str, list[str]]":
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "Q4_TORCH_THREADS": wanted, "PYTHONPATH": path}
    ended = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and "done" in ended.stdout, ended.stdout + ended.stderr
    return {line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines()}


def test_the_same_bits_as_with_threads_of_its_own() -> None:
    ours, theirs = run("0"), run("1")
    assert ours["sums"] == theirs["sums"]
    if len(os.sched_getaffinity(0)) > 1:  # with one there is nothing to share
        assert int(theirs["threads"][0]) < int(ours["threads"][0])
