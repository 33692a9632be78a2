"""What a call of q4_matmul costs beside the multiplication: an 8 x 8 matrix on the CPU.

1 to 5 us where nothing else runs, 7 where two cores are busy. The limit finds a call that locks, allocates or copies; Q4_OVERHEAD_US sets
a stricter one for a machine that is known."""

import os
import time
from typing import Any, Callable

import exllama_kernels as ek
import numpy as np
import pytest
import q4
from samples import activations, gptq


def fastest_us(call: Callable[[], Any], calls: int = 5000, tries: int = 9) -> float:
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, time.perf_counter() - start)
    return best / calls * 1e6


def report(kind: str, x: Any, out: Any) -> None:
    tensors = gptq(8, 8, 8).tensors()
    handle, plan = ek.make_q4(*tensors, None, None), q4.Matrix.from_gptq(*tensors).plan(1)
    whole = fastest_us(lambda: ek.q4_matmul(x, handle, out))
    inside = fastest_us(lambda: plan.run(x, out, repeat=1000), 10) / 1000
    ek.cleanup()
    print(f"q4_matmul 8x8, {kind}: {whole:.2f} us a call, {inside:.2f} in the library: {whole - inside:.2f} us beyond")
    assert whole - inside < float(os.environ.get("Q4_OVERHEAD_US", "15"))


def test_overhead(capsys: pytest.CaptureFixture[str]) -> None:
    x, out = activations(1, 8), np.empty((1, 8), np.float16)
    with capsys.disabled():
        report("NumPy", x, out)
        try:
            import torch
        except ImportError:
            return
        report("torch", torch.from_numpy(x), torch.from_numpy(out))
