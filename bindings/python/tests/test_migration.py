"""Runs every Python snippet of docs/migration.md, in order, in one namespace."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from samples import activations, gptq

DOCS = Path(os.environ.get("Q4_DOCS", str(Path(__file__).parents[3] / "docs"))) / "migration.md"


def test_snippets() -> None:
    sample = gptq(256, 64, 64, seed=3)
    names: dict[str, Any] = {
        "np": np,
        "qweight": sample.qweight,
        "qzeros": sample.qzeros,
        "scales": sample.scales,
        "x": activations(4, 256),
        "dense": sample.dense,
    }
    text = DOCS.read_text()
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 5
    for code in found:
        line = text.count("\n", 0, text.index(code))
        exec(compile("\n" * line + code, str(DOCS), "exec"), names)
