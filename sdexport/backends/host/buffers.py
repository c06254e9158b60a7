"""Allocates and checks the host buffers of a binding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdexport.backends.host.device import aligned
from sdexport.backends.session import Array, numpy_dtype
from sdexport.errors import EngineError
from sdexport.model.shapes import TensorSpec


def host_buffers(
    name: str,
    tensors: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    shared: Mapping[str, Array] | None,
) -> dict[str, Array]:
    """A buffer for every tensor of the engine `name`: a shared one, or new zeroed memory.

    Raises:
        EngineError: a shape is missing, unknown or not accepted, or a shared buffer has another
            shape, dtype or memory layout; names the tensor, the value and what is accepted.
    """
    shared = shared or {}
    known = {spec.name: spec for spec in tensors}
    for given, what in ((shapes, "shape"), (shared, "buffer")):
        unknown = [tensor for tensor in given if tensor not in known]
        if unknown:
            raise EngineError(
                f"{name} has no tensor {', '.join(unknown)} to give a {what} to; "
                f"it has: {', '.join(map(str, tensors))}"
            )
    missing = [tensor for tensor in known if tensor not in shapes]
    if missing:
        raise EngineError(
            f"{name} is bound without a shape for {', '.join(missing)}; "
            f"it needs: {', '.join(map(str, tensors))}"
        )
    return {
        tensor: _shared_buffer(name, spec, shapes[tensor], shared[tensor])
        if tensor in shared
        else aligned(_fitting(name, spec, shapes[tensor]), numpy_dtype(spec.dtype))
        for tensor, spec in known.items()
    }


def _fitting(name: str, spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape`; raises EngineError if it does not match `spec`."""
    fits = len(shape) == len(spec.shape) and all(
        length >= 1 and (isinstance(wanted, str) or wanted == length)
        for wanted, length in zip(spec.shape, shape, strict=False)
    )
    if not fits:
        raise EngineError(
            f"{name} does not accept {spec.name} with the shape {shape}; it accepts {spec}"
        )
    return shape


def _shared_buffer(name: str, spec: TensorSpec, shape: tuple[int, ...], buffer: Array) -> Array:
    """`buffer`; raises EngineError if the engine cannot use it in place for `spec`."""
    _fitting(name, spec, shape)
    if buffer.shape != shape or buffer.dtype != numpy_dtype(spec.dtype):
        raise EngineError(
            f"{name} cannot use the shared buffer for {spec.name}: it is {buffer.dtype} "
            f"{buffer.shape}, and {spec.dtype} {shape} is needed"
        )
    if not (buffer.flags.c_contiguous and buffer.flags.writeable):
        raise EngineError(
            f"{name} cannot use the shared buffer for {spec.name}: it must be C-contiguous and "
            "writable; share a copy of it"
        )
    return buffer
