"""load_peft on adapters whose files were changed at random: each is loaded, or refused by an error that is no defect and changes
nothing. test_epilogue.py has what PEFT itself writes."""

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import q4
from samples import gptq

torch: Any = pytest.importorskip("torch")
qt: Any = pytest.importorskip("q4.torch")

TRIES = int(os.environ.get("Q4_PEFT_TRIES", "500"))
FIRST = int(os.environ.get("Q4_PROPERTY_SEED", "1"))
WIDTHS = {"q_proj": 24, "up_proj": 40}
VALUES = [None, True, -1, 0, 1, 2.5, 8, 2**70, -(2**63), 1e400, float("nan"), "", "8", "F16", "I64", [], [1], [[]], {}, {"a": 1}, {".*": 4}]
PATTERNS = ["q_proj", "(", "[", "(a+)+$", "(.*)*q", "a{1000}{1000}", ".*.*.*.*.*.*.*.*.*.*x", "q_proj|up_proj", "\\", "(?P<n>q)", "(" * 500 + ")" * 500]


def model() -> Any:
    layers = {}
    for seed, (name, n) in enumerate(WIDTHS.items()):
        sample = gptq(32, n, 32, seed=seed)
        matrix = q4.Matrix.from_gptq(*sample.tensors(), zeros="v1", device="cpu")
        layers[name] = qt.LoraLinear(qt.Linear(matrix), adapters=2, max_rank=16)
    return torch.nn.ModuleDict(layers)


def right() -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """A configuration, a header and the tensors."""
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "rank_pattern": {"up_proj": 4}, "alpha_pattern": {"q.*": 2}}
    config |= {"use_rslora": False, "use_dora": False, "modules_to_save": None}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, n in WIDTHS.items():
        rank = 4 if name == "up_proj" else 8
        for part, shape in (("A", [rank, 32]), ("B", [n, rank])):
            data = np.random.default_rng(n).standard_normal(shape).astype(np.float16).tobytes()
            header[f"base_model.model.{name}.lora_{part}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
            body += data
    return config, header, body


def changed(value: Any, choose: random.Random) -> Any:
    """Something in it is of another kind, gone, there under another name, or nested too deep."""
    if isinstance(value, dict) and value and choose.random() < 0.85:
        name = choose.choice(list(value))
        kind = choose.randrange(6)
        if kind == 0:
            return {k: v for k, v in value.items() if k != name}
        if kind == 1:
            return value | {choose.choice([*PATTERNS, name + "x", "base_model.model." + name]): value[name]}
        if kind == 2 and "pattern" in name:
            return value | {name: {choose.choice(PATTERNS): choose.choice([4, 8, *VALUES])}}
        return value | {name: changed(value[name], choose)}
    if isinstance(value, list) and value and choose.random() < 0.7:
        at = choose.randrange(len(value))
        return value[:at] + [changed(value[at], choose)] + value[at + 1 :] * choose.choice([1, 1, 0, 2])
    if isinstance(value, int) and choose.random() < 0.5:
        return value + choose.choice([-1, 1, 2, 2**40, 2**63])
    return choose.choice(VALUES)


def write(folder: Path, choose: random.Random) -> None:
    config, header, body = right()
    for _ in range(choose.choice([0, 1, 1, 2])):
        if choose.random() < 0.5:
            config = changed(config, choose)
        else:
            header = changed(header, choose)
    text = json.dumps(config).encode()
    if choose.random() < 0.05:
        text = b"[" * 100000 + text
    if choose.random() < 0.1:
        text = text[: choose.randrange(len(text))] + bytes([choose.randrange(256)]) + text[choose.randrange(len(text)) :]
    head = json.dumps(header).encode()
    length = len(head) if choose.random() < 0.9 else choose.choice([0, 1, len(head) - 1, len(head) + 9, 2**63, 2**64 - 1])
    data = struct.pack("<Q", length) + head + body
    if choose.random() < 0.1:
        data = data[: choose.randrange(len(data))]
    (folder / "adapter_config.json").write_bytes(text)
    (folder / "adapter_model.safetensors").write_bytes(data)


def results(of: Any) -> Any:
    x = torch.linspace(-1, 1, 96).reshape(3, 32).half()
    rows = torch.tensor([0, 1, -1], dtype=torch.int32)
    for layer in of.values():
        layer.rows = rows
    return [layer(x) for layer in of.values()]


def test_changed_files_are_loaded_or_refused(tmp_path: Path) -> None:
    tuned = model()
    before = results(tuned)
    loaded = refused = 0
    for seed in range(FIRST, FIRST + TRIES):
        choose = random.Random(seed)
        write(tmp_path, choose)
        try:
            qt.load_peft(tuned, tmp_path, 0)
            loaded += 1
        except Exception as error:
            assert isinstance(error, q4.Error) and type(error) is not q4.Error, f"seed {seed}: {error!r:.300}"
            assert all(torch.equal(a, b) for a, b in zip(results(tuned), before)), f"seed {seed}"
            refused += 1
            continue
        for layer in tuned.values():
            layer.remove(0)
        assert all(torch.equal(a, b) for a, b in zip(results(tuned), before)), f"seed {seed}"
    assert loaded > TRIES // 20 and refused > TRIES // 4, (loaded, refused)
