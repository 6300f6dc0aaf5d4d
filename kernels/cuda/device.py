"""CUDA devices and their memory, through ctypes.

Devices are found with the driver's library alone, so that asking costs no compiler and no torch;
memory and kernels come from our own library (`build.py`).
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from bitwright.quant import InputError

from .build import build_library

NO_DEVICE = "no CUDA device"
OLDEST = (8, 0)  #: compute capability; .and.popc needs it
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_ATTRIBUTES = {  # of cuDeviceGetAttribute (CUDA driver API, CUdevice_attribute)
    "sm_clock_khz": 13,
    "sm_count": 16,
    "memory_clock_khz": 36,
    "l2_bytes": 38,
    "major": 75,
    "minor": 76,
}
_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One CUDA device."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    sm_count: int
    l2_bytes: int
    sm_clock_mhz: float  #: highest, as the driver tells; 0 if it does not
    memory_clock_mhz: float  #: highest, likewise
    driver: str  #: its version, e.g. "580.65.06"; the CUDA version it serves if that is unknown
    pci_bus_id: str


def find_devices() -> list[DeviceInfo]:
    """All CUDA devices; empty if there are none, or no driver. Never raises."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return []
        return [_describe(cuda, index) for index in range(count.value)]
    except (OSError, AttributeError):  # no driver, or one without these functions
        return []


def no_device_reason() -> str | None:
    """Why the GPU kernels cannot run here, or None if they can. Never raises."""
    devices = find_devices()
    if not devices:
        return NO_DEVICE
    if all(d.compute_capability < OLDEST for d in devices):
        major, minor = devices[0].compute_capability
        return f"no CUDA device of compute capability 8.0 ({devices[0].name} has {major}.{minor})"
    return None


def clocks(info: DeviceInfo) -> dict[str, int]:
    """Clocks in MHz as nvidia-smi tells them now, by its names; empty if it cannot."""
    values = _query(info.pci_bus_id, _CLOCKS)
    return {n: int(v) for n, v in zip(_CLOCKS, values, strict=False) if v.isdigit()}


def _describe(cuda: ctypes.CDLL, index: int) -> DeviceInfo:
    handle, version = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    name, bus = ctypes.create_string_buffer(256), ctypes.create_string_buffer(64)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceGetPCIBusId(bus, len(bus), handle)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    values = {}
    for attribute, number in _ATTRIBUTES.items():
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, handle)
        values[attribute] = value.value
    pci = bus.value.decode(errors="replace")
    told = _query(pci, ("driver_version",))
    cuda_version = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return DeviceInfo(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=(values["major"], values["minor"]),
        sm_count=values["sm_count"],
        l2_bytes=values["l2_bytes"],
        sm_clock_mhz=values["sm_clock_khz"] / 1000,
        memory_clock_mhz=values["memory_clock_khz"] / 1000,
        driver=told[0] if told else cuda_version,
        pci_bus_id=pci,
    )


def _query(pci_bus_id: str, fields: tuple[str, ...]) -> list[str]:
    """What nvidia-smi says of one device; nothing if it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [f"--id={pci_bus_id}", f"--query-gpu={','.join(fields)}"]
    try:
        result = subprocess.run(
            [program, *query, "--format=csv,noheader,nounits"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if result.returncode != 0:
        return []
    return [value.strip() for value in result.stdout.strip().split(",")]


class CudaError(RuntimeError):
    """A call of the CUDA library failed, for no fault of the caller's arguments."""


@dataclass(eq=False)
class Device:
    """One device's memory and our kernels on it; a context manager that frees what it allocated.

    Pointers are plain integers. All work goes to the default stream, so calls happen in order.
    """

    info: DeviceInfo
    library: ctypes.CDLL
    _held: set[int] = field(default_factory=set)

    @classmethod
    def open(cls, index: int | None = None) -> Self:
        """Device `index`, or the first one that the kernels run on; compiles the library if needed.

        Raises:
            InputError: There is no such device, or the library cannot be compiled.
        """
        reason = no_device_reason()
        if reason is not None:
            raise InputError(
                f"{reason}; the CUDA kernels need one, use the CPU kernels of bitwright.kernels"
            )
        usable = [d for d in find_devices() if d.compute_capability >= OLDEST]
        found = [d for d in usable if index in (None, d.index)]
        if not found:
            there = ", ".join(str(d.index) for d in usable)
            raise InputError(f"index {index} is no usable CUDA device; there are: {there}")
        library = ctypes.CDLL(str(build_library()))
        for name in ("bitwright_error_name", "bitwright_error_text"):
            getattr(library, name).restype = ctypes.c_char_p
        device = cls(found[0], library)
        device.call("bitwright_use_device", found[0].index)
        return device

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pointer in list(self._held):
            try:
                self.free(pointer)
            except CudaError:
                if error is None:  # else the first error is the one to tell
                    raise

    def status(self, name: str, *args: Any) -> int:
        """Call an entry point with ctypes' arguments; its cudaError."""
        return int(getattr(self.library, name)(*args))

    def call(self, name: str, *args: Any) -> None:
        """Call an entry point.

        Raises:
            InputError: The device's memory is exhausted.
            CudaError: Any other failure.
        """
        self.check(name, self.status(name, *args))

    def check(self, name: str, code: int) -> None:
        """Raise what `call` raises, for the cudaError of an entry point."""
        if code == _OUT_OF_MEMORY:
            raise InputError(f"{self.info.name} has too little free memory; use smaller operands")
        if code != 0:
            raise CudaError(f"{name}: {self.error_text(code)}")

    def error_text(self, code: int) -> str:
        """Name and meaning of a cudaError."""
        name = self.library.bitwright_error_name(code).decode()
        return f"{name} ({self.library.bitwright_error_text(code).decode()})"

    def malloc(self, size_bytes: int) -> int:
        """Device memory; its contents are undefined."""
        pointer = ctypes.c_void_p()
        self.call("bitwright_malloc", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        assert pointer.value is not None
        self._held.add(pointer.value)
        return pointer.value

    def free(self, pointer: int) -> None:
        """Give memory of `malloc` or `upload` back."""
        self._held.remove(pointer)
        self.call("bitwright_free", ctypes.c_void_p(pointer))

    def upload(self, array: np.ndarray) -> int:
        """A copy of an array in device memory, in C order."""
        array = np.ascontiguousarray(array)
        pointer = self.malloc(array.nbytes)
        self.write(pointer, array)
        return pointer

    def write(self, pointer: int, array: np.ndarray) -> None:
        """Copy a C-ordered array to `pointer`."""
        size = ctypes.c_size_t(array.nbytes)
        source = ctypes.c_void_p(array.ctypes.data)
        self.call("bitwright_to_device", ctypes.c_void_p(pointer), source, size)

    def download(self, pointer: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An array from device memory, once all work before is done."""
        array: np.ndarray = np.empty(shape, dtype)
        target = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        self.call("bitwright_to_host", target, ctypes.c_void_p(pointer), size)
        return array

    def seconds(self, launch: Callable[[], None]) -> float:
        """Time on the device of what `launch` starts, between two events."""
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self.call("bitwright_event_create", ctypes.byref(event))
        try:
            self.call("bitwright_event_record", events[0], None)
            launch()
            self.call("bitwright_event_record", events[1], None)
            elapsed = ctypes.c_float()
            self.call("bitwright_event_elapsed", *events, ctypes.byref(elapsed))
        finally:
            for event in events:
                self.status("bitwright_event_destroy", event)
        return elapsed.value / 1000
