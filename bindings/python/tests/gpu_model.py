"""What gpu_report.py measures with: random 4-bit matrices, a Llama-like model of them, and how results are judged."""

import statistics
import time
import traceback
from dataclasses import dataclass
from typing import Any, Callable

import exllama_kernels as ek
import q4
import torch
import torch.nn.functional as F

HALF, BF16 = torch.float16, torch.bfloat16
LIMIT = {HALF: 1e-3, BF16: 8e-3}  # of error beside the largest element

NIBBLES = torch.arange(8, dtype=torch.int64) * 4


def pack(values: Any, dim: int) -> Any:
    """Eight 4-bit values a word along dim."""
    values = values.movedim(dim, -1).long()
    values = values.reshape(*values.shape[:-1], -1, 8)
    words = (values << NIBBLES.to(values.device)).sum(-1)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    return words.movedim(-1, dim).contiguous()


@dataclass
class Quantized:
    qweight: Any
    qzeros: Any
    scales: Any
    g_idx: Any
    dense: Any  # fp32 [k, n]

    def tensors(self) -> list[Any]:
        return [self.qweight, self.qzeros, self.scales]


def quantized(
    k: int, n: int, group: int = 128, act_order: bool = False, seed: int = 0, device: str = "cuda"
) -> Quantized:
    """Weights about N(0, 1 / k), v1 zeros."""
    generator = torch.Generator(device).manual_seed(seed)
    group = k if group == -1 else group
    groups = -(-k // group)
    codes = (torch.randn((k, n), generator=generator, device=device) * 2.2 + 8).round().clamp(0, 15).int()
    zero = torch.randint(6, 10, (groups, n), generator=generator, device=device)
    scales = (0.8 + 0.4 * torch.rand((groups, n), generator=generator, device=device)) / (2.2 * k**0.5)
    scales = scales.half()
    g_idx = (torch.arange(k, device=device) // group).int()
    if act_order:
        g_idx = g_idx[torch.randperm(k, generator=generator, device=device)]
    dense = scales.float()[g_idx.long()] * (codes - zero[g_idx.long()]).float()
    return Quantized(pack(codes, 0), pack((zero - 1) & 15, 1), scales, g_idx.contiguous(), dense)


@dataclass
class Config:
    hidden: int = 1024
    inner: int = 2816
    layers: int = 4
    heads: int = 8
    vocab: int = 4096
    length: int = 256


class Layer(torch.nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, torch.nn.Linear(c.hidden, c.hidden, bias=False))
        self.gate_proj = torch.nn.Linear(c.hidden, c.inner, bias=False)
        self.up_proj = torch.nn.Linear(c.hidden, c.inner, bias=False)
        self.down_proj = torch.nn.Linear(c.inner, c.hidden, bias=False)
        self.register_buffer("keys", torch.zeros(1, c.heads, c.length, c.hidden // c.heads))
        self.register_buffer("values", torch.zeros(1, c.heads, c.length, c.hidden // c.heads))

    def forward(self, x: Any, position: Any, mask: Any, turn: Any) -> Any:
        c, rows = self.c, x.shape[1]

        def heads(y: Any) -> Any:
            return y.view(1, rows, c.heads, -1).transpose(1, 2)

        def rotate(y: Any) -> Any:
            first, second = y.chunk(2, -1)
            return y * turn[0] + torch.cat((-second, first), -1) * turn[1]

        h = F.rms_norm(x, (c.hidden,))
        query, key, value = rotate(heads(self.q_proj(h))), rotate(heads(self.k_proj(h))), heads(self.v_proj(h))
        self.keys.index_copy_(2, position, key)
        self.values.index_copy_(2, position, value)
        attended = F.scaled_dot_product_attention(query, self.keys, self.values, attn_mask=mask)
        x = x + self.o_proj(attended.transpose(1, 2).reshape(1, rows, c.hidden))
        h = F.rms_norm(x, (c.hidden,))
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Llama(torch.nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed = torch.nn.Embedding(c.vocab, c.hidden)
        self.layers = torch.nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.head = torch.nn.Linear(c.hidden, c.vocab, bias=False)
        size = c.hidden // c.heads
        angles = torch.outer(torch.arange(c.length), 10000.0 ** (-torch.arange(0, size, 2) / size))
        self.register_buffer(
            "turn", torch.stack((torch.cat((angles.cos(),) * 2, -1), torch.cat((angles.sin(),) * 2, -1)))
        )

    def forward(self, tokens: Any, position: Any) -> Any:
        """tokens [1, rows] at `position` [rows] -> logits [rows, vocab]"""
        x = self.embed(tokens)
        mask = torch.arange(self.c.length, device=x.device)[None, :] <= position[:, None]
        turn = self.turn[:, position]
        for layer in self.layers:
            x = layer(x, position, mask, turn)
        return self.head(F.rms_norm(x, (self.c.hidden,)))[0]


def build(
    c: Config, group: int, act_order: bool, seed: int = 0, keep: bool = True
) -> tuple[Llama, dict[str, Quantized]]:
    """A model whose layers' linears are dequantized, in fp16 on the GPU, and their quantized tensors by name."""
    torch.manual_seed(seed)
    with torch.device("cuda"):
        model = Llama(c).half()
    parts: dict[str, Quantized] = {}
    for number, (name, module) in enumerate(model.layers.named_modules(prefix="layers")):
        if not isinstance(module, torch.nn.Linear):
            continue
        part = quantized(module.in_features, module.out_features, group, act_order, seed + number)
        module.weight.data = part.dense.t().half().contiguous()
        if not keep:
            part.dense = None
        parts[name] = part
    return model.eval(), parts


def greedy(model: Llama, prompt: Any, steps: int, forced: Any = None) -> tuple[Any, Any]:
    """Logits [steps, vocab] and tokens [steps] after a prompt; `forced` are the tokens to go on with instead."""
    at = len(prompt)
    rows = [model(prompt[None], torch.arange(at, device="cuda"))[-1]]
    tokens: list[Any] = []
    for step in range(steps):
        tokens.append(rows[-1].argmax() if forced is None else forced[step])
        if step + 1 < steps:
            rows.append(model(tokens[-1].view(1, 1), torch.tensor([at + step], device="cuda"))[-1])
    return torch.stack(rows).float(), torch.stack(tokens)


class Decoder:
    """Greedy decoding of one token at a time, eager or as a graph."""

    def __init__(self, model: Llama, graph: bool) -> None:
        self.model = model
        self.token = torch.zeros((1, 1), dtype=torch.long, device="cuda")
        self.position = torch.zeros(1, dtype=torch.long, device="cuda")
        self.graph = None
        if graph:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.step()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step()
        self.position.zero_()

    def step(self) -> None:
        self.token.copy_(self.model(self.token, self.position).argmax(-1, keepdim=True))
        self.position.add_(1).remainder_(self.model.c.length)

    def rate(self, tokens: int = 100, tries: int = 3) -> float:
        rates = []
        for _ in range(tries + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(tokens):
                self.graph.replay() if self.graph else self.step()
            torch.cuda.synchronize()
            rates.append(tokens / (time.perf_counter() - start))
        return statistics.median(rates[1:])


class OldLinear(torch.nn.Module):
    """As AutoGPTQ and TGI wrap the old functions."""

    def __init__(self, handle: int, n: int) -> None:
        super().__init__()
        self.handle, self.n = handle, n

    def forward(self, x: Any) -> Any:
        rows = x.view(-1, x.shape[-1])
        out = torch.empty((rows.shape[0], self.n), dtype=HALF, device=x.device)
        ek.q4_matmul(rows, self.handle, out)
        return out.view(*x.shape[:-1], self.n)


def worst(out: Any, x: Any, dense: Any) -> float:
    """Largest error of any element beside x @ dense in fp32, over the largest element of that."""
    allow = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    expected = x.float() @ dense
    torch.backends.cuda.matmul.allow_tf32 = allow
    assert torch.isfinite(out).all(), "not finite"
    return float((out.float() - expected).abs().max() / expected.abs().max())


def bound(value: float, limit: float, what: str) -> None:
    assert value <= limit, f"{what}: error {value:.2e} over the limit {limit:.0e}"


def replay(multiply: Callable[[Any], Any], still: Any, dense: Any) -> None:
    """Captures a call and replays it with other inputs."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = multiply(still)
    for _ in range(3):
        still.copy_(torch.randn_like(still))
        graph.replay()
        torch.cuda.synchronize()
        bound(worst(out, still, dense), LIMIT[HALF], f"replay m = {len(still)}")


results: list[tuple[bool, str, str]] = []
notes: list[str] = []


def record(ok: bool, name: str, detail: str = "") -> None:
    results.append((ok, name, detail))
    print(f"{'PASS' if ok else 'FAIL'} {name}{': ' + detail if detail else ''}", flush=True)


def note(text: str) -> None:
    notes.append(text)
    print(f"     {text}", flush=True)


def attempt(name: str, work: Callable[[], str | None]) -> None:
    """`work` returns a detail, or raises."""
    try:
        record(True, name, work() or "")
    except Exception as problem:
        traceback.print_exc(limit=4)
        record(False, name, f"{type(problem).__name__}: {problem}"[:300])


def drop_in(handle: int, x: Any, n: int) -> Any:
    out = torch.full((len(x), n), float("nan"), dtype=HALF, device=x.device)
    ek.q4_matmul(x, handle, out)
    return out


def multipliers(k: int, n: int, act_order: bool) -> tuple[Any, dict[str, Callable[[Any], Any]]]:
    part = quantized(k, n, 128, act_order)
    handle = ek.make_q4(*part.tensors(), part.g_idx, 0)
    W = q4.Matrix.from_gptq(*part.tensors(), part.g_idx)
    return part, {"drop-in": lambda x: drop_in(handle, x, n), "modern": lambda x: x @ W}
