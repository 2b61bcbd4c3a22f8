"""Green contexts: streams that are held to some of a GPU's multiprocessors, so that two members get complementary shares.

The calls are the driver's, looked up at run time in libcuda with the version whose structures are used here; nothing is linked.
Signatures and the size of CUdevResource are those of cuda.h 12.5 to 13.0. A stream of a green context serves for kernels and
memory of the primary context, whatever context is current (CUDA driver API, Green Contexts). A kernel in a graph has a context
of its own (CUDA_KERNEL_NODE_PARAMS), for a captured one that of its stream. Not yet tried on a GPU: a driver that sees it
otherwise refuses the capture, which leaves these shares out, or runs the kernels on all multiprocessors, which the measurement
shows.
"""

from __future__ import annotations

import ctypes
from typing import Any

from ...errors import UnsupportedError

VERSION = 12050  # the CUDA version that brought cuGreenCtxStreamCreate
LIBRARY = "libcuda.so.1"
RESOURCE_SM = 1  # CU_DEV_RESOURCE_TYPE_SM
DEFAULT_STREAM = 1  # CU_GREEN_CTX_DEFAULT_STREAM, which must be given
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, which must be given


class DevResource(ctypes.Structure):
    """CUdevResource: a type, room for the driver's own, and a union of 48 bytes that begins with the multiprocessors' count."""

    _fields_ = [("type", ctypes.c_int), ("internal", ctypes.c_ubyte * 92), ("sm_count", ctypes.c_uint),
                ("rest", ctypes.c_ubyte * 44)]


_HANDLE, _COUNT, _RESOURCE = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(DevResource)
ENTRIES: dict[str, tuple[Any, ...]] = {
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetDevResource": (ctypes.c_int, _RESOURCE, ctypes.c_int),
    "cuDevSmResourceSplitByCount": (_RESOURCE, _COUNT, _RESOURCE, _RESOURCE, ctypes.c_uint, ctypes.c_uint),
    "cuDevResourceGenerateDesc": (_HANDLE, _RESOURCE, ctypes.c_uint),
    "cuGreenCtxCreate": (_HANDLE, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint),
    "cuGreenCtxDestroy": (ctypes.c_void_p,),
    "cuGreenCtxStreamCreate": (_HANDLE, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


def _refused(got: str) -> UnsupportedError:
    since = f"{VERSION // 1000}.{VERSION % 1000 // 10}"
    return UnsupportedError("green contexts", expected=f"a driver of CUDA {since} or later that makes them", got=got,
                            fix="use other modes")


class Driver:
    """The entry points of :data:`ENTRIES`, by name. Raises UnsupportedError where one is missing."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            find = ctypes.CDLL(library).cuGetProcAddress_v2
        except (OSError, AttributeError) as error:
            raise _refused(f"{library} without cuGetProcAddress_v2: {error}") from error
        find.argtypes = (ctypes.c_char_p, _HANDLE, ctypes.c_int, ctypes.c_uint64, ctypes.POINTER(ctypes.c_int))
        self._entries: dict[str, Any] = {}
        for name, arguments in ENTRIES.items():
            address, found = ctypes.c_void_p(), ctypes.c_int()
            code = find(name.encode(), ctypes.byref(address), VERSION, 0, ctypes.byref(found))
            if code or not address.value:
                raise _refused(f"one without {name} (cuGetProcAddress: {code})")
            self._entries[name] = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(address.value)

    def call(self, name: str, *arguments: Any) -> None:
        """Raises UnsupportedError with the name of the driver's error."""
        code = self._entries[name](*arguments)
        if code:
            text = ctypes.c_char_p()
            self._entries["cuGetErrorName"](code, ctypes.byref(text))
            raise _refused(f"{name}: {(text.value or b'an error without a name').decode()} ({code})")


class GreenContexts:
    """Two green contexts that share no multiprocessor. sizes: how many each has; the driver rounds the first up.

    share: of the first, as a fraction. Raises UnsupportedError where the driver refuses, and for a share that leaves a side
    nothing.
    """

    def __init__(self, device: int, share: float, driver: Driver | None = None) -> None:
        self.driver = driver or Driver()
        call = self.driver.call
        handle, whole, first, rest = ctypes.c_int(), DevResource(), DevResource(), DevResource()
        call("cuDeviceGet", ctypes.byref(handle), device)
        call("cuDeviceGetDevResource", handle, ctypes.byref(whole), RESOURCE_SM)
        wanted, groups = max(1, round(share * whole.sm_count)), ctypes.c_uint(1)
        call("cuDevSmResourceSplitByCount", ctypes.byref(first), ctypes.byref(groups), ctypes.byref(whole), ctypes.byref(rest),
             0, wanted)
        self.sizes = (first.sm_count, rest.sm_count)
        if groups.value != 1 or not all(self.sizes):
            raise _refused(f"no cut of {whole.sm_count} multiprocessors with {wanted} on one side")
        self._contexts: list[ctypes.c_void_p] = []
        for side in (first, rest):
            description, context = ctypes.c_void_p(), ctypes.c_void_p()
            try:
                call("cuDevResourceGenerateDesc", ctypes.byref(description), ctypes.byref(side), 1)
                call("cuGreenCtxCreate", ctypes.byref(context), description, handle, DEFAULT_STREAM)
            except UnsupportedError:
                for made in self._contexts:
                    call("cuGreenCtxDestroy", made)
                raise
            self._contexts.append(context)

    def new_stream(self, side: int) -> int:
        """Handle of a stream of the first or second context; it lives as long as the process."""
        stream = ctypes.c_void_p()
        self.driver.call("cuGreenCtxStreamCreate", ctypes.byref(stream), self._contexts[side], NON_BLOCKING, 0)
        assert stream.value is not None
        return stream.value
