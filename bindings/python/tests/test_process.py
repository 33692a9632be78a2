"""Threads, fork() and exit: each script runs in a process of its own, which must end in time and without a signal."""

import os
import pickle
import subprocess
import sys
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import q4
from samples import activations, awq, gptq, save_checkpoint

HERE = Path(__file__).parent
BEGIN = """
import os, signal, sys, threading, time, traceback
import numpy as np
import q4
from samples import activations, gptq
sample = gptq(1024, 512, 128)
W, x = q4.Matrix.from_gptq(*sample.tensors()), activations(8, 1024)
plan, out = W.plan(8), np.empty((8, 512), np.float16)
expected = x @ W

def multiply():
    x @ W

def make():
    activations(3, 1024) @ q4.Matrix.from_gptq(*sample.tensors())

def run_plan():
    plan.run(x, out)

def configure():
    q4.configure()
    q4.devices(), q4.cache_counters()

def forever(work):
    while True:
        work()

def start(*works):
    for work in works:
        threading.Thread(target=forever, args=(work,), daemon=True).start()
    time.sleep(0.05)
"""


def run(script: str, timeout: float = 60) -> str:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    result = subprocess.run(
        [sys.executable, "-c", BEGIN + script], capture_output=True, text=True, timeout=timeout, env=environment
    )
    assert result.returncode == 0, f"exit {result.returncode}: {result.stderr}"
    return result.stdout


@pytest.mark.parametrize("works", ["multiply, multiply", "make, multiply", "run_plan", "configure, make"])
def test_daemon_threads_do_not_abort_the_exit(works: str) -> None:
    for _ in range(3):
        run(f"start({works})")


@pytest.mark.parametrize("works", ["multiply, multiply", "multiply, make, make", "run_plan, run_plan", "configure, make"])
def test_fork_while_threads_multiply(works: str) -> None:
    """Whatever the threads of the parent are in the middle of, the child can do all of it."""
    run(f"""
start({works})
for i in range(20):
    time.sleep(0.003)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs dies of it
        status = 1
        try:
            assert np.array_equal(x @ W, expected)
            assert np.allclose(x.astype(np.float32) @ W, expected, atol=1e-3)
            make()
            plan.run(x, out)
            assert np.array_equal(out, expected)
            configure()
            assert np.array_equal(x @ q4.Matrix.from_gptq(*sample.tensors()), expected)
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    assert (i, os.waitpid(child, 0)[1]) == (i, 0)
os._exit(0)
""")


def test_copies_are_the_object_itself(tmp_path: Path) -> None:
    W = q4.Matrix.from_gptq(*gptq(64, 16, 32).tensors())
    checkpoint = q4.Checkpoint(save_checkpoint(tmp_path, {"a": gptq(64, 16, 32)}, 32))
    values: list[Any] = [W.plan(1), checkpoint, checkpoint.matrices[0], q4.devices()[-1], q4.backends()[0]]
    for value in values:
        assert copy(value) is value and deepcopy(value) is value and deepcopy([value])[0] is value
    assert copy(W) is W


@pytest.mark.parametrize("kind", ["gptq", "act-order", "v2", "bias", "awq"])
def test_pickle_and_deepcopy_keep_every_bit(kind: str) -> None:
    sample = gptq(64, 16, 32, act_order=kind == "act-order", zeros="v2" if kind == "v2" else "v1")
    bias = activations(1, 16)[0] if kind == "bias" else None
    if kind == "awq":
        W = q4.Matrix.from_awq(*awq(64, 16, 32).tensors())
    else:
        W = q4.Matrix.from_gptq(*sample.tensors(), sample.g_idx, bias, zeros="v2" if kind == "v2" else "v1")
    x = activations(3, 64)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        for again in (pickle.loads(pickle.dumps(W, protocol)), deepcopy(W)):
            assert again is not W and repr(again) == repr(W) and again.zeros == W.zeros
            assert np.array_equal(x @ again, x @ W)
            for name, tensor in W.unpack().items():  # type: ignore[attr-defined]
                assert np.array_equal(again.unpack()[name], tensor), name
