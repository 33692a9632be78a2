"""Checks what make.py made, with q4 in the environment that this runs in (torch, transformers, safetensors).

    python check.py OUT                 every checkpoint in OUT: weights bit for bit, whole models by their logits
    python check.py OUT --samples DIR   and cuts one matrix of each into DIR, small enough to be kept with the sources

The weights are computed here a second time, from the stored tensors by the formats' definitions, without q4.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open

import q4
import q4.torch
from q4 import _matrix

KEPT_ROWS, KEPT_COLUMNS = 64, 16


def nibbles(words: Any, axis: int, order: Any = range(8)) -> Any:
    """Codes of int32 words, eight along the axis where there was one."""
    words = np.moveaxis(words.view(np.uint32), axis, -1)
    codes = words[..., None] >> (4 * np.argsort(np.array(list(order)))).astype(np.uint32) & 15
    return np.moveaxis(codes.reshape(*words.shape[:-1], -1), -1, axis).astype(np.int64)


AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


def by_definition(parts: "dict[str, Any]", config: "dict[str, Any]", name: str) -> Any:
    """W [k, n] in fp32 of the stored tensors, or None for a format that is not written down here."""
    if "weight_packed" in parts:
        n, k = (int(i) for i in parts["weight_shape"])
        codes = nibbles(parts["weight_packed"], 1)[:, :k].T
        scales = parts["weight_scale"].reshape(n, -1).T
        zeros = nibbles(parts["weight_zero_point"], 0)[:n].T if "weight_zero_point" in parts else np.full(scales.shape, 8)
    else:
        scales, n = parts["scales"], parts["scales"].shape[1]
        version = str(config.get("version", "")).lower()
        if version == "gemv_fast" or version == "llm-awq" or parts["qweight"].dtype == np.int16 and "awq" in str(config):
            return None
        if version == "gemv":
            n = parts["qweight"].shape[0]
            codes, zeros = nibbles(parts["qweight"], 1).T, nibbles(parts["qzeros"], 1).T
            groups = codes.shape[0] // config["group_size"]
            scales, zeros = parts["scales"].T[:groups], zeros[:groups]
        elif parts["qweight"].shape[1] * 8 == n:
            codes, zeros = nibbles(parts["qweight"], 1, AWQ), nibbles(parts["qzeros"], 1, AWQ)
        else:
            words = {key: np.ascontiguousarray(parts[key]).view(np.uint8) for key in ("qweight", "qzeros")}
            size = parts["qweight"].dtype.itemsize
            k8 = parts["qweight"].shape[0] * size // 4
            qweight = words["qweight"].reshape(k8 * 4 // size, n, size).transpose(0, 2, 1).reshape(k8, 4, n)
            codes = nibbles(np.ascontiguousarray(qweight.transpose(0, 2, 1)).view(np.uint32)[..., 0], 0)
            stored = words["qzeros"].reshape(scales.shape[0], -1).view(np.uint32)
            v2 = config.get("checkpoint_format") in ("gptq_v2", "gptq_p") or config.get("packing_format", "") in (
                "auto_round",
                "auto_round:gptqmodel",
            )
            if not v2:  # GPTQModel subtracted one from each nibble by subtracting 0x11111111 from the word
                stored = stored + np.uint32(0x11111111)
            zeros = nibbles(stored, 1)
    scales = scales.astype(np.float16)  # what q4 multiplies by, whatever was stored
    k, groups = codes.shape[0], scales.shape[0]
    size = config.get("group_size") or -1
    size = -(-k // groups) if size == -1 or -(-k // size) != groups else size
    rows = np.arange(k) // size
    for key in ("g_idx", "weight_g_idx"):
        if key in parts and not (parts[key] <= 0).all():
            rows = parts[key]
    return (scales.astype(np.float32)[rows] * (codes - zeros[rows]).astype(np.float32)).astype(np.float32)


class Tensors:
    """The tensors of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.files = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        self.where = {name: file for file in self.files for name in file.keys()}

    def get(self, name: str) -> torch.Tensor:
        return self.where[name].get_tensor(name)

    def parts(self, matrix: str) -> "dict[str, Any]":
        found = {}
        for name in self.where:
            if name.startswith(matrix + "."):
                tensor = self.get(name)
                found[name[len(matrix) + 1 :]] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return found


