#!/usr/bin/env python3
"""What only a GPU can show of the drop-ins: memory, compiling ahead, weights in place and replaced, and times.

Usage: python gpu_server.py [SECTION ...]

Needs torch with CUDA and the installed wheel. The layers call the modules exactly as LoRAX, TGI and AutoGPTQ do.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import exllama_kernels as ek  # noqa: E402
import exllamav2_kernels as ek2  # noqa: E402
import q4  # noqa: E402
from samples import gptq  # noqa: E402

DEVICE = torch.device("cuda", 0)
NONE = torch.empty((1, 1), device="meta")
SHAPES = [(4096, 6144), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)]  # of a llama-3-8b layer
ROWS = 2048
failures = 0


def say(name: str, ok: bool, text: str) -> None:
    global failures
    failures += not ok
    print(("PASS" if ok else "FAIL"), name, text, flush=True)


def random_tensors(k: int, n: int, group: int = 128) -> list[Any]:
    """qweight, qzeros, scales on the device; made there, so that a whole model takes seconds."""
    words = torch.randint(-(2**31), 2**31, (k // 8, n), dtype=torch.int64, device=DEVICE).to(torch.int32)
    zeros = torch.full((k // group, n // 8), 0x77777777, dtype=torch.int32, device=DEVICE)
    scales = (torch.rand((k // group, n), device=DEVICE) * 0.01 + 0.001).half()
    return [words, zeros, scales]


class V1:
    """As LoRAX's and TGI's Ex4bitLinear."""

    def __init__(self, tensors: list[Any], g_idx: Any = None) -> None:
        self.qweight, self.qzeros, self.scales = tensors
        self.width = self.qweight.shape[1]
        self.handle = ek.make_q4(self.qweight, self.qzeros, self.scales, NONE if g_idx is None else g_idx, 0)

    def __call__(self, x: Any) -> Any:
        x = x.view(-1, x.shape[-1])
        out = torch.empty((x.shape[0], self.width), dtype=torch.half, device=x.device)
        ek.q4_matmul(x, self.handle, out)
        return out


class V2:
    """As TGI's QuantLinear, with 11 arguments or 13."""

    def __init__(self, tensors: list[Any], g_idx: Any = None, new: bool = False) -> None:
        self.qweight, self.qzeros, self.scales = tensors
        k, self.width = self.qweight.shape[0] * 8, self.qweight.shape[1]
        self.temp_dq = torch.empty((k * self.width + 64,), dtype=torch.half, device=DEVICE)
        perms = [NONE, NONE]
        if g_idx is not None:
            perms = [torch.empty((k,), dtype=torch.short, device=DEVICE) for _ in range(2)]
        self.perms = perms
        rest = [NONE] * 4 + [self.qzeros, self.scales, NONE if g_idx is None else g_idx]
        tail = [NONE, self.temp_dq, 0] if new else [self.temp_dq]
        self.handle = ek2.make_q_matrix(self.qweight, *perms, *rest, *tail)

    def __call__(self, x: Any) -> Any:
        x = x.view(-1, x.shape[-1])
        out = torch.empty((x.shape[0], self.width), dtype=torch.half, device=x.device)
        ek2.gemm_half_q_half(x, self.handle, out, False)
        return out


def clean() -> None:
    ek.cleanup()
    ek2.cleanup()
    torch.cuda.synchronize()


def prepare(rows: int = ROWS) -> None:
    """As create_exllama_buffers."""
    ek.prepare_buffers(
        DEVICE,
        torch.zeros((rows, 14336), dtype=torch.half, device=DEVICE),
        torch.zeros((1, 4096 * 14336), dtype=torch.half, device=DEVICE),
    )
    ek.set_tuning_params(8, False, False)


def right() -> None:
    for act_order in (False, True):
        sample = gptq(1024, 512, 128, act_order=act_order, seed=4)
        dense = torch.from_numpy(sample.dense).to(DEVICE)
        g_idx = torch.from_numpy(sample.g_idx) if act_order else None
        for name, make in (("v1", V1), ("v2", V2), ("v2 13", lambda t, g: V2(t, g, True))):
            tensors = [torch.from_numpy(t).to(DEVICE) for t in sample.tensors()]
            layer = make(tensors, g_idx)
            worst = 0.0
            for m in (1, 2, 8, 16, 33, 257, 1024):
                x = torch.randn((m, 1024), device=DEVICE, dtype=torch.half)
                exact = x.double() @ dense
                worst = max(worst, float((layer(x).double() - exact).norm() / exact.norm()))
            say(f"right {name} act_order={act_order}", worst < 5e-4, f"error {worst:.2e}")
            clean()
            same = all(bool((t.cpu() == torch.from_numpy(s)).all()) for t, s in zip(tensors, sample.tensors()))
            say(f"restored {name} act_order={act_order}", same, "qweight, qzeros and scales after cleanup()")


