"""Launch CUDA kernels on torch's current stream, by the driver, in torch's own context.

Nothing here waits for the device, and everything can be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from cellfuse.codegen.cuda import compile as compiling
from cellfuse.codegen.cuda.kernel import CudaKernel
from cellfuse.errors import BackendError

# Blocks of a cluster that every GPU with clusters has.
_PORTABLE_CLUSTER = 8
# Dynamic shared memory that needs no permission.
_FREE_SHARED = 48 * 1024


@lru_cache(maxsize=1)
def why_not() -> str:
    """Why no kernel can be launched here, whatever the device; empty if it can."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    try:
        from cuda.bindings import driver

        (error,) = driver.cuInit(0)
    except (ImportError, OSError, RuntimeError) as problem:
        return f"the CUDA driver cannot be loaded by cuda-bindings ({problem})"
    return f"the CUDA driver does not start: {error.name}" if error.value else compiling.why_not()


class Driver:
    """The launcher of one device.

    Args:
        device: number of the device.
        api: the module of the driver's functions; given by tests.
        arch: what to compile for; None: what the device is.
    """

    def __init__(self, device: int, api: Any = None, arch: str | None = None) -> None:
        if api is None:
            from cuda.bindings import driver

            api = driver
        if arch is None:
            arch = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        self.device, self.api, self.arch = device, api, arch
        self._context: Any = None
        self._loaded: dict[tuple[str, int], tuple[CudaKernel, Any, _Arguments]] = {}
        self._modules: dict[int, tuple[CudaKernel, Any]] = {}
        self._lock = threading.Lock()

    def launch(
        self,
        kernel: CudaKernel,
        entry: str,
        grid: tuple[int, int, int],
        arguments: Sequence[int | float],
        shared_bytes: int | None = None,
    ) -> None:
        """See `Launcher`. The device must be torch's current one."""
        api, size = self.api, kernel.shared_bytes if shared_bytes is None else shared_bytes
        with self._lock:
            _, function, given = self.function(kernel, entry, size)
            config = self._config(kernel, grid, size)
            given.fill(arguments)
            self._check(api.cuLaunchKernelEx(config, function, given.address, 0), f"launch of {entry}")

    def function(
        self, kernel: CudaKernel, entry: str, shared_bytes: int
    ) -> tuple[CudaKernel, Any, _Arguments]:
        """The loaded entry, allowed to take so much shared memory."""
        key = (entry, id(kernel))  # the tables hold the kernel, so that its id stays its own
        found = self._loaded.get(key)
        if found is None:
            code = "" if id(kernel) in self._modules else compiling.compile(kernel.text, self.arch).code
            with self._current(), self._let_off():
                function = self._load(kernel, code, entry, shared_bytes)
            found = self._loaded[key] = (kernel, function, _Arguments(kernel))
        return found

    def _load(self, kernel: CudaKernel, code: bytes | str, entry: str, shared_bytes: int) -> Any:
        api, name = self.api, self.api.CUfunction_attribute
        if id(kernel) not in self._modules:
            (module,) = self._check(api.cuModuleLoadData(code), "loading a kernel")
            self._modules[id(kernel)] = kernel, module
        module = self._modules[id(kernel)][1]
        # Where the driver loads lazily, it does so only now.
        (function,) = self._check(api.cuModuleGetFunction(module, entry.encode()), entry)
        if shared_bytes > _FREE_SHARED:
            most = name.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._check(api.cuFuncSetAttribute(function, most, shared_bytes), f"{shared_bytes} bytes")
        if kernel.cluster > _PORTABLE_CLUSTER:
            allowed = name.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
            self._check(api.cuFuncSetAttribute(function, allowed, 1), f"clusters of {kernel.cluster}")
        return function

    @contextmanager
    def _current(self) -> Iterator[None]:
        """With torch's context of the device, whatever this thread has now; a new thread has none."""
        api = self.api
        if self._context is None:
            (device,) = self._check(api.cuDeviceGet(self.device), "device")
            (self._context,) = self._check(api.cuDevicePrimaryCtxRetain(device), "context")
        self._check(api.cuCtxPushCurrent(self._context), "context")
        try:
            yield
        finally:
            self._check(api.cuCtxPopCurrent(), "context")

    @contextmanager
    def _let_off(self) -> Iterator[None]:
        """Without this, a load would end a capture that is going on in any thread."""
        api = self.api
        relaxed = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        (mode,) = self._check(api.cuThreadExchangeStreamCaptureMode(relaxed), "capture mode")
        try:
            yield
        finally:
            self._check(api.cuThreadExchangeStreamCaptureMode(mode), "capture mode")

    def _config(self, kernel: CudaKernel, grid: tuple[int, int, int], shared_bytes: int) -> Any:
        api = self.api
        config = api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = kernel.threads, 1, 1
        config.sharedMemBytes = shared_bytes
        config.hStream = self.stream()
        attributes = []
        if kernel.cluster > 1:
            attribute = api.CUlaunchAttribute()
            attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            dimension = attribute.value.clusterDim
            dimension.x, dimension.y, dimension.z = kernel.cluster, 1, 1
            attributes.append(attribute)
        if kernel.is_cooperative:
            attribute = api.CUlaunchAttribute()
            attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            attribute.value.cooperative = 1
            attributes.append(attribute)
        config.attrs, config.numAttrs = attributes, len(attributes)
        return config

    def stream(self) -> int:
        """torch's current stream on this device."""
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def fits(self, kernel: CudaKernel, entry: str, blocks: int) -> bool:
        """Whether so many blocks can run at the same time, as a cooperative launch or a cluster must."""
        api = self.api
        with self._lock, self._current():
            _, function, _ = self.function(kernel, entry, kernel.shared_bytes)
            if kernel.cluster > 1:
                config = self._config(kernel, (blocks, 1, 1), kernel.shared_bytes)
                result = api.cuOccupancyMaxActiveClusters(function, config)
                return not result[0].value and result[1] > 0
            (each,) = self._check(
                api.cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    function, kernel.threads, kernel.shared_bytes
                ),
                "occupancy",
            )
        count = torch.cuda.get_device_properties(self.device).multi_processor_count
        return bool(each * count >= blocks)

    def _check(self, result: tuple, what: str) -> tuple:
        if result[0].value:
            text = self.api.cuGetErrorString(result[0])[1]
            text = text.decode() if isinstance(text, bytes) else result[0].name
            raise BackendError(f"CUDA driver, {what}: {text}. backend='eager' runs without our kernels.")
        return tuple(result[1:])


# Each argument has eight bytes.
_FORMATS = {"pointer": "Q", "int64": "q", "int32": "i4x", "float32": "f4x"}


class _Arguments:
    """Memory of a kernel's arguments, as the driver reads them."""

    def __init__(self, kernel: CudaKernel) -> None:
        count = len(kernel.parameters)
        self._struct = struct.Struct("=" + "".join(_FORMATS[p.kind] for p in kernel.parameters))
        self._values = ctypes.create_string_buffer(max(8 * count, 1))
        start = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * max(count, 1))(*(start + 8 * k for k in range(count)))
        self.address = ctypes.addressof(self._pointers)

    def fill(self, arguments: Sequence[int | float]) -> None:
        """Write the values; the driver copies them at the launch."""
        self._struct.pack_into(self._values, 0, *arguments)


@lru_cache(maxsize=64)
def driver_of(device: int) -> Driver:
    """The launcher of a device, one for the process."""
    return Driver(device)
