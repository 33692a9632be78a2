"""examples/generate on a real model: its tokens against transformers' on the dequantized weights, and a sentence that makes
sense. Usage: real_test.py PROGRAM MODEL_FOLDER [DEVICE]"""

import pathlib
import subprocess
import sys

import llama
import torch
import transformers

PROGRAM, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])
DEVICE = sys.argv[3] if len(sys.argv) > 3 else "cpu"
PROMPTS = ["Gravity is", "The three primary colors are", "Once upon a time, in a small village by the sea, there lived 2 sisters."]
COUNT = 64


def dequantized_model() -> torch.nn.Module:
    """transformers' own model, in fp32, with W = scales * (q - zeros)."""
    tensors = llama.read_safetensors(FOLDER / "model.safetensors")
    config = transformers.AutoConfig.from_pretrained(FOLDER)
    v2 = config.quantization_config.get("checkpoint_format") == "gptq_v2"
    del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {n: torch.from_numpy(t.copy()).float() for n, t in tensors.items() if n.endswith(".weight")}
    for name in [n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight")]:
        state[name + ".weight"] = torch.from_numpy(llama.dequantize(tensors, name, v2)).T.float()
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}, missing
    assert any(t.ndim == 1 and (t[1:] < t[:-1]).any() for n, t in tensors.items() if n.endswith("g_idx")), "no act-order"
    return model.eval()


def run(*arguments: str) -> str:
    result = subprocess.run([PROGRAM, str(FOLDER), "--device", DEVICE, *arguments], capture_output=True, check=True)
    print("  " + result.stderr.decode().strip())
    return result.stdout.decode()


def main() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = dequantized_model()
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            result = model.generate(ids, max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False, repetition_penalty=1.0,
                                    eos_token_id=None, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
        expected = result.sequences[0, ids.shape[1] :].tolist()
        # Where the lead over the next likely is less, in units of the logits' spread, a GPU's fp16 may choose another token:
        # the comparison ends there.
        leads = [((top[0] - top[1]) / step.std()).item() for step in result.logits for top in [step[0].topk(2).values]]
        sure = COUNT if DEVICE == "cpu" else next((i for i, lead in enumerate(leads) if lead < 0.02), COUNT)
        lines = run("--prompt", prompt, "--tokens", str(COUNT), "--ids").splitlines()
        read, got = ([int(i) for i in line.split(",")] for line in lines)
        assert read == ids[0].tolist(), f"{prompt!r}: read as {read} instead of {ids[0].tolist()}"
        same = next((i for i in range(COUNT) if got[i] != expected[i]), COUNT)
        assert len(got) == COUNT and same >= sure, f"{prompt!r}: only the first {same} tokens agree, leads {leads[: same + 1]}"
        print(f"{prompt!r}: {same} tokens agree, least lead {min(leads):.1e}: {tokenizer.decode(got)[:90]!r}")
    answer = run("--chat", "--prompt", "What is the capital of France?", "--tokens", "48")
    print(answer)
    assert "Paris" in answer, answer


if __name__ == "__main__":
    main()