def shared() -> None:
    """Layers that share qzeros and scales, which the first of them takes."""
    first, second = random_tensors(1024, 512), random_tensors(1024, 512)
    second[1:] = first[1:]
    kept = [t.clone() for t in (*first, second[0])]
    x = torch.randn((4, 1024), device=DEVICE, dtype=torch.half)
    exact = [x @ q4.Matrix.from_gptq(*t, zeros="v1") for t in (first, second)]
    layers = [V1(first), V1(second), V2(first)]
    got = [layer(x) for layer in layers]
    ok = all(bool((a == b).all()) for a, b in zip(got, [*exact, exact[0]]))
    clean()
    ok &= all(bool((a == b).all()) for a, b in zip((*first, second[0]), kept))
    say("shared", ok, "two layers with the same scales and zeros, and both modules with the same tensors")


def memory() -> None:
    for name, make in (("v1", V1), ("v2", V2)):
        clean()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        tensors = [random_tensors(k, n) for _ in range(32) for k, n in SHAPES]
        weights = torch.cuda.memory_allocated() - before
        layers = []
        for t in tensors:
            layers.append(make(t))
            if isinstance(layers[-1], V2):
                layers[-1].temp_dq = None  # clients share one
        held = torch.cuda.memory_allocated() - before
        q4.trim()
        extra = torch.cuda.memory_allocated() - before - weights
        say(f"memory {name}", extra < 0.02 * weights, f"weights {weights >> 20} MiB, {extra / weights:.2%} more, "
            f"{(held - weights) >> 20} MiB while loading; q4.memory() {q4.memory()['cuda:0']}")  # fmt: skip
        del tensors, layers


def ahead() -> None:
    clean()
    layers = [V1(random_tensors(k, n)) for k, n in SHAPES]
    prepare()
    ek.finish_compiling()
    layers[0](torch.zeros((1, 4096), dtype=torch.half, device=DEVICE))
    compiled = q4.cache_counters()["compiled"]
    for layer, (k, _) in zip(layers, SHAPES):
        for m in (1, 2, 7, 8, 16, 17, 100, 256, 1000, 2048):
            layer(torch.zeros((m, k), dtype=torch.half, device=DEVICE))
    torch.cuda.synchronize()
    more = q4.cache_counters()["compiled"] - compiled
    say("ahead", more == 0, f"{more:.0f} kernels compiled after prepare_buffers and one call")
    clean()


