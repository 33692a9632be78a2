"""q4 as a kernel of GPTQModel 7, and so of transformers' own GPTQ and AWQ paths, which ask GPTQModel for it.

    import q4.integrations.gptqmodel
    q4.integrations.gptqmodel.install()
    model = GPTQModel.load(folder)          # or AutoModelForCausalLM.from_pretrained(folder)

Checkpoints of formats gptq, gptq_v2 and AWQ gemm, 4 bits in 32-bit words, on CPU, CUDA and ROCm. What q4 does not take
(other bits, other formats) is left to GPTQModel's own kernels. Quantizing is not affected: q4 packs nothing there.
"""

import functools
from collections import OrderedDict
from typing import Any

import torch
from gptqmodel.adapter.adapter import Lora
from gptqmodel.models._const import DEVICE, PLATFORM
from gptqmodel.nn_modules.qlinear import AWQuantLinear, GPTQQuantLinear
from gptqmodel.quantization import FORMAT, METHOD
from gptqmodel.utils import importer
from gptqmodel.utils import model as loading
from gptqmodel.utils.backend import BACKEND

from q4._native import Matrix
from q4._torch_linear import Linear

_KEY = "q4"
_Mixin: Any = object  # what follows in the order of bases: GPTQModel's
_DTYPES = (torch.float16, torch.bfloat16)


class _Q4Linear(_Mixin):  # type: ignore[misc,unused-ignore]
    """What both kernels share. Once post_init() ran the weights are in `linear`, and the buffers are gone."""

    SUPPORTS_BACKEND_SELECTION = False  # chosen by install() alone, in no other list of kernels
    SUPPORTS_BITS = [4]
    SUPPORTS_GROUP_SIZE = [-1, 8, 16, 32, 64, 128, 256, 512, 1024]
    SUPPORTS_DESC_ACT = [True, False]
    SUPPORTS_SYM = [True, False]
    SUPPORTS_SHARDS = True
    SUPPORTS_TRAINING = True  # adapters: gradients flow through to x
    SUPPORTS_IN_FEATURES_DIVISIBLE_BY = [8]
    SUPPORTS_OUT_FEATURES_DIVISIBLE_BY = [8]
    SUPPORTS_DEVICES = [DEVICE.CPU, DEVICE.CUDA, DEVICE.ROCM]
    SUPPORTS_PLATFORM = [PLATFORM.LINUX]
    SUPPORTS_PACK_DTYPES = [torch.int32]
    SUPPORTS_ADAPTERS = [Lora]
    SUPPORTS_DTYPES = [torch.float16, torch.bfloat16, torch.float32]
    QUANT_TYPE = "q4"

    def __init__(
        self,
        bits: int,
        group_size: int,
        sym: bool,
        desc_act: bool,
        in_features: int,
        out_features: int,
        bias: bool = False,
        pack_dtype: torch.dtype = torch.int32,
        adapter: Any = None,
        register_buffers: bool = True,
        **options: Any,
    ) -> None:
        """In the order in which optimum gives them."""
        super().__init__(
            bits=bits,
            group_size=group_size,
            sym=sym,
            desc_act=desc_act,
            in_features=in_features,
            out_features=out_features,
            bias=bias,
            pack_dtype=pack_dtype,
            adapter=adapter,
            register_buffers=register_buffers,
            backend=options.pop("backend", self.SUPPORTS_BACKENDS[0]),
            **options,
        )

    def post_init(self) -> None:
        """Packs the buffers into a q4.Matrix where they are, and drops them."""
        super().post_init()
        if self._linear is not None:
            return
        matrix = self._matrix()
        self.__dict__["_q4"] = Linear(matrix)  # no submodule: its names would be in state_dict()
        for name in ("qweight", "qzeros", "scales", "g_idx", "bias"):
            if name in self._buffers:
                del self._buffers[name]
        self.bias = None

    @property
    def _linear(self) -> "Linear | None":
        return self.__dict__.get("_q4")

    def _matrix(self) -> Matrix:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name == "qweight" and self._linear is not None:
            return self._linear.qweight  # what others read the device from; unpacked anew
        return super().__getattr__(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._linear is None:
            raise RuntimeError(f"{type(self).__name__}: '{self.name}' has no weights yet: call post_init() first")
        rotated = self._apply_rotation_to_input(x) if self.online_full_had or self.online_partial_had else x
        wide = x.is_cuda and x.dtype not in _DTYPES  # GPUs multiply fp16 and bf16
        y: torch.Tensor = self._linear(rotated.half() if wide else rotated)
        y = y.to(x.dtype) if wide else y
        if self.adapter is not None:
            y = self.adapter.apply(x=x, out=y)
        return y

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse=recurse)
        if self._linear is not None:
            self._linear._apply(fn)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """The tensors again: GPTQ's with zeros as they are (v2), or AWQ's."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._linear is not None:
            self._linear._save_to_state_dict(destination, prefix, keep_vars)


def _own(kernel: Any) -> Any:
    """GPTQModel looks for the SUPPORTS fields in the class itself, not in its bases."""
    for name, value in vars(_Q4Linear).items():
        if name.startswith("SUPPORTS") and name not in vars(kernel):
            setattr(kernel, name, value)
    return kernel


@_own
class Q4GptqLinear(_Q4Linear, GPTQQuantLinear):  # type: ignore[misc,unused-ignore]
    """GPTQ. GPTQModel converts v1 zeros to v2 before post_init, in whole words, as it wrote them."""

    SUPPORTS_BACKENDS = [BACKEND.GPTQ_TORCH]
    SUPPORTS_METHODS = [METHOD.GPTQ]
    SUPPORTS_FORMATS = {FORMAT.GPTQ: 200, FORMAT.GPTQ_V2: 200}
    SUPPORTS_AUTO_PADDING = True  # a last, shorter group
    REQUIRES_FORMAT_V2 = True

    def _matrix(self: Any) -> Matrix:
        return Matrix.from_gptq(
            self.qweight,
            self.qzeros,
            self.scales,
            self.g_idx,
            self.bias,
            group_size=self.group_size,
            zeros="v2",
            device=str(self.qweight.device),
        )


@_own
class Q4AwqLinear(_Q4Linear, AWQuantLinear):  # type: ignore[misc,unused-ignore]
    """AWQ gemm."""

    SUPPORTS_BACKENDS = [BACKEND.AWQ_TORCH]
    SUPPORTS_METHODS = [METHOD.AWQ]
    SUPPORTS_FORMATS = {FORMAT.GEMM: 200}
    SUPPORTS_AUTO_PADDING = False
    REQUIRES_FORMAT_V2 = False

    def _matrix(self: Any) -> Matrix:
        return Matrix.from_awq(
            self.qweight,
            self.qzeros,
            self.scales,
            self.bias,
            group_size=self.group_size,
            device=str(self.qweight.device),
        )


def _takes_all(dynamic: Any) -> bool:
    """Whether rules for single layers change nothing but what GPTQModel's own question to one kernel covers, the bits."""
    rules = [rule for rule in (dynamic or {}).values() if rule]
    return all(
        rule.get("group_size", -1) in _Q4Linear.SUPPORTS_GROUP_SIZE and "pack_dtype" not in rule for rule in rules
    )


