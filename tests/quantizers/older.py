"""One matrix each by the packing code of older versions, which need no more of their packages than that.

    pip download --no-deps compressed-tensors==0.9.3 auto-round==0.4.7   # and unzip both wheels into WHEELS
    PYTHONPATH=WHEELS python older.py OUT    # torch, transformers, pydantic and safetensors of today

Writes OUT/compressed-tensors-0.9-asym and OUT/autoround-0.4-asym, with W [k, n] in fp32 beside them.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

NAME, K, N, GROUP = "model.layers.0.mlp.down_proj", 64, 32, 32


def rounded(low_code: int) -> "tuple[Any, Any, Any]":
    """W [n, k] that is scale x (code - zero), scales in fp16 and zeros; codes are from low_code to low_code + 15."""
    torch.manual_seed(2)
    groups = torch.randn(N, K // GROUP, GROUP) / 8
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / 15).half().float()
    zeros = (low_code - (low / scales).round()).clamp(low_code, low_code + 15)
    codes = ((groups / scales[..., None]).round() + zeros[..., None]).clamp(low_code, low_code + 15)
    return ((codes - zeros[..., None]) * scales[..., None]).reshape(N, K), scales, zeros


def write(folder: Path, tensors: "dict[str, Any]", quantization: "dict[str, Any]", weights: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    text = json.dumps({"model_type": "llama", "quantization_config": quantization})
    (folder / "config.json").write_text(text + "\n")
    np.save(folder / "W.npy", weights.t().contiguous().numpy())


def compressed_tensors(folder: Path) -> None:
    from compressed_tensors.compressors.quantized_compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    version = importlib.metadata.version("compressed-tensors")
    assert version == "0.9.3", version
    weights, scales, zeros = rounded(-8)
    args = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=GROUP)
    config = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=args)},
        format="pack-quantized",
        quantization_status="compressed",
        ignore=["lm_head"],
    )
    given = {"weight": weights.half(), "weight_scale": scales.half(), "weight_zero_point": zeros.to(torch.int8)}
    state = {f"{NAME}.{key}": value for key, value in given.items()}
    packed = PackedQuantizationCompressor(config=config).compress(state, {NAME: args})
    write(folder, packed, {**json.loads(config.model_dump_json()), "version": version}, weights)


def autoround(folder: Path) -> None:
    from auto_round_extension.cuda.qlinear_triton import QuantLinear

    weights, scales, zeros = rounded(0)
    linear = torch.nn.Linear(K, N, bias=False)
    linear.weight.data = weights.clone()
    layer = QuantLinear(4, GROUP, K, N, False, weight_dtype=torch.float16)
    layer.pack(linear, scales, zeros, None)
    config = {  # as its export.py puts it together
        "bits": 4,
        "group_size": GROUP,
        "sym": False,
        "data_type": "int",
        "act_bits": 16,
        "autoround_version": importlib.metadata.version("auto-round"),
        "backend": "auto_round:exllamav2",
        "quant_method": "intel/auto-round",
    }
    write(folder, {f"{NAME}.{key}": value for key, value in layer.state_dict().items()}, config, weights)


if __name__ == "__main__":
    compressed_tensors(Path(sys.argv[1]) / "compressed-tensors-0.9-asym")
    autoround(Path(sys.argv[1]) / "autoround-0.4-asym")