def update() -> None:
    first, second = random_tensors(4096, 4096), random_tensors(4096, 4096)
    W = q4.Matrix.from_gptq(*first, zeros="v1")
    x = torch.randn((8, 4096), device=DEVICE, dtype=torch.half)
    out = torch.empty((8, 4096), device=DEVICE, dtype=torch.half)
    q4.matmul(x, W, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q4.matmul(x, W, out=out)
    ok = True
    for tensors in (second, first, second):
        W.update(*tensors, zeros="v1")
        graph.replay()
        torch.cuda.synchronize()
        ok &= bool((out == x @ q4.Matrix.from_gptq(*tensors, zeros="v1")).all())
    say("update", ok, "a captured graph computes with the new weights")


def reuse() -> None:
    for group in (128, 64, 32):
        tensors = random_tensors(4096, 4096, group)
        kept = [t.clone() for t in tensors]
        own = q4.Matrix.from_gptq(*tensors, zeros="v1")
        W = q4.Matrix.from_gptq(*tensors, zeros="v1", reuse=True)
        ok = W.in_place and W.scales_in_place
        for m in (1, 3, 8, 16, 33, 100, 300):
            x = torch.randn((m, 4096), device=DEVICE, dtype=torch.half)
            ok &= bool((x @ W == x @ own).all())
        W.restore()
        ok &= all(bool((a == b).all()) for a, b in zip(tensors, kept))
        say(f"reuse group {group}", ok, "bits as with memory of its own, and the tensors restored")


def sealed() -> None:
    W = q4.Matrix.from_gptq(*random_tensors(4096, 1024), zeros="v1")
    W.warmup(100)
    bias = torch.randn(1024, device=DEVICE, dtype=torch.half)
    q4.seal("error")
    try:
        for m in range(1, 129):
            x = torch.randn((m, 4096), device=DEVICE, dtype=torch.half)
            q4.matmul(x, W, bias=bias if m % 2 else None)
        say("sealed", True, "m = 1 to 128 after warmup(100), with bias and without")
    finally:
        q4.seal("off")


def loads() -> None:
    """What make_q4 takes for a model, against reading and writing its bytes once."""
    for name, make in (("v1", V1), ("v2", V2)):
        clean()
        tensors = [random_tensors(k, n) for _ in range(32) for k, n in SHAPES]
        make(random_tensors(4096, 4096))  # compiles what loads need
        torch.cuda.synchronize()
        begin = time.perf_counter()
        copies = [[t.clone() for t in group] for group in tensors]
        torch.cuda.synchronize()
        copied = time.perf_counter() - begin
        del copies
        begin = time.perf_counter()
        copies = [[t.clone() for t in group] for group in tensors]  # the caching allocator has the memory now
        torch.cuda.synchronize()
        copied = min(copied, time.perf_counter() - begin)
        del copies
        begin = time.perf_counter()
        layers = [make(t) for t in tensors]
        torch.cuda.synchronize()
        took = time.perf_counter() - begin
        print(f"TIME {name}: {len(layers)} loads {took * 1e3:.1f} ms, a copy of their tensors {copied * 1e3:.1f} ms", flush=True)
        del layers, tensors


def paired() -> None:
    """Scales and zeros in place against a copy of them: graphs of six matrices, which the L2 does not hold, by turns."""
    for group in (128, 64, 32):
        apart, own = [], []
        for _ in range(6):
            tensors = random_tensors(8192, 8192, group)
            own.append(q4.Matrix.from_gptq(*tensors, zeros="v1"))
            apart.append(q4.Matrix.from_gptq(*tensors, zeros="v1", reuse=True))
        for m in (1, 8, 16, 64, 256):
            x = torch.randn((m, 8192), device=DEVICE, dtype=torch.half)
            out = torch.empty((m, 8192), device=DEVICE, dtype=torch.half)
            graphs = []
            for matrices in (own, apart):
                for W in matrices:
                    q4.matmul(x, W, out=out)
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[-1]):
                    for W in matrices:
                        q4.matmul(x, W, out=out)
            spent: list[list[float]] = [[], []]
            for _ in range(30):
                for graph, to in zip(graphs, spent):
                    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    begin.record()
                    graph.replay()
                    end.record()
                    torch.cuda.synchronize()
                    to.append(begin.elapsed_time(end) * 1e3 / 6)
            a, b = (sorted(s)[15] for s in spent)
            print(f"TIME 8192x8192 group {group} m={m}: {a:.2f} us, in place {b:.2f} us ({b / a:.3f})", flush=True)
        del apart, own


def times() -> None:
    tensors = [random_tensors(8192, 8192) for _ in range(6)]
    layers = [V1(t) for t in tensors]
    prepare()
    ek.finish_compiling()
    for m in (1, 8, 16, 64, 256, 1024):
        x = torch.randn((m, 8192), device=DEVICE, dtype=torch.half)
        out = torch.empty((m, 8192), device=DEVICE, dtype=torch.half)
        for layer in layers:
            ek.q4_matmul(x, layer.handle, out)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for layer in layers:
                ek.q4_matmul(x, layer.handle, out)
        spent = []
        for _ in range(20):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            spent.append(begin.elapsed_time(end) * 1e3 / len(layers))
        print(f"TIME drop-in 8192x8192 m={m}: {sorted(spent)[10]:.1f} us", flush=True)
    clean()


SECTIONS = {f.__name__: f for f in (right, shared, memory, ahead, update, reuse, sealed, loads, paired, times)}

if __name__ == "__main__":
    for wanted in sys.argv[1:] or SECTIONS:
        try:
            SECTIONS[wanted]()
        except Exception as error:
            say(wanted, False, f"{type(error).__name__}: {error}")
    sys.exit(failures > 0)
