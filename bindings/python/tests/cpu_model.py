"""transformers on the CPU with q4 and without: `cpu_model.py FOLDER VARIANT...`, a line each: tokens/s and prefill.

FOLDER: a GPTQ checkpoint; a random one of SmolLM2-135M's shape is made where it is missing. VARIANT: fp32, bf16 (random dense
weights of the same shape), or q4 with what is to be done to it: q4-fuse, q4-head, q4-fuse-head, q4-bf16.
Q4_TORCH_THREADS=1 puts q4 on torch's threads. Needs torch and transformers; by hand, as it measures."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import q4.torch
import q4.transformers

sys.path.insert(0, str(Path(__file__).parents[3] / "tests/generate"))
import llama  # noqa: E402

SMALL = llama.Shape(layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocab=49152, group=64,
                    act_order=False, positions=2048)  # fmt: skip
LENGTH, PROMPT = 24, 128


def load(folder: Path, variant: str) -> Any:
    dtype = torch.bfloat16 if "bf16" in variant else torch.float32
    auto = transformers.AutoModelForCausalLM
    if not variant.startswith("q4"):
        config = transformers.AutoConfig.from_pretrained(folder)
        del config.quantization_config
        return auto.from_config(config, dtype=dtype)
    model = auto.from_pretrained(folder, quantization_config=q4.transformers.Q4Config(device="cpu"), dtype=dtype)
    if "fuse" in variant:
        assert q4.torch.fuse_linears(model)
    if "head" in variant:
        assert q4.torch.quantize_linears(model, "lm_head")
    return model


def seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    folder = Path(sys.argv[1])
    if not folder.exists():
        llama.make(folder, SMALL)
    torch.set_grad_enabled(False)
    for variant in sys.argv[2:]:
        model = load(folder, variant).eval()
        ids = torch.arange(1, PROMPT + 1)[None]

        def generate(count: int) -> None:
            options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            model.generate(ids[:, :8], max_new_tokens=count, min_new_tokens=count, **options)

        generate(4)
        each = min(seconds(lambda: generate(LENGTH + 1)) - seconds(lambda: generate(1)) for _ in range(4)) / LENGTH
        prefill = min(seconds(lambda: model(ids)) for _ in range(5))
        print(f"{variant:14} Q4_TORCH_THREADS={os.environ.get('Q4_TORCH_THREADS', '0')}, {torch.get_num_threads()} threads: "
              f"{1 / each:.1f} tokens/s, {PROMPT} tokens in {prefill * 1e3:.0f} ms", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
