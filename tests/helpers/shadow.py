"""A device for tests, "shadow": its tensors are in the CPU's memory, but torch takes them for those of an accelerator.

Call `setup()` once, in a process of its own, because torch names one such device per process and never forgets it. Then
`torch.ones(3, device="shadow")` and everything else of torch works. A kernel in Python runs every aten op: it calls the
op on CPU tensors that share the memory of the shadow tensors, and refuses what a real device would refuse. Ops of other
libraries (gatedops::...) do not run this way; they need a kernel of their own, such as a composite one.
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import backend_registration

T = TypeVar("T")
CPU = torch.device("cpu")
# torch's own message
FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
_KERNEL_OF_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_DLPACK_CPU, _DLPACK_SHADOW = 1, 12  # kDLCPU and kDLExtDev, which torch reads as PrivateUse1
# In a DLManagedTensor, DLDevice {int32 type, int32 index} is at this byte offset, behind the data pointer.
_DLPACK_DEVICE = 8
_COPIES = ("aten::_copy_from", "aten::_copy_from_and_resize")
_INDEXING = ("aten::index", "aten::_index_put_impl_", "aten::_unsafe_index", "aten::_unsafe_index_put")
_LOWER_PRECISION = ("mm", "bmm", "addmm", "addbmm", "baddbmm", "addmv", "mv", "matmul", "linear", "conv1d", "conv2d")
# A function of this type gives the pointer of a capsule by its name.
_POINTER = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_pointer_in = _POINTER(("PyCapsule_GetPointer", ctypes.pythonapi))

_libraries: list[torch.library.Library] = []  # The kernels of a library live as long as the library.

# These are the open blocks. They count for the process, not for a thread: torch runs backwards in threads of its own.
_forbidding: list[list[str]] = []  # This list has what each no_host_copies() has seen.
_noting: list[list[str]] = []  # This one is for no_host_copies(forbid=False).
_counting: list[Counter[str]] = []  # This one has the counts of each record().
_without_float64: list[None] = []


@functools.cache
def setup() -> None:
    """Names the device and registers its kernels; later calls do nothing."""
    backend_registration._setup_privateuseone_for_python_backend("shadow", backend_module=_Module())
    _libraries.extend((torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")))
    fallbacks, aten = _libraries
    fallbacks.fallback(_run, "PrivateUse1")
    fallbacks.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in _LOWER_PRECISION:
        aten.impl(name, functools.partial(_autocast, getattr(torch.ops.aten, name).default), "AutocastPrivateUse1")
    # Through this kernel we see a view as float64.
    aten.impl("view.dtype", functools.partial(_run, torch.ops.aten.view.dtype), "PrivateUse1")
    # torch sends the convolutions of devices like this one to ops of their own, which only raise an error.
    aten.impl("convolution_overrideable", functools.partial(_run, torch.ops.aten.convolution.default), "PrivateUse1")
    aten.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
    clone = torch.UntypedStorage.clone
    torch.UntypedStorage.clone = lambda self: _clone(self) if self.device.type == "shadow" else clone(self)


def no_host_copies(forbid: bool = True) -> AbstractContextManager[list[str]]:
    """Raises an AssertionError in this block if the host waits for the device, or copies from or to it.

    It yields the list of what was seen. With forbid=False the list grows, but nothing is raised.
    """
    return _open(_forbidding if forbid else _noting, [])


def without_float64() -> AbstractContextManager[None]:
    """Lets the device have no float64 in this block, as Apple's GPUs: float64 is a TypeError with their message."""
    return _open(_without_float64, None)


def record() -> AbstractContextManager[Counter[str]]:
    """Counts the aten ops that the device runs in this block, by name ("aten::mm.out", "aten::_copy_from")."""
    return _open(_counting, Counter())


@contextmanager
def _open(blocks: list[T], block: T) -> Iterator[T]:
    blocks.append(block)
    try:
        yield block
    finally:
        blocks.pop()


# These functions make tensors on one device that share the memory of tensors on the other.


def to_shadow(tensor: Tensor) -> Tensor:
    """Returns a shadow tensor in the memory of a CPU tensor, which it keeps alive."""
    storage = tensor.untyped_storage()
    flat = torch.empty(0, dtype=torch.uint8, device=CPU).set_(storage, 0, (storage.nbytes(),), (1,))
    return _tensor_in(_relabel(flat).untyped_storage(), tensor)


def to_cpu(tensor: Tensor, memory: torch.UntypedStorage | None = None) -> Tensor:
    """Returns a CPU tensor in the memory of a shadow tensor, which has to outlive it. `memory` is an earlier
    result's."""
    if memory is None:
        storage = tensor.untyped_storage()
        memory = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), CPU, storage.nbytes())
    empty = torch.empty(0, dtype=tensor.dtype, device=CPU)
    return empty.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())


