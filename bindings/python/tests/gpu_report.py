#!/usr/bin/env python3
"""What only a GPU can show of both modules, as PASS and FAIL lines and a table.

Usage: python gpu_report.py [SECTION ...]

Needs torch with CUDA and the installed wheel. Sections are independent: one that fails does not stop the others.
"""

import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Callable

import torch

sys.path.insert(0, str(Path(__file__).parent))

import exllama_kernels as ek  # noqa: E402
import q4  # noqa: E402
import q4.torch as q4_torch  # noqa: E402

# fmt: off
from gpu_model import (BF16, HALF, LIMIT, Config, Decoder, OldLinear, attempt, bound, build,  # noqa: E402
                       drop_in, greedy, multipliers, note, notes, quantized, record, replay, results, worst)
# fmt: on
from samples import save_checkpoint  # noqa: E402

SHAPES = [
    (4096, 4096, 128, False),
    (4096, 1024, 128, True),
    (2752, 4096, 32, False),
    (11008, 4096, -1, False),
    (256, 40, 8, True),
]
ROWS = (1, 2, 5, 8, 16, 33, 64)


def correctness() -> None:
    for k, n, group, act_order in SHAPES:
        part = quantized(k, n, group, act_order)
        rows = (*ROWS, 257) if k == n else ROWS

        def old() -> str:
            handle = ek.make_q4(*part.tensors(), part.g_idx if act_order else None, 0)
            errors = [
                worst(drop_in(handle, x, n), x, part.dense)
                for m in rows
                for x in [torch.randn(m, k, device="cuda", dtype=HALF)]
            ]
            assert drop_in(handle, torch.empty(0, k, device="cuda", dtype=HALF), n).shape == (0, n)
            ek.cleanup()
            bound(max(errors), LIMIT[HALF], "drop-in")
            return f"error {max(errors):.1e}"

        def new() -> str:
            W = q4.Matrix.from_gptq(*part.tensors(), part.g_idx)
            said = []
            for dtype in (HALF, BF16):
                errors = [
                    worst(x @ W, x, part.dense) for m in rows for x in [torch.randn(m, k, device="cuda", dtype=dtype)]
                ]
                bound(max(errors), LIMIT[dtype], str(dtype))
                said.append(f"{max(errors):.1e}")
            return "errors " + " ".join(said)

        title = f"{k}x{n} group {group}{' act-order' if act_order else ''}"
        attempt(f"drop-in fp16 {title}", old)
        attempt(f"modern fp16 bf16 {title}", new)


def contract() -> None:
    k, n = 1024, 512
    part = quantized(k, n, 128, True)
    for parameters in (
        None,
        (8, False, False),
        (0, False, False),
        (1, False, False),
        (0, True, False),
        (8, False, True),
    ):

        def tuned() -> str:
            if parameters:
                ek.set_tuning_params(*parameters)
            handle = ek.make_q4(*part.tensors(), part.g_idx.cpu(), 0)
            errors = [
                worst(drop_in(handle, x, n), x, part.dense)
                for m in (1, 7, 8, 40)
                for x in [torch.randn(m, k, device="cuda", dtype=HALF)]
            ]
            ek.cleanup()
            ek.reset_tuning_params()
            bound(max(errors), LIMIT[HALF], "q4_matmul")
            return f"error {max(errors):.1e}"

        attempt(f"set_tuning_params{parameters or ' not called'}", tuned)

    def forms() -> None:
        before = part.qweight.clone()
        meta = torch.empty((1, 1), device="meta")
        plain = quantized(k, n, 128)
        handles = [
            ek.make_q4(*plain.tensors(), g, torch.device("cuda", 0))
            for g in (None, meta, plain.g_idx, plain.g_idx.cpu())
        ]
        x = torch.randn(4, k, device="cuda", dtype=HALF)
        ek.prepare_buffers(
            torch.device("cuda", 0),
            torch.zeros(4, k, dtype=HALF, device="cuda"),
            torch.zeros(1, k * n, dtype=HALF, device="cuda"),
        )
        first = drop_in(handles[0], x, n)
        assert all(torch.equal(drop_in(h, x, n), first) for h in handles), "forms of g_idx differ"
        ordered = ek.make_q4(*part.tensors(), part.g_idx, 0)
        drop_in(ordered, x, n)
        try:
            drop_in(ordered, torch.zeros(5, k, dtype=HALF, device="cuda"), n)
            raise AssertionError("temp_state of 4 rows took 5")
        except RuntimeError as error:
            assert "temp_state buffer is too small" in str(error)
        assert torch.equal(part.qweight, before), "qweight was modified"
        ek.cleanup()
        try:
            drop_in(ordered, x, n)
            raise AssertionError("a stale handle worked")
        except RuntimeError as error:
            assert "stale" in str(error)
        for wrong in (x.cpu(), x.float(), x[:, 1:], x.t()):
            handle = ek.make_q4(*plain.tensors(), None, 0)
            try:
                drop_in(handle, wrong, n)
                raise AssertionError("bad x was taken")
            except RuntimeError:
                pass
        ek.cleanup()

    attempt("g_idx forms, temp_state, stale handles, bad x", forms)

    def remap() -> None:
        for columns in (8, 100, 2752, 4096):
            x = torch.randn(9, columns, device="cuda", dtype=HALF)
            x_map = torch.randperm(columns, device="cuda").int()
            x_new = torch.full_like(x, float("nan"))
            ek.column_remap(x, x_new, x_map)
            assert torch.equal(x_new, x[:, x_map.long()])

    attempt("column_remap", remap)