def quantization(folder: Path) -> "dict[str, Any]":
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    for group in config.get("config_groups", {}).values():
        config.setdefault("group_size", group["weights"].get("group_size"))
    return config


def dense(checkpoint: Any, name: str) -> Any:
    tensors = checkpoint.load(name, "cpu").unpack()
    return _matrix.dense_rows(tensors, 0, checkpoint.find(name).k)


def check_weights(folder: Path, checkpoint: Any, tensors: Tensors) -> "tuple[int, int]":
    """Matrices that were compared, and those whose format has no definition here."""
    config, compared, skipped = quantization(folder), 0, 0
    expected = np.load(folder / "q4-expected.npz")
    for entry in checkpoint.matrices:
        if entry.unsupported:
            raise AssertionError(entry.unsupported)
        want = by_definition(tensors.parts(entry.name), config, entry.name)
        if "W" in expected:
            want = expected["W"]
        if want is None:
            skipped += 1
            continue
        got = dense(checkpoint, entry.name)
        assert got.shape == want.shape, f"{entry.name}: {got.shape} is not {want.shape}"
        assert np.array_equal(got, want), f"{entry.name}: {int((got != want).sum())} of {got.size} weights differ"
        compared += 1
    return compared, skipped


def model_of(folder: Path, checkpoint: Any, tensors: Tensors) -> Any:
    """The model in fp32: what is not quantized from the file, the matrices through replace_linears."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name in tensors.where and parameter.shape == tensors.get(name).shape:
                parameter.copy_(tensors.get(name).float())
        model.tie_weights()
        if getattr(config, "num_local_experts", None) is None:
            q4.torch.replace_linears(model, checkpoint, device="cpu")
            return model
        # transformers keeps all experts in one tensor; q4's weights go into it, and everything else is replaced.
        for name, module in model.named_modules():
            if not hasattr(module, "gate_up_proj"):
                continue
            for e in range(config.num_local_experts):
                found = {}
                for entry in checkpoint.matrices:
                    for part in ("w1", "w2", "w3", "gate_proj", "down_proj", "up_proj"):
                        if entry.name.endswith(f".experts.{e}.{part}") and entry.name.split(".")[2] == name.split(".")[2]:
                            found[{"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}.get(part, part)] = entry.name
                w = {part: torch.from_numpy(dense(checkpoint, found[part]).T.copy()) for part in ("w1", "w2", "w3")}
                module.gate_up_proj.data[e] = torch.cat([w["w1"], w["w3"]])
                module.down_proj.data[e] = w["w2"]
        for name, parameter in parameters.items():
            if name.endswith("gate.weight"):
                stored = [key for key in tensors.where if key.endswith("gate.weight") and key.split(".")[2] == name.split(".")[2]]
                parameter.copy_(tensors.get(stored[0]).float())
        q4.torch.replace_linears(model, checkpoint, device="cpu", strict=False)
    return model


def check_logits(folder: Path, checkpoint: Any, tensors: Tensors) -> float:
    """The largest difference to the tool's own logits, relative to their size; the argmax must be the same."""
    expected = np.load(folder / "q4-expected.npz")
    with torch.no_grad():
        logits = model_of(folder, checkpoint, tensors)(torch.from_numpy(expected["ids"])).logits.numpy()
    want = expected["logits"]
    error = float(np.linalg.norm(logits - want) / np.linalg.norm(want))
    same = (logits.argmax(-1) == want.argmax(-1)).mean()
    assert same == 1.0, f"the argmax is the same in {same:.0%} of the positions only, error {error:.2e}"
    assert error < 1e-2, f"error {error:.2e}"  # the tools compute in fp16
    return error


