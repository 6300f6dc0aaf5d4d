"""Finding devices: without a driver, and with a stand-in for the driver's library."""

import ctypes
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from bitwright.kernels import cuda
from bitwright.quant import InputError


class FakeDriver:
    """The calls of libcuda.so.1 that we make, for one device."""

    def __init__(self, capability: tuple[int, int] = (9, 0), init: int = 0, count: int = 1) -> None:
        self.init, self.count = init, count
        numbers = {13: 1_980_000, 16: 132, 36: 2_619_000, 38: 50 << 20}
        self.attributes = {**numbers, 75: capability[0], 76: capability[1]}

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index + 100
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"NVIDIA Example"
        return 0

    def cuDeviceGetPCIBusId(self, name: Any, size: int, device: Any) -> int:
        name.value = b"0000:01:00.0"
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12040
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        assert device.value == 100
        value._obj.value = self.attributes[attribute]
        return 0


@pytest.fixture
def driver(monkeypatch):
    def install(fake: Any) -> None:
        def load(name: str) -> Any:
            assert name == "libcuda.so.1"
            if fake is None:
                raise OSError("libcuda.so.1: cannot open shared object file")
            return fake

        monkeypatch.setattr(cuda.device.ctypes, "CDLL", load)

    return install


@pytest.mark.parametrize(
    "fake",
    [None, object(), FakeDriver(init=100), FakeDriver(count=0)],
    ids=["library", "symbol", "driver", "count"],
)
def test_no_device(driver, fake) -> None:
    """No driver, a strange one, one that finds no device, and one that counts none."""
    driver(fake)
    assert cuda.find_devices() == []
    assert cuda.no_device_reason() == "no CUDA device"
    with pytest.raises(InputError, match="^no CUDA device; the CUDA kernels need one"):
        cuda.Device.open()


def test_a_device_is_described(driver, monkeypatch) -> None:
    driver(FakeDriver())
    monkeypatch.setenv("PATH", "")
    (info,) = cuda.find_devices()
    assert info == cuda.DeviceInfo(
        index=0,
        name="NVIDIA Example",
        compute_capability=(9, 0),
        sm_count=132,
        l2_bytes=50 << 20,
        sm_clock_mhz=1980.0,
        memory_clock_mhz=2619.0,
        driver="CUDA 12.4",
        pci_bus_id="0000:01:00.0",
    )
    assert cuda.no_device_reason() is None
    assert cuda.device.clocks(info) == {}


def test_nvidia_smi_tells_driver_and_clocks(driver, monkeypatch, tmp_path) -> None:
    driver(FakeDriver())
    script = tmp_path / "nvidia-smi"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --id=0000:01:00.0 ] || exit 1\n'
        'case "$2" in *driver*) echo 580.65.06;; *) echo "1755, 2619, 1980, [N/A]";; esac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (info,) = cuda.find_devices()
    assert info.driver == "580.65.06"
    told = {"clocks.sm": 1755, "clocks.mem": 2619, "clocks.max.sm": 1980}
    assert cuda.device.clocks(info) == told


def test_a_failing_nvidia_smi_is_no_failure(driver, monkeypatch, tmp_path) -> None:
    driver(FakeDriver())
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\nexit 9\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert cuda.find_devices()[0].driver == "CUDA 12.4"


def test_an_old_device_is_none(driver) -> None:
    driver(FakeDriver(capability=(7, 5)))
    reason = r"no CUDA device of compute capability 8.0 \(NVIDIA Example has 7.5\)"
    with pytest.raises(InputError, match=reason):
        cuda.Device.open()


def test_an_index_that_is_not_there(driver) -> None:
    driver(FakeDriver())
    with pytest.raises(InputError, match="index 3 is no usable CUDA device; there are: 0"):
        cuda.Device.open(3)