def _layout(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    return tensor.size(), tensor.stride(), tensor.storage_offset()


def _relabel(flat: Tensor) -> Tensor:
    """Returns the same memory as a shadow tensor. Only DLPack lets Python make a tensor in given memory."""
    capsule = torch._C._to_dlpack(flat)
    device = (ctypes.c_int32 * 2).from_address(_pointer_in(capsule, b"dltensor") + _DLPACK_DEVICE)
    assert list(device) == [_DLPACK_CPU, 0], "DLManagedTensor has a layout unknown here"
    device[0] = _DLPACK_SHADOW
    return torch._C._from_dlpack(capsule)


def _tensor_in(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """Returns a tensor in a shadow storage, with the dtype, shape, strides and offset of `like`."""
    return _set(_relabel(torch.empty(0, dtype=like.dtype, device=CPU)), storage, like)


def _set(tensor: Tensor, storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """Runs tensor.set_ by the CPU's kernel, which needs only that tensor and storage are on the same device."""
    set_ = torch.ops.aten.set_.source_Storage_storage_offset
    return set_.redispatch(_KERNEL_OF_CPU, tensor, storage, like.storage_offset(), like.size(), like.stride())


def _clone(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """Copies a storage for copy.deepcopy, because torch has no allocator for the device."""
    return torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device).untyped_storage().copy_(storage)


def _resize(tensor: Tensor, size: Any) -> Tensor:
    """Runs tensor.resize_ in the tensor's own storage if that is large enough, else in a new one, which its views
    lack."""
    last = tensor.storage_offset() + torch.Size(size).numel()
    if last * tensor.itemsize <= tensor.untyped_storage().nbytes():
        return _set(tensor, tensor.untyped_storage(), to_cpu(tensor).resize_(size))
    grown = torch.empty(size, dtype=tensor.dtype, device=CPU)
    grown.view(-1)[: tensor.numel()] = to_cpu(tensor).flatten()
    return _set(tensor, to_shadow(grown).untyped_storage(), grown)


def _run(op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Runs every op that has no other kernel for the device, not even a composite one."""
    if op.namespace != "aten":
        raise NotImplementedError(f"Could not run '{op.name()}' with arguments from the 'shadow' backend")
    name, returns = op._schema.name, op._schema.returns
    named = {a.name: value for a, value in zip(op._schema.arguments, args, strict=False)} | kwargs
    tensors: list[Tensor] = []
    _map(lambda leaf: tensors.append(leaf) if isinstance(leaf, Tensor) else None, (args, kwargs))
    for counts in _counting:
        counts[op.name()] += 1
    with torch._C._AutoDispatchBelowAutograd(), torch._C._AutoDispatchBelowADInplaceOrView():
        _refuse_mixed(op, named, tensors)
        _refuse_float64(tensors)
        if reason := _why_host_waits(op, named, tensors):
            for seen in _noting + _forbidding:
                seen.append(f"{op.name()}: {reason}")
            assert not _forbidding, f"{op.name()}: {reason}"
        if name == "aten::resize_":
            return _resize(*args)
        if name == "aten::set_" or any(r.alias_info and not r.alias_info.is_write for r in returns):
            result = op.redispatch(_KERNEL_OF_CPU, *args, **kwargs)  # The CPU's kernels make views of any storage.
            _refuse_float64([result])
            return result
        return _run_on_cpu(op, args, kwargs)


def _run_on_cpu(op: torch._ops.OpOverload, args: Any, kwargs: Any) -> Any:
    # These map the ids of CPU twins to shadow tensors, and the reverse. Both keep the tensors alive, so that no id is
    # used twice.
    originals: dict[int, Tensor] = {}
    twins: dict[int, Tensor] = {}
    # Maps the address of a storage to the first pair in it.
    shared: dict[int, tuple[Tensor, Tensor]] = {}

    def twin(tensor: Any) -> Any:
        if isinstance(tensor, torch.device):
            return CPU if tensor.type == "shadow" else tensor
        if not isinstance(tensor, Tensor) or not _is_shadow(tensor):
            return tensor
        if id(tensor) not in twins:
            first = shared.get(tensor.untyped_storage().data_ptr())
            made = to_cpu(tensor, first and first[1].untyped_storage())
            if (
                tensor.numel() == 0
            ):  # An empty tensor may be an out= that the kernel resizes, so the CPU must own its memory.
                made = torch.empty(0, dtype=tensor.dtype, device=CPU).as_strided(*_layout(tensor))
            elif first is None:
                shared[made.untyped_storage().data_ptr()] = tensor, made
            twins[id(tensor)], originals[id(made)] = made, tensor
        return twins[id(tensor)]

    def original(result: Any) -> Any:
        if id(result) in originals or not isinstance(result, Tensor):
            return originals.get(id(result), result)
        first = shared.get(result.untyped_storage().data_ptr())
        made = to_shadow(result) if first is None else _tensor_in(first[0].untyped_storage(), result)
        _refuse_float64([made])
        return made

    if not torch._C._should_allow_numbers_as_tensors(op._schema.name.removeprefix("aten::")):
        expected = [argument.type.isSubtypeOf(torch._C.TensorType.get()) for argument in op._schema.arguments]
        numbers = [e and isinstance(arg, (int, float, complex)) for e, arg in zip(expected, args, strict=False)]
        args = [_number(arg, args) if number else arg for number, arg in zip(numbers, args, strict=True)]
    args, kwargs = _map(twin, (args, kwargs))
    if op._schema.name in _COPIES:
        return original(args[1].copy_(args[0]))
    results = op(*args, **kwargs)
    for tensor in originals.values():
        made = twins[id(tensor)]
        if _layout(made) != _layout(tensor):  # An out= may have been resized, or its strides may have changed.
            _set(tensor, (to_shadow(made) if tensor.numel() == 0 else tensor).untyped_storage(), made)
    return _map(original, results)


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """Applies the function to every leaf of nested lists, tuples and dictionaries, several times as fast as _pytree."""
    if isinstance(value, (list, tuple)):
        return type(value)([_map(function, v) for v in value])
    return {k: _map(function, v) for k, v in value.items()} if isinstance(value, dict) else function(value)


def _number(value: complex, args: Any) -> Tensor:
    """Makes a tensor of a number that torch passed on as a tensor of a special kind, and Python received as a number.

    Such a special tensor counts less than any other in the choice of a result's dtype. An ordinary tensor needs a dtype
    that does not change this choice: any of the same kind beside tensors with dimensions, else that of the result.
    """
    tensor = next(arg for arg in args if isinstance(arg, Tensor))
    dtype = torch.result_type(tensor, value)
    if tensor.dim() > 0 and dtype == tensor.dtype != torch.bool:
        dtype = torch.float64 if dtype.is_floating_point else torch.complex128 if dtype.is_complex else torch.int64
    return torch.scalar_tensor(value, dtype=dtype, device=CPU)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *args: Any) -> Any:
    return _run(torch.ops.aten.convolution_backward.default, grad, x, weight, [grad.size(1)], *args)


# These functions refuse what a real device would refuse.


def _is_shadow(tensor: Tensor) -> bool:
    return tensor.device.type == "shadow"


def _refuse_mixed(op: torch._ops.OpOverload, named: dict[str, Any], tensors: list[Tensor]) -> None:
    """Refuses CPU tensors among shadow tensors, except in copies, as indices (which torch moves) and as single
    numbers."""
    if op._schema.name in _COPIES or not any(map(_is_shadow, tensors)):
        return
    indices = [id(index) for index in named["indices"]] if op._schema.name in _INDEXING else []
    written = [id(named.get(a.name)) for a in op._schema.arguments if a.alias_info and a.alias_info.is_write]
    for tensor in tensors:
        if not _is_shadow(tensor) and (tensor.dim() > 0 or id(tensor) in written) and id(tensor) not in indices:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"shadow:0 and {tensor.device}! (when checking the arguments of {op.name()})"
            )


def _refuse_float64(tensors: list[Tensor]) -> None:
    if _without_float64 and any(_is_shadow(t) and t.dtype == torch.float64 for t in tensors):
        raise TypeError(FLOAT64)


def _why_host_waits(op: torch._ops.OpOverload, named: dict[str, Any], tensors: list[Tensor]) -> str:
    """Says why a real device would make the host wait in this op, or copy from or to it; empty if it would not."""
    if op._schema.name in _COPIES:
        source, target = tensors[:2]
        crosses = source.device != target.device and source.numel() > 0
        return f"copies {source.numel()} elements from {source.device} to {target.device}" if crosses else ""
    if op._schema.name in _INDEXING:
        indices = [index for index in named["indices"] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "counts the true elements of a mask"
        return "" if all(_is_shadow(i) or i.numel() == 0 for i in indices) else "copies indices from the CPU"
    if torch.Tag.data_dependent_output in op.tags:
        return "reads a value"
    if torch.Tag.dynamic_output_shape in op.tags and named.get("output_size") is None:
        return "reads the size of its result"
    return ""


def _autocast(op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Calls the op with its float tensors in autocast's dtype; float64 stays, as with torch's own devices."""

    def cast(leaf: Any) -> Any:
        lower = isinstance(leaf, Tensor) and _is_shadow(leaf) and leaf.is_floating_point()
        return leaf.to(torch.get_autocast_dtype("shadow")) if lower and leaf.dtype != torch.float64 else leaf

    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        return op(*_map(cast, args), **_map(cast, kwargs))


class _Module(backend_registration._DummyBackendModule):
    """torch.shadow, with the functions that torch itself needs of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]
