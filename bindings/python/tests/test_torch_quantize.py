"""q4.torch.quantize_linears: dense layers rounded to 4 bits; skipped without torch."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import q4  # noqa: E402
import q4.torch as q4_torch  # noqa: E402
from samples import awq, gptq  # noqa: E402


class Model(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed = torch.nn.Embedding(5000, 72)
        self.body = torch.nn.Linear(72, 72)
        self.lm_head = torch.nn.Linear(72, 5000, bias=False)
        self.lm_head.weight = self.embed.weight  # tied

    def forward(self, ids: Any) -> Any:
        return self.lm_head(self.body(self.embed(ids)))


def test_the_output_layer_of_a_model() -> None:
    model = Model()
    before, ids = model.embed.weight.detach().clone(), torch.arange(6)
    expected = model(ids)
    assert q4_torch.quantize_linears(model) == ["lm_head"]
    assert type(model.lm_head) is q4_torch.Linear and type(model.body) is torch.nn.Linear
    assert torch.equal(model.embed.weight, before)
    with torch.no_grad():
        error = float((model(ids) - expected).norm() / expected.norm())
        assert 0.02 < error < 0.12, error
        # Each weight within half a step of its group, the last of which has 8 rows; steps are fp16.
        dense = model.lm_head(torch.eye(72)).T
    for rows in (slice(0, 32), slice(32, 64), slice(64, 72)):
        group = before[:, rows]
        step = (group.amax(1).clamp(min=0) - group.amin(1).clamp(max=0)) / 15
        assert ((dense[:, rows] - group).abs() <= 0.52 * step[:, None]).all()


@pytest.mark.parametrize("form", ["v1", "v2", "awq"])
def test_tensors_are_in_the_form_of_the_rest(form: str) -> None:
    """What is saved together is described by one configuration."""
    model = Model()
    model.lm_head.weight.data[:8].abs_()  # a zero of 0, which v1 cannot store
    body = awq(72, 72, 8) if form == "awq" else gptq(72, 72, 8, zeros=form)
    load = q4.Matrix.from_awq if form == "awq" else q4.Matrix.from_gptq
    options = {} if form == "awq" else {"zeros": form}
    model.body = q4_torch.Linear(load(*body.tensors(), group_size=8, device="cpu", **options))
    assert q4_torch.quantize_linears(model) == ["lm_head"]
    tensors = model.lm_head.matrix.unpack()
    assert tensors["format"] == ("awq" if form == "awq" else "gptq")
    if form == "v1":
        assert tensors["zeros"] == "v1" and not ((tensors["qzeros"][:, :, None] >> np.arange(0, 32, 4) & 15) == 15).any()
    with torch.no_grad():
        dense = model.lm_head(torch.eye(72)).T
    for rows in (slice(0, 32), slice(32, 64), slice(64, 72)):
        group = model.embed.weight.detach()[:, rows]
        step = (group.amax(1).clamp(min=0) - group.amin(1).clamp(max=0)) / (14 if form == "v1" else 15)
        assert ((dense[:, rows] - group).abs() <= 0.52 * step[:, None]).all()


def test_patterns_biases_and_group_sizes() -> None:
    model = Model()
    expected = model.body(torch.eye(72))
    assert q4_torch.quantize_linears(model, ["bod*", "none"], group_size=8) == ["body"]
    with torch.no_grad():
        got = model.body(torch.eye(72))
    assert float((got - expected.detach()).norm() / expected.detach().norm()) < 0.1
    assert model.body.matrix.group_size == 8 and torch.equal(got[0], model.body(torch.eye(72)[:1])[0])


def test_what_cannot_be_quantized() -> None:
    model = Model()
    with pytest.raises(LookupError, match="no nn.Linear named output"):
        q4_torch.quantize_linears(model, "output")
    with pytest.raises(q4.InvalidArgument, match=r"a weight \[5000, 72\] in groups of 12"):
        q4_torch.quantize_linears(model, group_size=12)
    model.body = torch.nn.Linear(72, 72, device="meta")
    with pytest.raises(q4.InvalidArgument, match="'body' is on the meta device"):
        q4_torch.quantize_linears(model, "*")
    assert type(model.lm_head) is torch.nn.Linear
