"""Mixtral and Qwen3-MoE of transformers on a GPU, their experts in 4 bits and dequantized: tokens, and tokens/s. By hand.

`gpu_moe_model.py [LAYERS]`: random weights of the real layers' shapes, LAYERS of them (4). Only the experts are 4-bit; all
else is the same fp16 in both models. Decoding is greedy, one sequence, with a cache of fixed size, eager and as a CUDA graph;
the dense experts by each of transformers' implementations that runs."""

import sys
from types import SimpleNamespace
from typing import Any

import gpu_model
import q4
import q4.torch
import torch
import transformers

LENGTH, PROMPT, STEPS, VOCABULARY = 512, 32, 64, 32000


class Cache:
    """Keys and values of LENGTH positions; a step writes where `position` says."""

    def __init__(self, config: Any) -> None:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (2, config.num_hidden_layers, 1, config.num_key_value_heads, LENGTH, size)
        self.memory = torch.zeros(shape, dtype=torch.float16, device="cuda")
        self.position: Any = None

    def update(self, key: Any, value: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        keys, values = self.memory[0, layer], self.memory[1, layer]
        keys.index_copy_(2, self.position, key)
        values.index_copy_(2, self.position, value)
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        return 0


class Model:
    """As gpu_model.Llama: tokens [1, rows] at `position` [rows] -> logits [rows, vocabulary]."""

    def __init__(self, model: Any) -> None:
        self.model, self.c = model, SimpleNamespace(length=LENGTH)
        self.cache = Cache(model.config)

    def __call__(self, tokens: Any, position: Any) -> Any:
        self.cache.position = position
        mask = torch.arange(LENGTH, device="cuda")[None, :] <= position[:, None]
        given = {"attention_mask": mask[None, None], "position_ids": position[None], "past_key_values": self.cache}
        return self.model(input_ids=tokens, use_cache=True, **given).logits[0]


def build(kind: str, layers: int) -> tuple[Any, list[Any]]:
    """A model with dequantized experts, and the q4.torch.MoE of each layer."""
    common = {"num_hidden_layers": layers, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH}
    common |= {"num_attention_heads": 32, "attn_implementation": "sdpa", "dtype": torch.float16}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        if kind == "Mixtral-8x7B":
            shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2}
            config = transformers.MixtralConfig(num_key_value_heads=8, sliding_window=None, **shape, **common)
            model = transformers.MixtralForCausalLM(config)
        else:
            shape = {"hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8}
            config = transformers.Qwen3MoeConfig(num_key_value_heads=4, head_dim=128, norm_topk_prob=True, **shape, **common)
            model = transformers.Qwen3MoeForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    modules = []
    for number, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        weights: tuple[list[Any], list[Any]] = ([], [])
        for e in range(experts.num_experts):
            for into, dense in zip(weights, (experts.gate_up_proj, experts.down_proj)):
                n, k = dense.shape[1:]
                part = gpu_model.quantized(k, n, 128, seed=number * 1000 + 2 * e + (into is weights[1]))
                dense.data[e] = part.dense.t().half()
                into.append((*part.tensors(), None))
        w13 = q4.Experts.from_gptq(weights[0], gate_up=True, device="cuda")
        modules.append(q4.torch.MoE(w13, q4.Experts.from_gptq(weights[1], device="cuda")))
    return model.eval(), modules


def rate(model: Any, graph: bool) -> str:
    try:
        return f"{gpu_model.Decoder(Model(model), graph).rate(50, 2):.0f}"
    except Exception as problem:
        torch.cuda.synchronize()
        return f"- ({type(problem).__name__}: {str(problem)[:80]})"


def measure(kind: str, layers: int) -> None:
    model, modules = build(kind, layers)
    prompt = torch.randint(0, VOCABULARY, (PROMPT,), device="cuda")
    print(f"{kind}, {layers} layers, {torch.cuda.get_device_name()}: tokens/s eager, as a graph", flush=True)
    model.set_experts_implementation("eager")
    expected, tokens = gpu_model.greedy(Model(model), prompt, STEPS)
    dense = [layer.mlp.experts for layer in model.model.layers]
    for layer, module in zip(model.model.layers, modules):
        layer.mlp.experts = module
    _, own = gpu_model.greedy(Model(model), prompt, STEPS)
    same = int((own == tokens).long().cumprod(0).sum())
    forced, _ = gpu_model.greedy(Model(model), prompt, STEPS, tokens)
    difference = float((forced - expected).abs().max() / expected.std())
    agree = int((forced.argmax(-1) == tokens).sum())
    print(f"  {same} of {STEPS} tokens are the dequantized model's; {agree} where those go before; logits differ by at most "
          f"{difference:.3f} of their deviation", flush=True)  # fmt: skip
    print(f"  q4: {rate(model, False)}, {rate(model, True)}", flush=True)
    for layer, module in zip(model.model.layers, dense):
        layer.mlp.experts = module
    # A graph that cannot be captured may spoil what follows: the one that can comes first, and the others are only eager.
    for implementation, graph in (("batched_mm", True), ("eager", False), ("grouped_mm", False)):
        model.set_experts_implementation(implementation)
        print(f"  fp16, {implementation}: {rate(model, False)}, {rate(model, True) if graph else '-'}", flush=True)


def main() -> None:
    torch.set_grad_enabled(False)
    for kind in ("Qwen3-30B-A3B", "Mixtral-8x7B"):
        measure(kind, int(sys.argv[1]) if len(sys.argv) > 1 else 4)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
