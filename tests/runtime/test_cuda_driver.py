"""What the launcher asks of the driver, with a driver that writes it down; no GPU."""

import ctypes
import struct
import weakref
from types import SimpleNamespace

import pytest

from cellfuse.codegen.cuda import compile as compiling
from cellfuse.codegen.cuda.kernel import CudaKernel, Parameter
from cellfuse.errors import BackendError
from cellfuse.runtime import cuda_driver
from cellfuse.runtime.cuda_driver import Driver

real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
GOOD, BAD = real.CUresult.CUDA_SUCCESS, real.CUresult.CUDA_ERROR_INVALID_VALUE


class Api:
    """The driver's structures, and functions that are only noted."""

    def __init__(self, **answers):
        self.calls, self.answers = [], answers

    def __getattr__(self, name):
        found = getattr(real, name)
        if not name.startswith("cu"):
            return found
        if name == "cuGetErrorString":
            return lambda error: (GOOD, b"invalid argument")

        def call(*arguments):
            if name == "cuLaunchKernelEx":
                arguments = self.read(*arguments)
            self.calls.append((name, *arguments))
            return self.answers.get(name, (GOOD, f"made by {name}"))

        return call

    def read(self, config, function, pointers, extra):
        """What the driver would find, while it is there."""
        assert extra == 0
        places = (ctypes.c_void_p * 4).from_address(pointers)
        sizes = (8, 8, 4, 4)
        values = [ctypes.string_at(place, size) for place, size in zip(places, sizes, strict=True)]
        values = struct.unpack("=Qqif", b"".join(values))
        grid = config.gridDimX, config.gridDimY, config.gridDimZ
        block = config.blockDimX, config.blockDimY, config.blockDimZ
        attributes = [
            (a.id.name, a.value.clusterDim.x if "CLUSTER" in a.id.name else a.value.cooperative)
            for a in (config.attrs if config.numAttrs else [])
        ]
        return function, grid, block, config.sharedMemBytes, int(config.hStream), attributes, values


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(compiling, "compile", lambda text, arch: SimpleNamespace(code=f"{arch} {text}"))
    monkeypatch.setattr(Driver, "stream", lambda self: 99)
    return lambda **answers: Driver(0, Api(**answers), "sm_90")


PARAMETERS = (Parameter("a"), Parameter("b", "int64"), Parameter("c", "int32"), Parameter("d", "float32"))
ARGUMENTS = (2**63 + 1, -5, -7, 0.5)


def test_arguments_grid_and_stream(make):
    driver = make()
    kernel = CudaKernel("text", ("f",), PARAMETERS, 64, 1000)
    for _ in range(2):
        driver.launch(kernel, "f", (7, 2, 1), ARGUMENTS)
    load, *_ = [call for call in driver.api.calls if call[0] == "cuModuleLoadData"]
    assert load == ("cuModuleLoadData", "sm_90 text")
    names = [call[0] for call in driver.api.calls]
    assert names.count("cuModuleLoadData") == 1
    assert "cuFuncSetAttribute" not in names
    launched = driver.api.calls[-1]
    assert launched[1:6] == ("made by cuModuleGetFunction", (7, 2, 1), (64, 1, 1), 1000, 99)
    assert launched[6:] == ([], ARGUMENTS)


def test_clusters_and_much_shared_memory(make):
    driver = make()
    driver.launch(CudaKernel("text", ("f",), PARAMETERS, 64, 200_000, cluster=16), "f", (32, 1, 1), ARGUMENTS)
    set_ = [call[2:] for call in driver.api.calls if call[0] == "cuFuncSetAttribute"]
    name = real.CUfunction_attribute
    assert set_ == [
        (name.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 200_000),
        (name.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
    ]
    assert driver.api.calls[-1][6] == [("CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION", 16)]


def test_cooperative_launch(make):
    driver = make()
    kernel = CudaKernel("text", ("f",), PARAMETERS, 64, is_cooperative=True)
    driver.launch(kernel, "f", (3, 1, 1), ARGUMENTS, 128)
    assert driver.api.calls[-1][4:7] == (128, 99, [("CU_LAUNCH_ATTRIBUTE_COOPERATIVE", 1)])


def test_loading_does_not_end_a_capture(make):
    driver = make()
    driver.launch(CudaKernel("text", ("f",), PARAMETERS, 32), "f", (1, 1, 1), ARGUMENTS)
    names = [call[0] for call in driver.api.calls]
    exchange = "cuThreadExchangeStreamCaptureMode"
    first = names.index(exchange)
    assert names[first : first + 4] == [exchange, "cuModuleLoadData", "cuModuleGetFunction", exchange]
    relaxed = real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    assert driver.api.calls[first][1] == relaxed
    assert driver.api.calls[first + 3][1] == f"made by {exchange}"


@pytest.mark.parametrize("cluster", [1, 4])
def test_loading_and_asking_for_room_are_in_the_context_of_the_device(make, cluster):
    """A thread may have another device's, or none yet."""
    room = {"cuOccupancyMaxActiveClusters": (GOOD, 1), "cuOccupancyMaxActiveBlocksPerMultiprocessor": (BAD,)}
    driver = make(**room, cuDeviceGet=(GOOD, "device"), cuDevicePrimaryCtxRetain=(GOOD, "context"))
    kernel = CudaKernel("text", ("f",), PARAMETERS, 32, cluster=cluster)
    for _ in range(2):
        if cluster == 1:
            with pytest.raises(BackendError, match="occupancy"):
                driver.fits(kernel, "f", 4)
        else:
            assert driver.fits(kernel, "f", 4)
    driver.launch(CudaKernel("another", ("f",), PARAMETERS, 32), "f", (1, 1, 1), ARGUMENTS)
    depth, inside = 0, {}
    for name, *given in driver.api.calls:
        depth += (name == "cuCtxPushCurrent") - (name == "cuCtxPopCurrent")
        inside.setdefault(name, []).append(depth)
        assert name != "cuCtxPushCurrent" or given == ["context"]
    assert depth == 0  # after an error, too
    asked = [name for name in inside if name.startswith(("cuModule", "cuFunc", "cuOccupancy"))]
    assert len(asked) == 3
    assert all(min(inside[name]) > 0 for name in asked)
    assert len(inside["cuDevicePrimaryCtxRetain"]) == 1


def test_a_kernel_whose_loading_fails_does_not_lend_its_number(make):
    """The table is by id: another kernel may get the id of one that is gone."""
    driver = make(cuModuleGetFunction=(BAD,))
    kernel = CudaKernel("text", ("f",), PARAMETERS, 32)
    with pytest.raises(BackendError):
        driver.launch(kernel, "f", (1, 1, 1), ARGUMENTS)
    gone = weakref.ref(kernel)
    del kernel
    assert gone() is not None


def test_an_error_of_the_driver_is_said(make):
    driver = make(cuLaunchKernelEx=(BAD,))
    with pytest.raises(BackendError, match="launch of f: invalid argument"):
        driver.launch(CudaKernel("text", ("f",), PARAMETERS, 32), "f", (1, 1, 1), ARGUMENTS)


@pytest.mark.parametrize("error", [RuntimeError("Failed to dlopen libcuda.so.1"), ImportError("no module")])
def test_a_missing_driver_is_a_reason(monkeypatch, error):
    def init(flags):
        raise error

    monkeypatch.setattr(cuda_driver.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(real, "cuInit", init)
    cuda_driver.why_not.cache_clear()
    try:
        assert str(error) in cuda_driver.why_not()
    finally:
        cuda_driver.why_not.cache_clear()
