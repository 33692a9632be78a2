"""The operators torch.ops.q4.*: x @ W and its gradient, as autograd, tracing and compilers see them. Imports torch."""

import itertools
import secrets
import weakref
from typing import Any

import torch
from torch import library as torch_library
from torch.autograd import forward_ad

from q4 import _matrix
from q4._native import Matrix
from q4.errors import NotFound, Unsupported

# A graph cannot hold a Matrix, so operators get a number. Counted ones serve graphs of this process and are the same
# in each process that makes its matrices in the same order, which compilers' caches need. What is traced or exported
# may be saved and read elsewhere: its numbers are random, so that another process cannot take one for its own.
_matrices: "weakref.WeakValueDictionary[int, Matrix]" = weakref.WeakValueDictionary()
_counted: "weakref.WeakKeyDictionary[Matrix, int]" = weakref.WeakKeyDictionary()
_random: "weakref.WeakKeyDictionary[Matrix, int]" = weakref.WeakKeyDictionary()
_counter = itertools.count(1)

_DENSE_ROWS = 512  # of W that the gradient holds at a time


def number_of(matrix: Matrix, *, random: bool = False) -> int:
    """The number of a matrix, the same for as long as it lives."""
    numbers = _random if random else _counted
    number = numbers.get(matrix)
    if number is None:
        number = (1 << 40) + secrets.randbits(60) if random else next(_counter)
        numbers[matrix] = number
        _matrices[number] = matrix
    return number


def _matrix_of(call: str, number: int) -> Matrix:
    found = _matrices.get(number)
    if found is None:
        raise NotFound(
            f"{call}: matrix {number} no longer exists here: whatever held it was freed, or the graph was traced in"
            " another process: trace, export or compile the model again"
        )
    return found


def _matmul(x: torch.Tensor, matrix: int, n: int, batch_invariant: bool = False) -> torch.Tensor:
    found = _matrix_of("q4.matmul", matrix)
    result: torch.Tensor = found._compute(x.contiguous(), batch_invariant)
    return result


def _fake(x: torch.Tensor, matrix: int, n: int, batch_invariant: bool = False) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n))


def _unit_rows(matrix: Matrix, first: int, count: int, like: torch.Tensor) -> torch.Tensor:
    """W[first : first + count] as rows of the identity times W."""
    unit = like.new_zeros((count, matrix.k))
    unit[torch.arange(count), torch.arange(first, first + count)] = 1
    rows: torch.Tensor = matrix._compute(unit, False)
    if matrix.has_bias:
        rows -= matrix._compute(like.new_zeros((1, matrix.k)), False)
    return rows


def _matmul_backward(grad: torch.Tensor, matrix: int, k: int) -> torch.Tensor:
    """grad @ W^T, some rows of W at a time: on the CPU in fp32, on a GPU in grad's dtype and multiplied out."""
    found = _matrix_of("q4.matmul_backward", matrix)
    rows = grad.reshape(-1, found.n)
    tensors = None
    if rows.device.type == "cpu":
        rows = rows.float()
        tensors = found.unpack()
    result = rows.new_empty((len(rows), k))
    for first in range(0, k, _DENSE_ROWS):
        last = min(first + _DENSE_ROWS, k)
        if tensors is not None:
            dense = torch.from_numpy(_matrix.dense_rows(tensors, first, last))
        else:
            dense = _unit_rows(found, first, last - first, rows)
        torch.matmul(rows, dense.T, out=result[:, first:last])
    return result.to(grad.dtype).view(*grad.shape[:-1], k)


def _fake_backward(grad: torch.Tensor, matrix: int, k: int) -> torch.Tensor:
    return grad.new_empty((*grad.shape[:-1], k))


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    x, ctx.number, _, _ = inputs
    ctx.k = x.shape[-1]
    ctx.matrix = _matrices.get(ctx.number)  # lives until backward has run


def _backward(ctx: Any, grad: torch.Tensor) -> Any:
    return torch.ops.q4.matmul_backward(grad, ctx.number, ctx.k), None, None, None


def _vmap(info: Any, in_dims: Any, x: torch.Tensor, *options: Any) -> Any:
    return torch.ops.q4.matmul(x.movedim(in_dims[0], 0), *options), 0


def _vmap_backward(info: Any, in_dims: Any, grad: torch.Tensor, *options: Any) -> Any:
    return torch.ops.q4.matmul_backward(grad.movedim(in_dims[0], 0), *options), 0


def _no_second(ctx: Any, *gradients: torch.Tensor) -> Any:
    raise Unsupported("q4.matmul: second derivatives are not supported: do not pass create_graph=True")


_torch_library: Any = torch_library  # these are hardly annotated
_torch: Any = torch
_forward_ad: Any = forward_ad
_library = _torch_library.Library("q4", "FRAGMENT")
_library.define("matmul(Tensor x, int matrix, int n, bool batch_invariant=False) -> Tensor")
_library.define("matmul_backward(Tensor grad, int matrix, int k) -> Tensor")
for _key in ("CPU", "CUDA"):
    _library.impl("matmul", _matmul, _key)
    _library.impl("matmul_backward", _matmul_backward, _key)
_torch_library.register_fake("q4::matmul", _fake)
_torch_library.register_fake("q4::matmul_backward", _fake_backward)
_torch_library.register_autograd("q4::matmul", _backward, setup_context=_save)
_torch_library.register_autograd("q4::matmul_backward", _no_second)
_torch_library.register_vmap("q4::matmul", _vmap)
_torch_library.register_vmap("q4::matmul_backward", _vmap_backward)


class _Matmul(torch.autograd.Function):
    """The operator for torch.func's transforms, which the gradient of an operator does not support."""

    @staticmethod
    def forward(x: torch.Tensor, matrix: int, n: int, batch_invariant: bool) -> Any:
        return torch.ops.q4.matmul(x, matrix, n, batch_invariant)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _MatmulBackward.apply(grad, ctx.number, ctx.k), None, None, None

    setup_context = staticmethod(_save)
    vmap = staticmethod(_vmap)


class _MatmulBackward(torch.autograd.Function):
    @staticmethod
    def forward(grad: torch.Tensor, matrix: int, k: int) -> Any:
        return torch.ops.q4.matmul_backward(grad, matrix, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    backward = staticmethod(_no_second)
    vmap = staticmethod(_vmap_backward)


def matmul(x: torch.Tensor, matrix: Matrix, batch_invariant: bool = False) -> torch.Tensor:
    """x @ W by the operator: for an x that autograd, a tracer, a dispatch mode or a subclass of Tensor watches."""
    lasting = _torch.jit.is_tracing() or torch.compiler.is_exporting()
    options = (number_of(matrix, random=lasting), matrix.n, batch_invariant)

    def multiply(given: torch.Tensor) -> torch.Tensor:
        function = given.requires_grad and torch.is_grad_enabled() and not lasting
        y: torch.Tensor = _Matmul.apply(given, *options) if function else torch.ops.q4.matmul(given, *options)
        return y

    if _forward_ad._current_level < 0:
        return multiply(x)
    primal, tangent = _forward_ad.unpack_dual(x)
    y = multiply(primal)
    if tangent is None:
        return y
    derivative = multiply(tangent)
    if matrix.has_bias:
        derivative = derivative - multiply(torch.zeros_like(tangent))
    dual: torch.Tensor = _forward_ad.make_dual(y, derivative)
    return dual