def streams() -> None:
    part, both = multipliers(2048, 2048, True)
    for name, multiply in both.items():

        def side() -> str:
            for m in (1, 48):
                inputs = [torch.randn(m, 2048, device="cuda", dtype=HALF) for _ in range(6)]
                expected = [multiply(x).clone() for x in inputs]
                torch.cuda.synchronize()
                queue = [torch.cuda.Stream() for _ in inputs]
                outs = []
                for _ in range(30):
                    for x, stream in zip(inputs, queue):
                        with torch.cuda.stream(stream):
                            outs.append(multiply(x))
                torch.cuda.synchronize()
                assert all(torch.equal(out, expected[i % 6]) for i, out in enumerate(outs)), f"m = {m}"
            return "6 streams, 180 calls, bitwise the same"

        attempt(f"side streams, {name}", side)

        def captured() -> str:
            for m in (1, 16, 100):
                still = torch.randn(m, 2048, device="cuda", dtype=HALF)
                multiply(still)
                replay(multiply, still, part.dense)
            return "m = 1, 16, 100"

        attempt(f"graph capture, {name}", captured)

    cold, fresh = multipliers(2048, 1536, True)
    try:
        replay(fresh["modern"], torch.randn(3, 2048, device="cuda", dtype=HALF), cold.dense)
        note("graph capture without a call before, which is not promised: works")
    except Exception as problem:
        note(f"graph capture without a call before, which is not promised: {problem}"[:200])
    ek.cleanup()


def compiled() -> None:
    # act-order needs scratch memory, which must not come from the pool of a graph
    for act_order in (False, True):
        part = quantized(1024, 1024, 128, act_order)
        linear = q4_torch.Linear.from_gptq(*part.tensors(), part.g_idx if act_order else None)

        def twice(x: Any, linear: Any = linear) -> Any:
            return linear(torch.nn.functional.silu(linear(x))) * 2

        for mode in ("default", "reduce-overhead"):

            def run(twice: Any = twice, mode: str = mode) -> str:
                torch._dynamo.reset()
                function = torch.compile(twice, fullgraph=True, mode=mode)
                with torch.no_grad():
                    for m in (1, 1, 1, 16, 16, 16, 300, 300, 300):
                        x = torch.randn(m, 1024, device="cuda", dtype=HALF)
                        torch.testing.assert_close(function(x).clone(), twice(x), rtol=2e-2, atol=2e-2)
                return "one graph"

            attempt(f"torch.compile mode={mode} act_order={act_order}", run)


def memory() -> None:
    part = quantized(4096, 4096, 128, True)
    x = torch.randn(64, 4096, device="cuda", dtype=HALF)
    del part.dense
    torch.cuda.empty_cache()

    def free() -> int:
        torch.cuda.synchronize()
        return int(torch.cuda.mem_get_info()[0])

    def old() -> None:
        handles = [ek.make_q4(*part.tensors(), part.g_idx, 0) for _ in range(8)]
        for handle in handles:
            drop_in(handle, x, 4096)
        ek.cleanup()

    def new() -> None:
        matrices = [q4.Matrix.from_gptq(*part.tensors(), part.g_idx) for _ in range(8)]
        for W in matrices:
            x @ W
        del matrices, W
        q4.release_workspaces()

    for name, cycle in (("drop-in", old), ("modern", new)):

        def returned() -> str:
            cycle()
            start = free()
            for _ in range(10):
                cycle()
            lost = start - free()
            assert lost < 2 << 20, f"{lost} bytes lost in 10 cycles"
            return f"{lost} bytes lost in 10 cycles of 8 matrices"

        attempt(f"memory after cleanup, {name}", returned)


def model_tokens() -> None:
    for act_order in (False, True):

        def compare() -> str:
            model, parts = build(Config(), 128, act_order)
            prompt, steps = torch.randint(0, 4096, (16,), device="cuda"), 96
            reference, tokens = greedy(model, prompt, steps)
            with tempfile.TemporaryDirectory() as folder:
                for part in parts.values():
                    for field in ("qweight", "qzeros", "scales", "g_idx"):
                        setattr(part, field, getattr(part, field).cpu().numpy())
                save_checkpoint(Path(folder), parts, 128, desc_act=act_order)  # type: ignore[arg-type]
                replaced = q4_torch.replace_linears(model, folder)
            assert len(replaced) == 7 * model.c.layers and isinstance(model.layers[0].q_proj, q4_torch.Linear)
            ours, _ = greedy(model, prompt, steps, tokens)
            deviation = float(reference.std())
            chosen = ours.argmax(-1)
            gap = reference.gather(1, tokens[:, None]) - reference.gather(1, chosen[:, None])
            largest, differ = float(gap.max()) / deviation, int((chosen != tokens).sum())
            logits = float((ours - reference).abs().max()) / deviation
            assert largest < 0.03, f"{differ} tokens differ, by up to {largest:.3f} of the logits' deviation"
            same = f"{steps - differ} of {steps} the same, ties within {largest:.4f}"
            return f"{same}; logits differ by {logits:.4f} deviations"

        attempt(f"Llama-like model{', act-order' if act_order else ''}: the dequantized model's tokens", compare)


