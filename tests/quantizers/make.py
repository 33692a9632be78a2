"""Quantizes tiny random models with one tool, in the environment where that tool is installed.

    python make.py gptqmodel|llmcompressor|autoround|autoawq OUT [CASE ...]

Writes OUT/TOOL-CASE: the checkpoint as the tool wrote it, and q4-expected.npz with token ids and the logits that the
tool's own loader computes from it in fp32 (for single layers: x and y). A case that fails is reported, and so is one
that takes more than LIMIT seconds; what the tool printed is in OUT/TOOL.log, and the exit status is 1.
"""

import argparse
import importlib.metadata
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

for name, value in {
    "CUDA_VISIBLE_DEVICES": "",
    "GPTQMODEL_CPU_WORKERS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads of a pool that spin keep those of another from running
    "TORCHDYNAMO_DISABLE": "1",  # else GPTQModel has PyTorch's inductor compile C++ for each layer of its reference: most of an hour
}.items():
    os.environ.setdefault(name, value)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

LIMIT = 600  # seconds for one case
VOCABULARY, HIDDEN, INNER, LAYERS, LENGTH = 64, 128, 256, 2, 32
IDS = torch.arange(24)[None] * 7 % VOCABULARY


def config_of(family):
    shared = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "qwen2":
        return transformers.Qwen2Config(**shared, tie_word_embeddings=True)
    if family == "mixtral":
        return transformers.MixtralConfig(**shared, num_local_experts=4, num_experts_per_tok=2)
    return transformers.LlamaConfig(**shared)


def make_model(family, folder):
    """A random model with outliers in some channels, so that quantizers have something to choose; saved with a tokenizer."""
    torch.manual_seed(len(family))
    model = transformers.AutoModelForCausalLM.from_config(config_of(family)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.mul_(1.5 + 2 * torch.rand(parameter.shape[-1]))
                if name.endswith("proj.weight"):
                    parameter[1::16].abs_()  # rows without negative weights: their zeros are 0 where they may be
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    model.half().save_pretrained(folder)
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="w1", eos_token="w2", pad_token="w0", unk_token="w0"
    ).save_pretrained(folder)
    return folder


def rows(count=8):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, VOCABULARY, (LENGTH,), generator=generator).tolist() for _ in range(count)]


def texts(count=8):
    return [" ".join(f"w{i}" for i in row) for row in rows(count)]


def keep_logits(folder, model):
    with torch.no_grad():
        logits = model(IDS).logits.float().numpy()
    assert np.isfinite(logits).all()
    np.savez(folder / "q4-expected.npz", ids=IDS.numpy(), logits=logits)


# ---- the tools -----------------------------------------------------------------------------------------------------
def gptqmodel(case, family, folder, source):
    import gptqmodel as tool
    from gptqmodel.quantization import FORMAT

    options = dict(case)
    if "format" in options:
        options["format"] = FORMAT(options["format"])
    if "pack_dtype" in options:
        options["pack_dtype"] = getattr(torch, options["pack_dtype"])
    if options.pop("awq", False):
        from gptqmodel.quantization.config import AWQConfig

        config = AWQConfig(bits=4, **options)
    else:
        config = tool.QuantizeConfig(bits=4, **options)
    model = tool.GPTQModel.load(str(source), config)
    model.quantize([{"input_ids": row, "attention_mask": [1] * LENGTH} for row in rows(32)], batch_size=4)
    model.save(str(folder))
    del model
    backend = tool.BACKEND.AWQ_TORCH if case.get("awq") else tool.BACKEND.GPTQ_TORCH  # its reference: others are inexact
    loaded = tool.GPTQModel.load(str(folder), device="cpu", dtype=torch.float16, backend=backend)
    keep_logits(folder, loaded.model)


def llmcompressor(case, family, folder, source):
    from datasets import Dataset
    from llmcompressor import oneshot

    options = dict(case)
    kind = options.pop("modifier", "gptq")
    options = {"ignore": ["lm_head", "re:.*gate$"], "targets": "Linear", **options}
    if kind == "gptq":
        from llmcompressor.modifiers.quantization import GPTQModifier as Modifier
    else:
        from llmcompressor.modifiers.quantization import QuantizationModifier as Modifier
    dtype = torch.float32 if family == "mixtral" else torch.float16  # its routers do not run in fp16 on a CPU
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    data = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * LENGTH} for row in rows(16)])
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=data,
        recipe=Modifier(**options),
        max_seq_length=LENGTH,
        num_calibration_samples=16,
    )
    model.save_pretrained(folder, save_compressed=True)
    tokenizer.save_pretrained(folder)
    if family == "mixtral":  # whose experts transformers 5.17 does not put back where they belong
        np.savez(folder / "q4-expected.npz", ids=IDS.numpy())
        return
    from transformers import CompressedTensorsConfig

    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=CompressedTensorsConfig(run_compressed=False)
    )
    keep_logits(folder, loaded)


