"""x @ W where torch watches x: gradients, torch.func, tracing, fake tensors, subclasses; skipped without torch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import q4  # noqa: E402
import q4.torch as q4_torch  # noqa: E402
from q4 import _torch_ops  # noqa: E402
from samples import activations, gptq  # noqa: E402
from test_torch import DEVICES, clean, close, dense, tensors  # noqa: E402, F401
from torch import library as torch_library  # noqa: E402


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [False, True])
def test_gradients(device: Any, bias: bool) -> None:
    """By x @ W, q4.matmul, torch.matmul, Linear, compiled and in functional form: dx = dy @ W^T, never a silent nothing."""
    sample = gptq(600, 64, 32, act_order=True)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    own = torch.linspace(-1, 1, 64, device=device) if bias else None
    W = q4.Matrix.from_gptq(*tensors(sample, device), torch.from_numpy(sample.g_idx), own)
    linear = q4_torch.Linear(W)
    x0 = torch.from_numpy(activations(6, 600)).to(device, dtype).view(2, 3, 600)
    weights = torch.randn(2, 3, 64, device=device, dtype=dtype)
    expected = (weights.float() @ dense(sample, device).T).to(dtype)
    extra = torch.ones(64, device=device, dtype=dtype, requires_grad=True)
    with torch.enable_grad():
        ways: list[Any] = [
            lambda x: x @ W,
            lambda x: torch.matmul(x, W),
            lambda x: q4.matmul(x, W),
            lambda x: q4.matmul(x, W, bias=extra),
            lambda x: q4.matmul(x, W, batch_invariant=True),
            lambda x: W.matmul(x),
            linear,
            lambda x: linear(x.transpose(0, 1)).transpose(0, 1),
            torch.compile(linear, backend="aot_eager", fullgraph=True),
        ]
        for i, way in enumerate(ways):
            x = x0.clone().requires_grad_()
            y = way(x)
            assert y.requires_grad and y.grad_fn is not None, i
            (y * weights).sum().backward()
            torch.testing.assert_close(x.grad, expected, rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(y.detach(), linear(x0) + (1 if i == 3 else 0), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(extra.grad, weights.sum((0, 1)), rtol=2e-3, atol=2e-3)
        functional = torch.func.grad(lambda x: ((x @ W) * weights).sum())(x0)
        torch.testing.assert_close(functional, expected, rtol=2e-3, atol=2e-3)
        each = torch.func.vmap(torch.func.grad(lambda x, w: ((x @ W) * w).sum()))(x0[0], weights[0])
        torch.testing.assert_close(each, expected[0], rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(torch.func.vmap(lambda x: x @ W, in_dims=1)(x0).transpose(0, 1), x0 @ W)
        tangent = torch.randn_like(x0)
        _, derivative = torch.func.jvp(lambda x: x @ W, (x0,), (tangent,))
        torch.testing.assert_close(derivative, tangent @ dense(sample, device, dtype), rtol=2e-3, atol=2e-3)
        with torch.autograd.forward_ad.dual_level():
            dual = linear(torch.autograd.forward_ad.make_dual(x0, tangent))
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, derivative)
        x = x0.clone().requires_grad_()
        through = torch.utils.checkpoint.checkpoint(linear, x, use_reentrant=False)
        (through * weights).sum().backward()
        torch.testing.assert_close(x.grad, expected, rtol=2e-3, atol=2e-3)
        number = _torch_ops.number_of(W)
        torch_library.opcheck(torch.ops.q4.matmul.default, (x0.clone().requires_grad_(), number, 64))
        assert not (x0 @ W).requires_grad  # nothing to record


def test_what_has_no_gradient_says_so() -> None:
    sample = gptq(64, 16, 32)
    W = q4.Matrix.from_gptq(*tensors(sample, "cpu"))
    plan, out = W.plan(4, dtype=torch.float32), torch.empty(4, 16)
    with torch.enable_grad():
        x = torch.ones(4, 64, requires_grad=True)
        history = torch.ones(4, 16, requires_grad=True) * 2
        for call, text in (
            (lambda: q4.matmul(x, W, out=out), "out= does not go with an x that requires grad"),
            (lambda: q4.matmul(x.detach(), W, out=history), "out requires grad"),
            (lambda: q4.matmul(x, W, stream=0), "stream="),
            (lambda: plan.run(x, out), "Plan.run: x requires grad"),
            (lambda: plan.run(x.detach(), history), "Plan.run: out requires grad"),
        ):
            with pytest.raises(ValueError, match=text):
                call()
        y = x @ W
        (first,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="second derivatives"):
            first.sum().backward()
    plan.run(x, out)  # under no_grad
    assert torch.equal(out, x.detach() @ W)


def test_trace_and_fake_tensors(tmp_path: Path) -> None:
    sample = gptq(64, 16, 32)
    linear = q4_torch.Linear.from_gptq(*tensors(sample, "cpu"))
    x = torch.from_numpy(activations(4, 64))
    for function in (linear, lambda x: x @ linear.matrix):
        traced = torch.jit.trace(function, x)
        for m in (1, 4, 9):
            given = torch.from_numpy(activations(m, 64, m))
            close(traced(given), given, sample)
    torch.jit.save(torch.jit.trace(linear, x), tmp_path / "traced.pt")
    close(torch.jit.load(tmp_path / "traced.pt")(x), x, sample)
    script = "import sys, torch, q4.torch; torch.jit.load(sys.argv[1])(torch.ones(4, 64, dtype=torch.half))"
    result = subprocess.run([sys.executable, "-c", script, tmp_path / "traced.pt"], capture_output=True, text=True)
    assert result.returncode != 0 and "no longer exists" in result.stderr
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for fake in (mode.from_tensor(x), torch.empty(4, 64, dtype=torch.half)):
            for y in (linear(fake), fake @ linear.matrix):
                assert type(y) is type(fake) and y.shape == (4, 16)


class Named(torch.Tensor):
    """A subclass of Tensor, as libraries make them."""


def test_subclasses_keep_their_class() -> None:
    sample = gptq(64, 16, 32)
    W = q4.Matrix.from_gptq(*tensors(sample, "cpu"))
    x = torch.from_numpy(activations(4, 64)).as_subclass(Named)
    assert type(x @ W) is Named
    close((x @ W).as_subclass(torch.Tensor), x.as_subclass(torch.Tensor), sample)
    parameter = torch.nn.Parameter(torch.from_numpy(activations(4, 64)))
    close(parameter @ W, parameter.detach(), sample)
