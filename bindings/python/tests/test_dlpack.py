"""DLPack capsules of every kind, right and wrong, from a producer written here: random element types, shapes, strides, byte
offsets, devices and null fields. Each is used, or refused by an error that is no defect, and given back exactly once."""

import ctypes
import gc
import os
import random
from typing import Any

import numpy as np
import pytest
import q4
from samples import activations, assert_close, gptq

TRIES = int(os.environ.get("Q4_DLPACK_TRIES", "3000"))
FIRST = int(os.environ.get("Q4_PROPERTY_SEED", "1"))
I64_MAX = 2**63 - 1


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", Deleter)]


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

live: dict[int, Any] = {}  # what was exported and not given back, by address
twice: list[int] = []


@Deleter
def give_back(address: int) -> None:
    if live.pop(address, None) is None:
        twice.append(address)


# A capsule that nobody has taken gives its tensor back when it goes; whoever takes it takes this away.
@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def drop(capsule: int) -> None:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    give_back(pointer(capsule, name(capsule)))


class Producer:
    """Exports a tensor whose fields are those given."""

    def __init__(self, memory: Any, fields: dict[str, Any], shape: Any, strides: Any) -> None:
        self.memory, self.fields, self.shape, self.strides = memory, fields, shape, strides
        self.named = b"dltensor"

    def __dlpack__(self, **_: Any) -> Any:
        managed = Managed()
        shape = (ctypes.c_int64 * max(len(self.shape), 1))(*self.shape)
        managed.tensor.shape = shape
        strides = None
        if self.strides is not None:
            strides = (ctypes.c_int64 * max(len(self.strides), 1))(*self.strides)
            managed.tensor.strides = strides
        managed.tensor.ndim = len(self.shape)
        for name, value in self.fields.items():
            setattr(managed.tensor, name, value)
        managed.deleter = give_back
        address = ctypes.addressof(managed)
        live[address] = (managed, shape, strides, self.memory)
        return new_capsule(address, self.named, ctypes.cast(drop, ctypes.c_void_p))

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.fields["device_type"], self.fields["device_id"]


KINDS = {"float16": (2, 16), "float32": (2, 32), "int32": (0, 32), "int64": (0, 64), "uint8": (1, 8)}


