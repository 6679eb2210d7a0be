"""What NVIDIA's driver says of the devices here, by its management library; without it there are none."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any, Final

LIBRARY: Final = "libnvidia-ml.so.1"
NAME_BYTES: Final = 96  # nvml.h: NVML_DEVICE_NAME_V2_BUFFER_SIZE, and as much for a UUID
DEVICES_MAX: Final = 64
SUCCESS: Final = 0


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilization(ctypes.Structure):
    _fields_ = (("compute", ctypes.c_uint), ("memory", ctypes.c_uint))


class Devices:
    """Asks anew at each call, for memory and load change; a call takes some milliseconds, and blocks."""

    def __init__(self, library: str = LIBRARY) -> None:
        self._library = library

    def info(self) -> dict[str, dict[str, Any]]:
        """What each is, by its number."""
        return self._each(_info)

    def stats(self) -> dict[str, dict[str, Any]]:
        """How busy each is."""
        return self._each(_stats)

    def _each(
        self, ask: Callable[[ctypes.CDLL, ctypes.c_void_p], dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        try:
            nvml = ctypes.CDLL(self._library)
        except OSError:
            return {}
        if nvml.nvmlInit_v2() != SUCCESS:
            return {}
        try:
            return {str(index): ask(nvml, handle) for index, handle in _handles(nvml)}
        finally:
            nvml.nvmlShutdown()


def _handles(nvml: ctypes.CDLL) -> Iterator[tuple[int, ctypes.c_void_p]]:
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != SUCCESS:
        return
    for index in range(min(count.value, DEVICES_MAX)):
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == SUCCESS:
            yield index, handle


def _common(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> dict[str, Any]:
    memory = _Memory()
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    return {
        "id": _text(nvml.nvmlDeviceGetUUID, handle),
        "name": _text(nvml.nvmlDeviceGetName, handle),
        "memory_total": memory.total,
        "memory_free": memory.free,
    }


def _info(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> dict[str, Any]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    return {**_common(nvml, handle), "major": major.value, "minor": minor.value}


def _stats(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> dict[str, Any]:
    load = _Utilization()
    nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(load))
    return {
        **_common(nvml, handle),
        "utilization_compute": load.compute,
        "utilization_memory": load.memory,
    }


def _text(ask: Callable[..., object], handle: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(NAME_BYTES)
    ask(handle, buffer, ctypes.c_uint(NAME_BYTES))
    return buffer.value.decode(errors="replace")