def autoround(case, family, folder, source):
    from auto_round import AutoRound

    options = dict(case)
    form = options.pop("format")
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tool = AutoRound(
        model,
        tokenizer,
        bits=4,
        iters=2,
        nsamples=4,
        seqlen=LENGTH,
        batch_size=2,
        dataset=[torch.tensor([row]) for row in rows(8)],
        device_map="cpu",
        **options,
    )
    tool.quantize_and_save(output_dir=str(folder), format=form)
    for found in list(folder.rglob("model*.safetensors*")):  # some versions add a folder of their own
        if found.parent != folder:
            for file in found.parent.iterdir():
                shutil.move(str(file), folder / file.name)
            break
    if options.get("sym") is False:  # which its own loader does not run on a CPU
        np.savez(folder / "q4-expected.npz", ids=IDS.numpy())
        return
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    keep_logits(folder, loaded)


def autoawq(case, family, folder, source):
    """Its last release does not run models of today's transformers: its own layers pack one matrix, and multiply."""
    from safetensors.torch import save_file

    form, group = case["version"], case["group_size"]
    if form == "gemm":
        from awq.modules.linear.gemm import WQLinear_GEMM as Layer
    elif form == "gemv":
        from awq.modules.linear.gemv import WQLinear_GEMV as Layer
    else:
        from awq.modules.linear.gemv_fast import WQLinear_GEMVFast as Layer
    torch.manual_seed(3)
    k, n = 2 * HIDDEN, HIDDEN
    weight = torch.randn(n, k, dtype=torch.float16) / 16
    groups = weight.reshape(n, k // group, group).float()
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low).clamp(min=1e-5) / 15).half()
    zeros = (-(low / scales.float()).round()).clamp(0, 15)
    codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    linear = torch.nn.Linear(k, n, bias=True, dtype=torch.float16)
    with torch.no_grad():
        linear.weight.copy_(((codes - zeros[..., None]) * scales.float()[..., None]).reshape(n, k))
    packed = Layer.from_linear(linear, 4, group, scales=scales.t().contiguous() if form == "gemm" else scales, zeros=zeros.t().contiguous() if form == "gemm" else zeros)
    folder.mkdir(parents=True)
    name = "model.layers.0.mlp.down_proj"
    save_file({f"{name}.{key}": value.contiguous() for key, value in packed.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": form}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    dense = ((codes - zeros[..., None]) * scales.float()[..., None]).reshape(n, k).t().contiguous()
    np.savez(folder / "q4-expected.npz", name=name, W=dense.numpy())


CASES = {
    "gptqmodel": {
        "gptq-act": ("llama", {"group_size": 32, "desc_act": True, "act_group_aware": False, "sym": True}),
        "gptq-v2-asym": ("llama", {"group_size": 32, "sym": False, "format": "gptq_v2"}),
        "gptq-bias": ("qwen2", {"group_size": 64, "desc_act": True, "act_group_aware": False}),
        "gptq-asym": ("llama", {"group_size": 32, "sym": False}),
        "gptq-one-group": ("llama", {"group_size": -1, "desc_act": False, "act_group_aware": False}),
        "gptq-int16": ("llama", {"group_size": 32, "pack_dtype": "int16", "pack_impl": "original"}),
        "gptq-int8": ("llama", {"group_size": 32, "pack_dtype": "int8", "pack_impl": "original"}),
        "gptq-p": ("llama", {"group_size": 32, "format": "gptq_p"}),
        "gptq-moe": ("mixtral", {"group_size": 64}),
        "awq-gemm": ("llama", {"awq": True, "group_size": 64, "format": "gemm"}),
    },
    "llmcompressor": {
        "w4a16": ("llama", {"scheme": "W4A16"}),
        "asym": ("llama", {"scheme": "W4A16_ASYM"}),
        "bias": ("qwen2", {"scheme": "W4A16", "modifier": "rtn"}),
        "actorder-weight": ("llama", {"scheme": "W4A16", "actorder": "weight"}),
        "moe": ("mixtral", {"scheme": "W4A16", "modifier": "rtn"}),
    },
    "autoround": {
        "auto-gptq": ("llama", {"format": "auto_round:auto_gptq", "group_size": 32}),
        "gptqmodel": ("llama", {"format": "auto_round:gptqmodel", "group_size": 32, "sym": False}),
        "auto-gptq-asym": ("llama", {"format": "auto_round:auto_gptq", "group_size": 32, "sym": False}),
        "auto-round": ("qwen2", {"format": "auto_round", "group_size": 32}),
        "auto-awq": ("llama", {"format": "auto_round:auto_awq", "group_size": 32, "sym": False}),
        "llm-compressor": ("llama", {"format": "auto_round:llm_compressor", "group_size": 32}),
        "moe": ("mixtral", {"format": "auto_round", "group_size": 64}),
    },
    "autoawq": {
        "gemm": ("", {"version": "gemm", "group_size": 64}),
        "gemv": ("", {"version": "gemv", "group_size": 64}),
        "gemv-fast": ("", {"version": "gemv_fast", "group_size": 64}),
    },
}


def make(tool, name, out):
    family, case = CASES[tool][name]
    folder = out / f"{tool}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    source = make_model(family, out / "sources" / family) if family else None
    globals()[tool](case, family, folder, source)
    (folder / "q4-made-by.json").write_text(json.dumps({"tool": tool, "case": name, "options": case, "versions": versions()}))


def make_several(tool, names, out, report):
    """Makes cases one after the other, and writes a line of JSON to `report` when one begins and when it ends."""
    torch.set_num_threads(2)
    for name in names:
        report.write(json.dumps({"begun": name}) + "\n")
        error = ""
        try:
            make(tool, name, out)
        except BaseException as problem:  # noqa: BLE001  some tools call sys.exit()
            traceback.print_exc()
            error = f"{type(problem).__name__}: {problem}"
        report.write(json.dumps({"ended": name, "error": error}) + "\n")


def watch(tool, names, out):
    """Has a child process make_several(), as importing a tool takes longer than a case, and ends it when a case takes too
    long. Prints what became of each case; returns those that were made, and those that the child had not begun."""
    reading, writing = os.pipe()
    command = [sys.executable, __file__, tool, str(out), *names, "--report", str(writing)]
    with (out / f"{tool}.log").open("a") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=[writing], start_new_session=True)
    os.close(writing)
    made, left, now, text, start = [], list(names), None, b"", time.monotonic()
    while True:
        limit = max(0.0, start + LIMIT - time.monotonic())
        in_time = bool(select.select([reading], [], [], limit)[0])
        more = os.read(reading, 4096) if in_time else b""
        if not more:
            break
        *lines, text = (text + more).split(b"\n")
        for line in map(json.loads, lines):
            if "begun" in line:
                now = line["begun"]
                left.remove(now)
                continue
            seconds, now = f"{time.monotonic() - start:.0f} s", None
            start = time.monotonic()
            if line["error"]:
                print(f"NOT MADE {tool}-{line['ended']} ({seconds}): {line['error'][:300]}", flush=True)
            else:
                made.append(line["ended"])
                print(f"made {tool}-{line['ended']} in {seconds}", flush=True)
    os.close(reading)
    try:
        child.wait(60 if in_time else 0)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # and the compilers that it may have started
        child.wait()
        for lock in Path(os.environ.get("TORCH_EXTENSIONS_DIR", out)).rglob("lock"):
            lock.unlink()  # of PyTorch's builds, for which the next child would wait without end
    if now is None and left == list(names) and left:  # it did not come so far
        now = left.pop(0)
    if now is not None:
        print(f"NOT MADE {tool}-{now} ({time.monotonic() - start:.0f} s of {LIMIT}, status {child.returncode})", flush=True)
        shutil.rmtree(out / f"{tool}-{now}", ignore_errors=True)
    return made, left


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=CASES)
    parser.add_argument("out", type=Path)
    parser.add_argument("case", nargs="*")
    parser.add_argument("--report", type=int, help=argparse.SUPPRESS)  # of watch()
    options = parser.parse_args()
    names = options.case or list(CASES[options.tool])
    if options.report is not None:
        with os.fdopen(options.report, "w", buffering=1) as report:
            make_several(options.tool, names, options.out, report)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    count, left = 0, names
    while left:
        made, left = watch(options.tool, left, options.out)
        count += len(made)
    return 0 if count == len(names) else 1


def versions():
    found = {}
    for name in ("gptqmodel", "llmcompressor", "compressed-tensors", "auto-round", "autoawq", "optimum", "transformers", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


if __name__ == "__main__":
    sys.exit(main())