def _asking_less(before: Any) -> Any:
    """GPTQModel asks every kernel whether a model is for it, and its own compile an extension to know that: minutes on a
    GPU. Where q4 takes all layers, no other is asked."""

    @functools.wraps(before)
    def select_quant_linear(**options: Any) -> Any:
        chosen = options.get("backend") in (None, BACKEND.AUTO, BACKEND.AUTO_TRAINABLE)
        if chosen and options.get("multi_select") and not options.get("pack") and _takes_all(options.get("dynamic")):
            first = before(**{**options, "multi_select": False})
            if issubclass(first, _Q4Linear):
                return [first]
        return before(**options)

    return select_quant_linear


def install() -> None:
    """From now on GPTQModel takes q4 first where the backend is not named, in this process."""
    for kernel in (Q4GptqLinear, Q4AwqLinear):
        for method in kernel.SUPPORTS_METHODS:
            for form in kernel.SUPPORTS_FORMATS:
                before = importer.AUTO_BACKEND_KERNEL_MAPPING[method].get(form, {})
                others = [(key, value) for key, value in before.items() if key != _KEY]
                importer.AUTO_BACKEND_KERNEL_MAPPING[method][form] = OrderedDict([(_KEY, kernel), *others])
    importer.clear_validation_cache()
    before = getattr(loading, "select_quant_linear", None)  # other versions may ask elsewhere
    if before is not None and not hasattr(before, "__wrapped__"):
        loading.select_quant_linear = _asking_less(before)


def uninstall() -> None:
    """Undoes install(), for models that are loaded from now on."""
    before = getattr(getattr(loading, "select_quant_linear", None), "__wrapped__", None)
    if before is not None:
        loading.select_quant_linear = before
    for forms in importer.AUTO_BACKEND_KERNEL_MAPPING.values():
        for kernels in forms.values():
            kernels.pop(_KEY, None)


__all__ = ["Q4AwqLinear", "Q4GptqLinear", "install", "uninstall"]
