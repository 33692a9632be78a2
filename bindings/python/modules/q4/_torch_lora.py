"""LoraLinear, a Linear with a table of LoRA adapters, and load_peft, which fills it from PEFT's files. Imports torch."""

import json
import math
import os
import re
import struct
from typing import Any, Iterator

import torch

import q4
from q4._native import LoraAdapters
from q4._torch_linear import Linear

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class LoraLinear(torch.nn.Module):
    """y = x @ W + bias, and for each row of x what its adapter adds: one launch more than Linear, for any number of them.

    adapters: places of the table. max_rank: the largest rank, at most 256 (of a fused layer: the sum over its parts).
    dtype: of x. parts: of a layer that holds several of the adapter's modules side by side, as {"q_proj": 4096,
    "k_proj": 1024, "v_proj": 1024} does for qkv_proj: names and columns. No gradients: for serving.

    rows says whose row is whose: None (no adapter), or an int32 tensor on the module's device with one number a row of x
    or one a sequence of x[sequences, tokens, k]; -1 is none. It is read when work runs, so captured graphs take new
    numbers from the same tensor, and meet adapters that were set or removed since.
    """

    def __init__(
        self,
        linear: Linear,
        *,
        adapters: int = 8,
        max_rank: int = 64,
        dtype: torch.dtype = torch.float16,
        parts: "dict[str, int] | None" = None,
    ) -> None:
        super().__init__()
        if linear.matrix is None:
            raise q4.InvalidArgument("LoraLinear: the Linear has no weights yet: call load_state_dict() first")
        if parts is not None and sum(parts.values()) != linear.out_features:
            raise q4.InvalidArgument(
                f"LoraLinear: parts have {sum(parts.values())} columns together; the layer has {linear.out_features}"
            )
        self.linear = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.parts = parts
        self.dtype = dtype
        self.table = LoraAdapters(linear.matrix, adapters=adapters, max_rank=max_rank, dtype=str(dtype))
        self.rows: "torch.Tensor | None" = None

    def set(self, index: int, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> None:
        """Adds or replaces an adapter: y += scale (x @ a.T) @ b.T, a [rank, in_features], b [out_features, rank]."""
        self.table.set(index, a, b, scale)

    def remove(self, index: int) -> None:
        """Rows of this adapter then get what the layer without one gives."""
        self.table.remove(index)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[..., in_features] -> [..., out_features]"""
        if self.rows is None:
            result: torch.Tensor = self.linear(x)
            return result
        matrix = self.linear.matrix
        if matrix is None:
            raise q4.InvalidArgument("LoraLinear: the Linear has lost its weights")
        rows, count = self.rows, x.numel() // max(self.in_features, 1)
        if rows.numel() != count:
            if x.dim() < 3 or rows.numel() != x.shape[0]:
                raise q4.InvalidArgument(
                    f"LoraLinear: rows has {rows.numel()} numbers and x has shape {list(x.shape)}: give one a row, or one a"
                    " sequence"
                )
            rows = rows.repeat_interleave(count // x.shape[0])
        with torch.no_grad():
            y: torch.Tensor = q4.matmul(
                x.detach().to(self.dtype).contiguous(), matrix, adapters=self.table, adapter_of_row=rows
            )
        bias: Any = self.linear.bias
        return y if bias is None else y + bias.to(y.dtype)


class PeftAdapter:
    """adapter_config.json and adapter_model.safetensors of a folder, as PEFT's save_pretrained() writes them."""

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        folder = os.fspath(path)
        self.path = folder
        name = os.path.join(folder, "adapter_config.json")
        with open(name, "rb") as file:
            config = _json(name, file.read())
        self.config: "dict[str, Any]" = config
        kind = config.get("peft_type")
        self._refuse(kind != "LORA", f"peft_type is {kind}", "only LoRA is supported")
        self._refuse(bool(config.get("use_dora")), "use_dora is set", "merge DoRA into the model before quantizing it")
        self._refuse(
            config.get("bias", "none") != "none" or bool(config.get("lora_bias")),
            f"bias is {config.get('bias', 'none')}, lora_bias {config.get('lora_bias', False)}",
            "only adapters without a bias are supported",
        )
        self._refuse(bool(config.get("modules_to_save")), "modules_to_save is set", "only LoRA weights are supported")
        for name in ("trainable_token_indices", "target_parameters", "layer_replication", "megatron_config"):
            self._refuse(bool(config.get(name)), f"{name} is set", "it is not supported")
        self.modules: "dict[str, dict[str, torch.Tensor]]" = {}
        for key, tensor in _safetensors(os.path.join(folder, "adapter_model.safetensors")):
            found = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight", key)
            self._refuse(found is None, f"the tensor {key} is not lora_A or lora_B of a module", "it is not supported")
            assert found is not None
            matrices = self.modules.setdefault(found[1], {})
            self._corrupt(found[2] in matrices, f"lora_{found[2]} of {found[1]} is there twice")
            self._corrupt(tensor.dim() != 2, f"{key} has shape {list(tensor.shape)}; it must be a matrix")
            matrices[found[2]] = tensor
        for name, parts in self.modules.items():
            self._refuse(len(parts) != 2, f"{name} has {''.join(parts)} alone", "it must have lora_A and lora_B")

    def _refuse(self, wrong: bool, what: str, remedy: str) -> None:
        if wrong:
            raise q4.Unsupported(f"load_peft: {self.path}: {what}: {remedy}")

    def _corrupt(self, wrong: bool, what: str) -> None:
        if wrong:
            raise q4.CorruptFile(f"load_peft: {self.path}: {what}")

    def _of(self, pattern: str, default: str, module: str) -> float:
        """PEFT: the first key of the pattern that is the end of the module's name, as a regular expression."""
        keys = self.config.get(pattern) or {}
        self._corrupt(not isinstance(keys, dict), f"{pattern} is {keys!r:.80}; it must be an object")
        value: Any = self.config.get(default)
        for key, special in keys.items():
            # A file is not to decide how long matching takes: what repeats is few and stands beside each other.
            open_ended = len(re.findall(r"[*+]|\{\d*,\d*\}", key))
            self._refuse(
                len(key) > 1000 or open_ended > 4 or re.search(r"\)[*+{]", key) is not None,
                f"the key {key!r:.80} of {pattern} repeats too much",
                "give the modules' names",
            )
            try:
                found = re.match(rf"(.*\.)?({key})$", module)
            except (re.error, RecursionError, OverflowError) as error:
                raise q4.CorruptFile(f"load_peft: {self.path}: the key {key!r:.80} of {pattern}: {error}") from error
            if found:
                value = special
                break
        wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9
        self._corrupt(wrong, f"{default} of {module} is {value!r:.80}; it must be a number")
        return float(value)

    def weights(self, module: str) -> "tuple[torch.Tensor, torch.Tensor, float]":
        """lora_A [rank, in], lora_B [out, rank] and the scale of a module."""
        a, b = self.modules[module]["A"], self.modules[module]["B"]
        rank, alpha = self._of("rank_pattern", "r", module), self._of("alpha_pattern", "lora_alpha", module)
        self._corrupt(rank < 1, f"r of {module} is {rank:g}; it must be 1 or more")
        if a.shape[0] != rank or b.shape[1] != rank:
            raise q4.InvalidArgument(
                f"load_peft: {self.path}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}; by"
                f" adapter_config.json its rank is {rank:g}"
            )
        return a, b, alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def _safetensors(path: str) -> "Iterator[tuple[str, torch.Tensor]]":
    """Names and tensors of a file, whose form https://github.com/huggingface/safetensors describes."""
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < 8 or struct.unpack("<Q", data[:8])[0] > len(data) - 8:
        raise q4.CorruptFile(f"load_peft: {path}: the header is longer than the file")
    length = struct.unpack("<Q", data[:8])[0]
    body = bytearray(data[8 + length :])
    for name, entry in _json(path, data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        fields: "dict[str, Any]" = entry if isinstance(entry, dict) else {}
        dtype: Any
        shape: Any
        offsets: Any
        dtype, shape, offsets = (fields.get(field) for field in ("dtype", "shape", "data_offsets"))
        numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 else [-1]
        if len(numbers) > 18 or any(type(number) is not int or not 0 <= number < 2**40 for number in numbers):
            raise q4.CorruptFile(f"load_peft: {path}: {name:.80} is {entry!r:.200}; it must have a shape and data_offsets")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise q4.Unsupported(f"load_peft: {path}: {name:.80} has dtype {dtype!r:.40}; use F16, BF16 or F32")
        begin, end = offsets
        count = math.prod(shape)
        size = torch.empty(0, dtype=_DTYPES[dtype]).element_size()
        if not begin <= end <= len(body) or end - begin != count * size:
            raise q4.CorruptFile(
                f"load_peft: {path}: {name:.80} has bytes {begin} to {end} of {len(body)} for {count} elements of {size} bytes"
            )
        if count == 0:
            yield name, torch.empty(shape, dtype=_DTYPES[dtype])
        else:
            aligned = body if begin % size == 0 else body[begin:end]
            offset = begin if aligned is body else 0
            yield name, torch.frombuffer(aligned, dtype=_DTYPES[dtype], count=count, offset=offset).reshape(shape)


def _json(path: str, data: bytes) -> "dict[str, Any]":
    """The object that a file, or its header, is."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise q4.CorruptFile(f"load_peft: {path}: it is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise q4.CorruptFile(f"load_peft: {path}: it is JSON of another kind than an object")
    return value


def _side_by_side(
    layer: LoraLinear, found: "dict[str, tuple[torch.Tensor, torch.Tensor, float]]"
) -> "tuple[torch.Tensor, torch.Tensor, float]":
    """One adapter of a fused layer: A's one below the other, B's on the diagonal, with their scales."""
    assert layer.parts is not None
    ranks = sum(a.shape[0] for a, _, _ in found.values())
    b_all = torch.zeros(layer.out_features, ranks)
    row = column = 0
    for part, columns in layer.parts.items():
        if part in found:
            a, b, scale = found[part]
            if b.shape[0] != columns:
                raise q4.InvalidArgument(
                    f"load_peft: lora_B of {part} has {b.shape[0]} rows; the layer's parts say {columns}"
                )
            b_all[row : row + columns, column : column + a.shape[0]] = b.float() * scale
            column += a.shape[0]
        row += columns
    a_all = torch.cat([found[part][0].float() for part in layer.parts if part in found])
    return a_all, b_all, 1.0


def load_peft(model: torch.nn.Module, path: "str | os.PathLike[str]", index: int) -> "list[str]":
    """Puts a PEFT adapter (a folder with adapter_config.json and adapter_model.safetensors) at place `index` of every
    LoraLinear of the model that it has weights for, and removes it from the others. Returns the adapter's modules.

    Understood are r, lora_alpha, rank_pattern, alpha_pattern, use_rslora and fused layers (LoraLinear's parts); DoRA,
    biases and modules_to_save are refused, and so is an adapter with a module that is no LoraLinear of the model. All of
    it is read and checked before the first table changes.
    """
    adapter = PeftAdapter(path)
    left = set(adapter.modules)
    wanted: "list[tuple[LoraLinear, tuple[torch.Tensor, torch.Tensor, float] | None]]" = []
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLinear):
            continue
        weights = None
        if layer.parts is None:
            if name in adapter.modules:
                weights = adapter.weights(name)
                left.discard(name)
        else:
            stem = name.rpartition(".")[0]
            names = {part: f"{stem}.{part}" if stem else part for part in layer.parts}
            found = {part: adapter.weights(full) for part, full in names.items() if full in adapter.modules}
            left -= set(names.values())
            if found:
                weights = _side_by_side(layer, found)
        if weights is not None:
            a, b, _ = weights
            if (a.shape[1], b.shape[0]) != (layer.in_features, layer.out_features) or a.shape[0] > layer.table.max_rank:
                raise q4.InvalidArgument(
                    f"load_peft: {adapter.path}: {name} has lora_A {list(a.shape)} and lora_B {list(b.shape)}; the layer"
                    f" is {layer.in_features} -> {layer.out_features} with max_rank = {layer.table.max_rank}"
                )
        wanted.append((layer, weights))
    if left:
        raise q4.InvalidArgument(
            f"load_peft: {adapter.path}: the model has no LoraLinear for {', '.join(sorted(left)[:3])}"
            f" ({len(left)} modules): wrap those layers, or train without them"
        )
    for layer, weights in wanted:
        if weights is None:
            layer.remove(index)
        else:
            layer.set(index, *weights)
    return sorted(adapter.modules)


LoraLinear.__module__ = load_peft.__module__ = "q4.torch"
