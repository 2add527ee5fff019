"""Counts the places where the host waits for a device, on a GPU and, by what would wait, on a CPU."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Kind = Literal["read", "copy", "synchronise"]

_ATEN = torch.ops.aten
# A value that the host asks for (item, bool, int, float), or a shape that depends on values.
_READING_OPERATIONS = {
    _ATEN._local_scalar_dense, _ATEN.nonzero, _ATEN.masked_select, _ATEN.is_nonzero, _ATEN.equal, _ATEN._unique2,
}  # fmt: skip
# Methods that read a tensor's memory on the host without an operation where the tensor is on the CPU already.
_READING_METHODS = {Tensor.tolist: "tolist", Tensor.numpy: "numpy", Tensor.cpu: "cpu", Tensor.__array__: "array"}
_COPYING_METHODS = {Tensor.to: "to", Tensor.cuda: "cuda"}


@dataclass
class Waits:
    """The waits of the host in a block of `count_waits`, by kind and place."""

    places: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    """How often, by kind and "module:line operation"."""

    def __getitem__(self, kind: Kind) -> int:
        """Returns the number of waits of a kind."""
        return sum(count for (each, _), count in self.places.items() if each == kind)

    @property
    def total(self) -> int:
        """The number of waits of all kinds."""
        return self.places.total()

    def table(self, steps: int = 1) -> str:
        """Returns a line for each place, with the waits in one of `steps` steps, the most frequent first."""
        rows = self.places.most_common()
        return "\n".join(f"{count / steps:8.2f} {kind:12} {place}" for (kind, place), count in rows)


@contextmanager
def count_waits(device: torch.device | None = None) -> Iterator[Waits]:
    """Yields the waits of this thread's host for the device in the block, as they come.

    "read": a value or a shape is asked for. "copy": memory is copied between host and device and waited for.
    "synchronise": all that was launched is waited for. On a GPU torch itself reports most of them
    (torch.cuda.set_sync_debug_mode); counts of it include those of its own code. On a CPU nothing ever waits: what is
    counted there are the calls that would on a GPU, so that a test without one finds them: `.item()`, `bool(tensor)`,
    `.tolist()`, `.numpy()`, `.cpu()`, and `.to(device)` without `non_blocking=True`; not where torch itself calls it,
    from one tensor's device to the same. Memory that the host has a view of beforehand, as in `HostCopies`, isn't
    counted. device: of the step; None for the CPU.
    """
    waits, on_gpu = Waits(), device is not None and device.type == "cuda"
    with ExitStack() as exits:
        if on_gpu:
            exits.enter_context(_torchs_own(waits))
        exits.enter_context(_Synchronisations(waits))
        if not on_gpu:
            exits.enter_context(_Methods(waits))
            exits.enter_context(_Operations(waits))
        yield waits


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that give the host a value. Backward passes and optimisers are seen, too."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation."""
        if func.overloadpacket in _READING_OPERATIONS or _selects_by_mask(func, args):
            self._waits.places["read", f"{_place()} {func.overloadpacket.__name__}"] += 1
        return func(*args, **(kwargs or {}))


def _selects_by_mask(func: Any, args: Any) -> bool:
    """Returns whether an operation is images[mask]: the host has to know how many are chosen."""
    if func.overloadpacket is not _ATEN.index:
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


class _Methods(TorchFunctionMode):
    """Counts methods of tensors that would wait for a GPU and are no operation on a CPU."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function of torch."""
        named = kwargs or {}
        if func in _READING_METHODS:
            self._waits.places["read", f"{_place()} {_READING_METHODS[func]}"] += 1
        elif func in _COPYING_METHODS and _copies(args[1:], named) and not _is_torchs(sys._getframe(1)):
            self._waits.places["copy", f"{_place()} {_COPYING_METHODS[func]}"] += 1
        return func(*args, **named)


def _copies(args: Any, named: dict[str, Any]) -> bool:
    names_device = "device" in named or any(isinstance(each, (torch.device, str)) for each in args)
    return names_device and not named.get("non_blocking")


class _Synchronisations:
    """Counts calls of torch.cuda.synchronize, which torch's own report leaves out."""

    def __init__(self, waits: Waits) -> None:
        self._waits, self._original = waits, torch.cuda.synchronize

    def __enter__(self) -> None:
        def synchronize(*args: Any, **named: Any) -> None:
            self._waits.places["synchronise", f"{_place()} torch.cuda.synchronize"] += 1
            self._original(*args, **named)

        torch.cuda.synchronize = synchronize

    def __exit__(self, *_: object) -> None:
        torch.cuda.synchronize = self._original


@contextmanager
def _torchs_own(waits: Waits) -> Iterator[None]:
    """Counts what torch reports as a synchronising operation on a GPU."""

    def note(message: Any, *_: Any, **named: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            waits.places["read", f"{_place()} reported by torch"] += 1

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _is_torchs(frame: FrameType) -> bool:
    """Returns whether a frame is of torch's own code."""
    return f"{frame.f_globals.get('__name__', '')}.".startswith("torch.")


def _place() -> str:
    """Returns "module:line" of the innermost caller outside torch and this module."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        _is_torchs(frame) or frame.f_globals.get("__name__") in (__name__, "contextlib")
    ):
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno}"