def test_asking_imports_no_torch() -> None:
    code = (
        "import sys; from bitwright.kernels import cuda; cuda.no_device_reason(); cuda.TILES; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_errors_of_the_library(emulated, monkeypatch) -> None:
    monkeypatch.setattr(emulated, "error_text", lambda code: f"cudaError {code}")
    with pytest.raises(cuda.device.CudaError, match="bitwright_x: cudaError 700"):
        emulated.check("bitwright_x", 700)
    with pytest.raises(InputError, match="emulated has too little free memory"):
        emulated.check("bitwright_malloc", 2)


def test_leaving_frees_what_is_held(emulated) -> None:
    with emulated as device:
        device.upload(np.ones(3))
        device.malloc(16)
    assert emulated.memory == {}


def test_public_functions_say_that_there_is_no_device(driver) -> None:
    driver(None)
    planes = cuda.pack_planes(np.ones((1, 8), int), 1)
    with pytest.raises(InputError, match="^no CUDA device; "):
        cuda.binary_group_sums(planes, planes)
    with pytest.raises(InputError, match="^no CUDA device; "):
        cuda.search_tile(cuda.Problem(1, 1, 128, 1, 1))
    x, codes = np.ones((1, 32), np.float16), np.zeros((1, 16), np.uint8)
    scales, table = np.ones((1, 1), np.float32), np.ones((1, 16), np.float32)
    with pytest.raises(InputError, match="^no CUDA device; "):
        cuda.weight_only_gemv(x, codes, scales, table, group_size=32)


def test_pointers_are_whole(emulated) -> None:
    """A 64-bit address survives the way through ctypes."""
    pointer = emulated.upload(np.arange(4, dtype=np.int32))
    assert ctypes.c_void_p(pointer).value == pointer
    assert emulated.download(pointer, (4,), np.int32).tolist() == [0, 1, 2, 3]


class FakeLibrary:
    """The runtime's entry points over host memory."""

    def __init__(self) -> None:
        self.buffers: dict[int, Any] = {}
        self.events: list[int] = []

    def bitwright_malloc(self, pointer: Any, size: ctypes.c_size_t) -> int:
        if size.value > 1000:
            return 2
        buffer = ctypes.create_string_buffer(size.value)
        pointer._obj.value = ctypes.addressof(buffer)
        self.buffers[pointer._obj.value] = buffer
        return 0

    def bitwright_free(self, pointer: ctypes.c_void_p) -> int:
        assert pointer.value is not None
        del self.buffers[pointer.value]
        return 0

    def bitwright_to_device(self, target: Any, source: Any, size: ctypes.c_size_t) -> int:
        ctypes.memmove(target, source, size.value)
        return 0

    bitwright_to_host = bitwright_to_device

    def bitwright_event_create(self, event: Any) -> int:
        event._obj.value = 7 + len(self.events)
        self.events.append(event._obj.value)
        return 0

    def bitwright_event_record(self, event: Any, stream: Any) -> int:
        assert event.value in self.events and stream is None
        return 0

    def bitwright_event_elapsed(self, begin: Any, end: Any, milliseconds: Any) -> int:
        assert (begin.value, end.value) == (7, 8)
        milliseconds._obj.value = 250.0
        return 0

    def bitwright_event_destroy(self, event: Any) -> int:
        self.events.remove(event.value)
        return 0

    def bitwright_error_name(self, code: int) -> bytes:
        return b"cudaErrorExample"

    def bitwright_error_text(self, code: int) -> bytes:
        return b"an example"


@pytest.fixture
def device(driver) -> cuda.Device:
    driver(FakeDriver())
    library: Any = FakeLibrary()
    return cuda.Device(cuda.find_devices()[0], library)


def test_memory_goes_there_and_back(device) -> None:
    array = np.arange(12, dtype=np.int16).reshape(3, 4).T  # not in C order
    with device:
        pointer = device.upload(array)
        np.testing.assert_array_equal(device.download(pointer, (4, 3), np.int16), array)
        device.free(pointer)
        device.malloc(8)
        with pytest.raises(InputError, match="NVIDIA Example has too little free memory"):
            device.malloc(2000)
    assert device.library.buffers == {}


def test_time_is_that_between_two_events(device) -> None:
    done: list[int] = []
    assert device.seconds(lambda: done.append(1)) == 0.25
    assert done == [1] and device.library.events == []


def test_events_are_destroyed_after_a_failure(device) -> None:
    def fail() -> None:
        device.check("bitwright_x", 700)

    with pytest.raises(
        cuda.device.CudaError, match=r"bitwright_x: cudaErrorExample \(an example\)"
    ):
        device.seconds(fail)
    assert device.library.events == []
