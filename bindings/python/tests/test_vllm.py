"""q4.integrations.vllm against a stand-in of vLLM's interface, as its source has it: how weights arrive and are used.

AWQ's are in the order of GPTQ when they arrive, with zeros of [groups, n/8]."""

import importlib
import sys
import types
from typing import Any, Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import q4  # noqa: E402
from samples import activations, assert_close, gptq  # noqa: E402


class Platform:
    CUDA, ROCM, CPU = "cuda", "rocm", "cpu"


class Type:
    """vllm.scalar_type.ScalarType, as far as kernels ask it."""

    def __init__(self, name: str, bits: int) -> None:
        self.name, self.size_bits = name, bits

    def __str__(self) -> str:
        return self.name


class NewKernel:
    """vLLM's MPLinearKernel from 0.33 on."""

    def __init__(self, c: Any, w_q: str, w_s: str, w_zp: "str | None" = None) -> None:
        assert self.can_implement(c)[0]
        self.config, self.w_q_name, self.w_s_name, self.w_zp_name = c, w_q, w_s, w_zp

    def _get_weight_params(self, layer: Any) -> Any:
        return tuple(getattr(layer, name or "", None) for name in (self.w_q_name, self.w_s_name, self.w_zp_name))


class Kernel:
    """Before, with act-order."""

    def __init__(self, c: Any, w_q: str, w_s: str, w_zp: "str | None" = None, w_gidx: "str | None" = None) -> None:
        assert self.can_implement(c)[0]
        self.config, self.w_q_name, self.w_s_name, self.w_zp_name, self.w_gidx_name = c, w_q, w_s, w_zp, w_gidx

    def _get_weight_params(self, layer: Any) -> Any:
        names = (self.w_q_name, self.w_s_name, self.w_zp_name or "", self.w_gidx_name or "")
        return tuple(getattr(layer, name, None) for name in names)


def permute_param_layout_(param: Any, input_dim: int, output_dim: int, **kwargs: Any) -> Any:
    """vLLM's: a parameter knows which of its dimensions is which, and is transposed where that differs."""
    if param.input_dim != input_dim:
        param.data = param.data.t()
        param.input_dim, param.output_dim = param.output_dim, param.input_dim
    assert (param.input_dim, param.output_dim) == (input_dim, output_dim)
    return param


def parameter(values: Any, input_dim: int) -> Any:
    made = torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(values)), requires_grad=False)
    made.input_dim, made.output_dim = input_dim, 1 - input_dim
    return made


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, request: Any) -> Iterator[Any]:
    kernel = getattr(request, "param", Kernel)
    linear = types.SimpleNamespace(MPLinearKernel=kernel, _POSSIBLE_KERNELS={"cuda": ["marlin"], "cpu": ["cpu"]})
    modules = {
        "vllm": {},
        "vllm.model_executor": {},
        "vllm.model_executor.kernels": {"linear": linear},
        "vllm.model_executor.parameter": {"permute_param_layout_": permute_param_layout_},
        "vllm.platforms": {"PlatformEnum": Platform},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "q4.integrations.vllm", raising=False)
    yield importlib.import_module("q4.integrations.vllm")
    sys.modules.pop("q4.integrations.vllm", None)


def config(k: int, n: int, kind: str = "uint4b8", **options: Any) -> Any:
    given = {"group_size": 32, "zero_points": kind == "uint4", "act_type": torch.float16, **options}
    return types.SimpleNamespace(
        full_weight_shape=(k, n), partition_weight_shape=(k, n), weight_type=Type(kind, 4), out_type=None, **given
    )


@pytest.mark.parametrize("place, expected", [("last", ["marlin", "q4"]), ("first", ["q4", "marlin"]), ("off", ["marlin"])])
def test_where_it_stands(plugin: Any, monkeypatch: pytest.MonkeyPatch, place: str, expected: "list[str]") -> None:
    monkeypatch.setenv("Q4_VLLM", place)
    plugin.register()
    plugin.register()
    known = plugin._kernels._POSSIBLE_KERNELS["cuda"]
    assert ["q4" if kernel is plugin.Q4LinearKernel else kernel for kernel in known] == expected
    monkeypatch.setenv("Q4_VLLM", "maybe")
    with pytest.raises(q4.InvalidArgument, match="Q4_VLLM = 'maybe': it must be one of last, first, off"):
        plugin.register()


def test_what_it_refuses(plugin: Any) -> None:
    can = plugin.Q4LinearKernel.can_implement
    assert can(config(128, 64)) == (True, None)
    for c, part in (
        (config(128, 60), "multiples of 8"),
        (config(128, 64, group_size=12), "group size"),
        (config(128, 64, kind="uint4", zero_points=False), "zero points"),
        (config(128, 64, act_type=torch.float8_e4m3fn), "multiplies fp16"),
        (config(128, 64, kind="float4_e2m1f"), "uint4"),
    ):
        ok, reason = can(c)
        assert not ok and part in reason


@pytest.mark.parametrize(
    "plugin, form",
    [
        (NewKernel, "gptq"),
        (NewKernel, "compressed-tensors"),
        (NewKernel, "awq"),
        (Kernel, "compressed-tensors"),
        (Kernel, "act-order"),
        (Kernel, "act-order of a rank"),
    ],
    indirect=["plugin"],
)
def test_weights_as_vllm_loads_them(plugin: Any, form: str) -> None:
    k, n, group = 128, 64, 32
    compressed, ordered, zeros = form == "compressed-tensors", form.startswith("act-order"), form in ("compressed-tensors", "awq")
    sample = gptq(k, n, group, act_order=ordered, zeros="v2", stored=None if zeros else 8, seed=3)
    layer, rows = torch.nn.Module(), slice(0, 64) if form.endswith("rank") else slice(0, k)
    words = sample.qweight[rows.start // 8 : rows.stop // 8]
    if compressed:  # [n, k/8], [n, groups], [n/8, groups]
        layer.w = parameter(words.T, input_dim=1)
        layer.s = parameter(sample.scales.T, input_dim=1)
        layer.z = parameter(sample.qzeros.T, input_dim=1)
    else:
        layer.w, layer.s = parameter(words, input_dim=0), parameter(sample.scales, input_dim=0)
        layer.z, layer.g = parameter(sample.qzeros, input_dim=0), parameter(sample.g_idx[rows], input_dim=0)
    k = rows.stop - rows.start
    c = config(k, n, "uint4" if zeros else "uint4b8", **({"has_g_idx": True} if ordered else {}))
    kernel = plugin.Q4LinearKernel(c, "w", "s", "z" if zeros else None, *(["g"] if ordered else []))
    kernel.process_weights_after_loading(layer)
    assert layer.w.numel() == 0 and layer.s.numel() == 0
    x = activations(3, k)
    out, bias = kernel.apply_weights(layer, torch.from_numpy(x)), torch.arange(n, dtype=torch.float16)
    assert_close(out.numpy(), x, sample.dense[rows])
    assert torch.equal(kernel.apply_weights(layer, torch.from_numpy(x), bias), out + bias)
