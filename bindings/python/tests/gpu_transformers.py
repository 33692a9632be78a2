"""A Llama of transformers on a GPU, decoding with a static cache under torch.compile: q4's checkpoint beside fp16. By hand.

`gpu_transformers.py [LAYERS] [FOLDER]`: random weights of Llama 3 8B's layers, LAYERS of them (32); FOLDER as
tests/generate/llama.py writes it, else one is made. generate() with cache_implementation="static" compiles the model's
forward for one token itself (mode "reduce-overhead": a CUDA graph). --dry-run: a tiny model on the CPU."""

import dataclasses
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import q4.transformers
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "generate"))
import llama  # noqa: E402

DRY = "--dry-run" in sys.argv
DEVICE = "cpu" if DRY else "cuda"
FEW, MANY = (2, 6) if DRY else (32, 160)


def generated(model: Any, tokens: int, static: bool) -> "tuple[list[int], float]":
    """The tokens after a prompt of eight, and the seconds that they took."""
    prompt = torch.arange(1, 9, device=DEVICE)[None]
    options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    if static:
        options["cache_implementation"] = "static"
    if not DRY:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    if not DRY:
        torch.cuda.synchronize()
    return out[0, 8:].tolist(), time.perf_counter() - begin


def measure(name: str, model: Any) -> "list[int]":
    tokens: "list[int]" = []
    for static in (False, True):
        what = "static cache, compiled" if static else "dynamic cache, eager"
        try:
            begin = time.perf_counter()
            generated(model, MANY, static)  # compiles
            warm = time.perf_counter() - begin
            times: "list[float]" = []
            for _ in range(3):
                few, (got, many) = generated(model, FEW, static)[1], generated(model, MANY, static)
                times.append((MANY - FEW) / (many - few))
            same = "" if not tokens else f", {sum(a == b for a, b in zip(got, tokens))} of {MANY} tokens as eager"
            tokens = tokens or got
            print(f"{name}, {what}: {sorted(times)[1]:.1f} tokens/s (first call {warm:.0f} s{same})", flush=True)
        except Exception:
            traceback.print_exc()
            print(f"{name}, {what}: failed", flush=True)
    return tokens


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    layers = int(words[0]) if words else 32
    shape = dataclasses.replace(llama.Shape() if DRY else llama.LLAMA_3_8B, layers=layers)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(words[1]) if len(words) > 1 else Path(temporary)
        if not (folder / "config.json").exists():
            llama.make(folder, shape)
        print(f"{layers} layers, hidden {shape.hidden}, {'CPU' if DRY else torch.cuda.get_device_name()}, transformers "
              f"{transformers.__version__}, torch {torch.__version__}", flush=True)  # fmt: skip
        q4.transformers.install()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map=DEVICE)
        measure("q4", model.eval())
        config = model.config
    del model
    if not DRY:
        torch.cuda.empty_cache()
    torch._dynamo.reset()
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    torch.set_default_dtype(torch.float16)
    with torch.device(DEVICE):
        dense = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    measure("fp16", dense.eval())


if __name__ == "__main__":
    main()