def speed() -> None:
    config = Config(hidden=4096, inner=11008, layers=8, heads=32, vocab=32000, length=512)
    model, parts = build(config, 128, False, keep=False)
    made: dict[str, Callable[[str], torch.nn.Module]] = {
        "q4.torch.Linear": lambda name: q4_torch.Linear.from_gptq(*parts[name].tensors()),
        "exllama_kernels": lambda name: OldLinear(
            ek.make_q4(*parts[name].tensors(), None, 0), parts[name].scales.shape[1]
        ),
    }
    note("decode, tokens a second: hidden 4096, inner 11008, 8 layers, vocabulary 32000 in fp16, batch 1")
    rates: dict[tuple[str, bool], float] = {}
    for kind in ("torch fp16", *made):
        if kind in made:
            for name in parts:
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, made[kind](name))
        for graph in (False, True):

            def decode() -> str:
                rates[kind, graph] = Decoder(model, graph).rate()
                beside = rates.get(("torch fp16", graph))
                return f"{rates[kind, graph]:.0f} tokens/s" + (
                    f", {rates[kind, graph] / beside:.2f} of torch fp16" if beside else ""
                )

            attempt(f"decode {kind}, {'graph' if graph else 'eager'}", decode)
    ek.cleanup()


def overhead() -> None:
    part = quantized(8, 8, 8)
    handle, W = ek.make_q4(*part.tensors(), None, 0), q4.Matrix.from_gptq(*part.tensors())
    plan = W.plan(1)
    x, out = torch.randn(1, 8, device="cuda", dtype=HALF), torch.empty(1, 8, device="cuda", dtype=HALF)
    linear = q4_torch.Linear(W)
    dense = part.dense.half()

    def fastest_us(call: Callable[[], Any], calls: int, tries: int = 50) -> float:
        """Host time alone: the queue never fills."""
        times = []
        for _ in range(tries):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            times.append((time.perf_counter() - start) / calls)
        torch.cuda.synchronize()
        return min(times) * 1e6

    with torch.no_grad():
        launch = fastest_us(lambda: plan.run(x, out, repeat=200), 1) / 200
        times = {
            "q4_matmul": fastest_us(lambda: ek.q4_matmul(x, handle, out), 200),
            "Plan.run": fastest_us(lambda: plan.run(x, out), 200),
            "x @ W": fastest_us(lambda: x @ W, 200),
            "q4.torch.Linear": fastest_us(lambda: linear(x), 200),
            "torch.ops.q4.matmul": fastest_us(lambda: torch.ops.q4.matmul(x, linear._number, 8), 200),
            "torch.mm, for comparison": fastest_us(lambda: torch.mm(x, dense, out=out), 200),
        }
    note(f"host time of a call with an 8 x 8 matrix; the library's own launch: {launch:.2f} us")
    for name, value in times.items():
        note(f"{name}: {value:.2f} us, {value - launch:+.2f} beyond the launch")
    beyond = times["q4_matmul"] - launch
    record(beyond <= 5, "q4_matmul at most 5 us beyond the launch", f"{beyond:.2f} us")
    ek.cleanup()


def suite() -> None:
    """The tests themselves, with the CUDA ones."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tempfile.gettempdir())
    lines = result.stdout.strip().splitlines()
    print("\n".join(lines[-25:]))
    record(result.returncode == 0, "pytest", lines[-1] if lines else result.stderr[-300:])


SECTIONS = [correctness, contract, streams, memory, model_tokens, speed, overhead, compiled, suite]


def main() -> int:
    wanted = sys.argv[1:] or [section.__name__ for section in SECTIONS]
    print(f"torch {torch.__version__}, python {sys.version.split()[0]}, {torch.cuda.get_device_name()}")
    print(f"q4 {q4.__version__}, NVRTC {os.environ.get('Q4_NVRTC', 'of the system')}")
    for backend in q4.backends():
        print(f"{backend.kind}: {backend.reason or 'available'} {backend.components}")
    for section in SECTIONS:
        if section.__name__ not in wanted:
            continue
        start = time.perf_counter()
        print(f"---- {section.__name__}", flush=True)
        try:
            with torch.no_grad():
                section()
        except Exception as problem:
            traceback.print_exc()
            record(False, section.__name__, f"{type(problem).__name__}: {problem}"[:300])
        print(f"     {time.perf_counter() - start:.1f} s", flush=True)
        torch.cuda.empty_cache()
    print("---- table")
    for ok, name, detail in results:
        print(f"{'PASS' if ok else 'FAIL'} | {name} | {detail}")
    for text in notes:
        print(f"     | {text}")
    failed = sum(not ok for ok, _, _ in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
