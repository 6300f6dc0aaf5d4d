"""The kernels on an NVIDIA GPU: the bit-plane GEMM and the weight-only GEMV, from CUDA sources.

`binary_group_sums` and `weight_only_gemv` take and give numpy arrays. The library is compiled by
nvcc on first use; it needs compute capability 8.0 or newer.

What has run where: without a GPU, the tests run all kernel and host code except the inline PTX and
intrinsics of `ptx.cuh` on an emulated machine, bit for bit against numpy, and nvcc compiles it all.
Those few lines, and every statement about speed, need a device.
"""

from typing import TYPE_CHECKING

from bitwright.lazy import lazy_exports

if TYPE_CHECKING:
    from . import bench, build, device, gemm, search, tiles
    from .build import build_library, content_hash
    from .device import Device, DeviceInfo, find_devices, no_device_reason
    from .matmul import binary_group_sums, weight_only_gemv
    from .planes import pack_nibbles, pack_planes, reference_sums, unpack_planes
    from .search import SearchResult, search_tile
    from .tiles import TILES, Problem, Tile

_HOME = {
    "Device": "device",
    "DeviceInfo": "device",
    "Problem": "tiles",
    "SearchResult": "search",
    "TILES": "tiles",
    "Tile": "tiles",
    "bench": "bench",
    "binary_group_sums": "matmul",
    "build": "build",
    "build_library": "build",
    "content_hash": "build",
    "device": "device",
    "find_devices": "device",
    "gemm": "gemm",
    "no_device_reason": "device",
    "pack_nibbles": "planes",
    "pack_planes": "planes",
    "reference_sums": "planes",
    "search": "search",
    "search_tile": "search",
    "tiles": "tiles",
    "unpack_planes": "planes",
    "weight_only_gemv": "matmul",
}

__all__ = [
    "TILES",
    "Device",
    "DeviceInfo",
    "Problem",
    "SearchResult",
    "Tile",
    "bench",
    "binary_group_sums",
    "build",
    "build_library",
    "content_hash",
    "device",
    "find_devices",
    "gemm",
    "no_device_reason",
    "pack_nibbles",
    "pack_planes",
    "reference_sums",
    "search",
    "search_tile",
    "tiles",
    "unpack_planes",
    "weight_only_gemv",
]

__getattr__ = lazy_exports(__name__, _HOME)