def exported(array: Any, choose: random.Random, wrong: float) -> Producer:
    """The array, its rows some elements apart, at some byte offset; with probability `wrong` with something else about it."""
    array = np.asarray(array)
    code, bits = KINDS[array.dtype.name]
    size = bits // 8
    shape = list(array.shape)
    strides: Any = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    if len(shape) == 2 and choose.random() < 0.3:
        strides[0] += choose.choice([1, 8])
    fields = {"device_type": choose.choice([1, 1, 1, 3]), "device_id": 0, "code": code, "bits": bits, "lanes": 1}
    offset = choose.choice([0, 0, size * 4, size * 64])
    fields["byte_offset"] = offset
    compact = strides[0] == int(np.prod(shape[1:])) if shape else True
    if compact and choose.random() < 0.3:
        strides = None
    known: Any = strides
    if choose.random() < wrong:
        kind = choose.randrange(7)
        number = choose.choice([-1, 0, 1, 2, 7, -8, 2**31, 2**62, I64_MAX, -I64_MAX - 1])
        if kind == 0 and shape:
            shape[choose.randrange(len(shape))] = number
        elif kind == 1 and known:
            strides[choose.randrange(len(strides))] = number
        elif kind == 2:
            fields["code"], fields["bits"], fields["lanes"] = choose.randrange(9), choose.choice([1, 4, 8, 16, 32, 64, 128]), choose.choice([1, 1, 2, 0])
        elif kind == 3:
            fields["device_type"], fields["device_id"] = choose.randrange(-1, 20), choose.choice([0, 0, 1, -1, 2**31 - 1])
        elif kind == 4:
            fields["byte_offset"] = offset + choose.choice([1, 3])
        elif kind == 5:
            extra = choose.randrange(9)
            shape, strides = [1] * extra + shape, None if strides is None else [choose.choice([1, 0, I64_MAX])] * extra + strides
        # 6: the data is null, below
        null = kind == 6
    else:
        null = False
    # Memory is as large as the fields say; what nobody can have is null, and what is no size has some.
    extent = 1
    for i, length in enumerate(shape):
        step = strides[i] if strides is not None else int(np.prod([max(s, 0) for s in shape[i + 1 :]], dtype=object))
        extent += (length - 1) * step if length > 0 else 0
    bytes_needed = max(extent, 1) * max(size, fields["bits"] * max(fields["lanes"], 1) // 8) + fields["byte_offset"] + 8
    if extent < 0 or extent > I64_MAX:
        bytes_needed = 4096
    if bytes_needed > 1 << 22:
        null, bytes_needed = True, 8
    memory = np.full(bytes_needed + 64, 0x11, np.uint8)
    base = -memory.ctypes.data % 64
    if shape == list(array.shape) and not null:
        view = np.ndarray(array.shape, array.dtype, memory, base + offset, None if known is None else [s * size for s in known])
        if fields["byte_offset"] == offset and strides == known:
            view[...] = array
    fields["data"] = None if null else memory.ctypes.data + base
    result = Producer(memory, fields, shape, strides)
    if choose.random() < wrong / 20:
        result.named = choose.choice([b"used_dltensor", b"dltensor_versioned_not", b"x"])
    return result


def is_right(error: BaseException) -> bool:
    """An error that says what is wrong: none is a defect, which q4.Error itself stands for."""
    return type(error) is not q4.Error and isinstance(error, (q4.Error, TypeError, ValueError, BufferError, MemoryError))


def settled() -> None:
    gc.collect()
    assert not live and not twice, (len(live), twice)


def test_right_ones_give_right_results() -> None:
    for seed in range(FIRST, FIRST + TRIES // 30):
        choose = random.Random(seed)
        sample = gptq(64, 24, 32, act_order=seed % 2 == 0, seed=seed)
        given = [exported(t, choose, 0) for t in (*sample.tensors(), sample.g_idx)]
        W = q4.Matrix.from_gptq(*given, zeros="v1", device="cpu")
        x = activations(3, 64)
        out = np.empty((3, 24), np.float16)
        assert_close(exported(x, choose, 0) @ W, x, sample.dense)
        W.plan(3).run(exported(x, choose, 0), out)
        assert_close(out, x, sample.dense)
        del given, W
    settled()


@pytest.mark.parametrize("first", [FIRST, FIRST + 10**6, FIRST + 2 * 10**6])
def test_random_ones_are_used_or_refused(first: int) -> None:
    sample = gptq(64, 24, 32, seed=1)
    W = q4.Matrix.from_gptq(*sample.tensors(), zeros="v1", device="cpu")
    plan, x, out = W.plan(4, dtype="float16"), activations(3, 64), np.zeros((3, 24), np.float16)
    table = q4.LoraAdapters(W, adapters=2, max_rank=8, dtype="float16")
    a, b = activations(8, 64, 2), activations(24, 8, 3)
    used = refused = 0
    for seed in range(first, first + TRIES // 3):
        choose = random.Random(seed)

        def make(array: Any, choose: random.Random = choose) -> Producer:
            return exported(array, choose, 0.4)

        calls = [
            lambda: q4.Matrix.from_gptq(*[make(t) for t in (*sample.tensors(), sample.g_idx)], zeros="v1", device="cpu"),
            lambda: q4.Matrix.from_gptq(*[make(t) for t in sample.tensors()], None, make(np.ones(24, np.float16)), group_size=32),
            lambda: make(x) @ W,
            lambda: q4.matmul(make(x), W, out=make(out)),
            lambda: plan.run(make(x), make(out)),
            lambda: W.update(*[make(t) for t in sample.tensors()], zeros="v1"),
            lambda: table.set(0, make(a), make(b), 0.5),
            lambda: q4.Matrix.from_awq(*[make(t) for t in sample.tensors()]),
            lambda: q4.matmul(make(x), W, adapters=table, adapter_of_row=make(np.zeros(3, np.int32))),
        ]
        try:
            choose.choice(calls)()
            used += 1
        except Exception as error:
            assert is_right(error), f"seed {seed}: {type(error)}: {error}"
            refused += 1
    assert used > TRIES // 20 and refused > TRIES // 20, (used, refused)
    W.update(*sample.tensors(), zeros="v1")
    assert_close(x @ W, x, sample.dense)  # nothing of it was lost
    settled()
