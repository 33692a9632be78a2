"""Every format in every layout on disk, as the C++ suite's generator writes them, through Checkpoint and replace_linears.

$Q4_MAKE_CHECKPOINT names q4-make-checkpoint of a build; without it there is nothing to load.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import q4
from q4 import _matrix

MAKER = os.environ.get("Q4_MAKE_CHECKPOINT", "")
pytestmark = pytest.mark.skipif(not MAKER, reason="Q4_MAKE_CHECKPOINT does not name q4-make-checkpoint")


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> "list[dict[str, Any]]":
    folder = tmp_path_factory.mktemp("variants")
    subprocess.run([MAKER, "--variants", "--out", str(folder)], check=True, stdout=subprocess.DEVNULL)
    listed: "list[dict[str, Any]]" = json.loads((folder / "variants.json").read_text())
    for variant in listed:
        weights = np.fromfile(folder / variant["weights"], np.float32)
        variant["W"] = weights.reshape(variant["k"], variant["n"])
        variant["path"] = folder / variant["checkpoint"]
    return listed


def failures(variants: "list[dict[str, Any]]", check: Any) -> "list[str]":
    """What went wrong, a line each: one variant does not hide the others."""
    found = []
    for variant in variants:
        try:
            check(variant)
        except Exception as error:  # noqa: BLE001
            found.append(f"{variant['format']} in {variant['checkpoint']}: {type(error).__name__}: {error}")
    return found


def test_every_variant_loads_with_the_same_weights(variants: "list[dict[str, Any]]") -> None:
    def check(variant: "dict[str, Any]") -> None:
        checkpoint = q4.Checkpoint(variant["path"])
        assert [entry.name for entry in checkpoint.matrices] == [variant["matrix"]]
        entry = checkpoint.find(variant["matrix"])
        assert (entry.k, entry.n, entry.bits, entry.unsupported) == (variant["k"], variant["n"], 4, "")
        matrix = checkpoint.load(variant["matrix"], "cpu")
        assert matrix.act_order == variant["act_order"]
        dense = _matrix.dense_rows(matrix.unpack(), 0, entry.k)
        assert np.array_equal(dense, variant["W"]), f"{int((dense != variant['W']).sum())} weights differ"

    assert len(variants) >= 100
    assert failures(variants, check) == []


def test_every_variant_replaces_a_linear(variants: "list[dict[str, Any]]") -> None:
    torch = pytest.importorskip("torch")
    from q4.torch import replace_linears

    def check(variant: "dict[str, Any]") -> None:
        *path, last = variant["matrix"].split(".")
        model = torch.nn.Module()
        at = model
        for name in path:
            at.add_module(name, torch.nn.Module())
            at = getattr(at, name)
        at.add_module(last, torch.nn.Linear(variant["k"], variant["n"], bias=False))
        assert replace_linears(model, Path(variant["path"]), device="cpu") == [variant["matrix"]]
        x = torch.randn(3, variant["k"], generator=torch.Generator().manual_seed(1))
        want = x.double() @ torch.from_numpy(variant["W"]).double()
        error = ((getattr(at, last)(x).double() - want).norm() / want.norm()).item()
        assert error < 1e-6, f"error {error:.1e}"

    assert failures(variants, check) == []