def keep_sample(folder: Path, checkpoint: Any, tensors: Tensors, target: Path) -> None:
    """The first rows and columns of one matrix, as they are stored, with W beside them."""
    config = quantization(folder)
    entry = next(e for e in checkpoint.matrices if e.name.endswith(("k_proj", "down_proj", "w1")))
    parts, k, n = tensors.parts(entry.name), KEPT_ROWS, KEPT_COLUMNS
    raw = {key: tensors.get(f"{entry.name}.{key}") for key in parts}
    version = str(config.get("version", "")).lower()
    groups = 1 if entry.groups == 1 else -(-k // entry.group_size)
    if entry.has_g_idx and len(np.unique(parts.get("g_idx", parts.get("weight_g_idx"))[:k])) > groups:
        groups = entry.groups  # act-order: rows of every group
    kept = {}
    for key, tensor in raw.items():
        rows, columns = tensor.shape if tensor.dim() == 2 else (tensor.shape[0], 0)
        if key in ("g_idx", "weight_g_idx"):
            kept[key] = tensor[:k]
        elif key == "bias":
            kept[key] = tensor[:n]
        elif key == "weight_shape":
            kept[key] = torch.tensor([n, k], dtype=tensor.dtype)
        elif key == "weight_packed":
            kept[key] = tensor[:n, : k // 8]
        elif key == "weight_scale":
            kept[key] = tensor[:n, :groups]
        elif key == "weight_zero_point":
            kept[key] = tensor[: n // 8, :groups]
        elif version == "gemv":
            kept[key] = tensor[:n, : k // 8] if key == "qweight" else tensor[:n]
        elif version == "gemv_fast":
            kept[key] = tensor[: n // 4, :k] if key == "qweight" else tensor[:, :n]
        elif key == "qweight":
            kept[key] = tensor[: rows * k // entry.k, : columns * n // entry.n]
        elif key in ("scales", "qzeros"):
            kept[key] = tensor[:groups, : columns * n // entry.n]
    target.mkdir(parents=True, exist_ok=True)
    from safetensors.torch import save_file as save

    save({f"{entry.name}.{key}": value.contiguous() for key, value in kept.items()}, target / "model.safetensors")
    full = json.loads((folder / "config.json").read_text())
    text = {key: full[key] for key in ("architectures", "model_type", "quantization_config") if key in full}
    (target / "config.json").write_text(json.dumps(text) + "\n")
    np.save(target / "W.npy", dense(checkpoint, entry.name)[:k, :n])
    assert np.array_equal(dense(q4.Checkpoint(target), entry.name), np.load(target / "W.npy")), "the cut is not the whole"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--only", nargs="*", help="names of folders")
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.out.glob("*/q4-made-by.json"))
    folders = [folder for folder in folders if not options.only or folder.name in options.only]
    failed = 0
    for folder in folders:
        made = json.loads((folder / "q4-made-by.json").read_text())
        version = ", ".join(f"{key} {value}" for key, value in made["versions"].items() if key not in ("torch",))
        try:
            checkpoint, tensors = q4.Checkpoint(folder), Tensors(folder)
            compared, skipped = check_weights(folder, checkpoint, tensors)
            text = f"{compared} matrices exact" + (f", {skipped} not compared" if skipped else "")
            if "logits" in np.load(folder / "q4-expected.npz"):
                text += f", argmax the same, logits within {check_logits(folder, checkpoint, tensors):.1e}"
            if options.samples and not skipped:
                keep_sample(folder, checkpoint, tensors, options.samples / folder.name)
            print(f"passed {folder.name} ({version}): {text}", flush=True)
        except Exception as error:  # noqa: BLE001  each checkpoint has its line
            failed += 1
            print(f"FAILED {folder.name} ({version}): {type(error).__name__}: {error}", flush=True)
    print(f"{len(folders) - failed} passed, {failed} failed")
    return 1 if failed or not folders else 0


if __name__ == "__main__":
    sys.exit(main())
