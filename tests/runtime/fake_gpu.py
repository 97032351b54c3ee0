"""A GPU that is not there: tensors, streams and CUDA graphs of the host, the real launcher, and a watch.

Tensors made by `Gpu.to` have the host's memory and say that they are on a device; what torch computes of
them is so, too. The driver's launches run on the emulator. While a CUDA graph is captured everything that a
capture forbids raises a `Violation`; what is allowed is written down, and a replay runs it again on the same
memory, which is NaN before the first replay. Outside of captures two streams that touch the same memory,
neither waiting for the other, are a Violation. Only for one thread.
"""

import ctypes
import re
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from cellfuse.codegen.cuda import compile as compiling
from cellfuse.codegen.cuda.plan import H100
from cellfuse.runtime import cuda, cuda_step, library
from cellfuse.runtime.cuda_driver import Driver
from gpu.emulator.launcher import Emulator, compiled


class Violation(AssertionError):
    """What a GPU forbids, or what is a race on it."""


class OnDevice(torch.Tensor):
    """A tensor that says it is on the first device."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    place = torch.device("cuda", 0)
    device = property(lambda self: self.place)
    is_cuda, is_cpu = True, False

    def get_device(self):
        """The device's number."""
        return self.place.index


class OnSecond(OnDevice):
    """On the second."""

    place = torch.device("cuda", 1)


KINDS = {0: OnDevice, 1: OnSecond}
# Each waits for the device and gives its values, or the number of them, to the host.
READING = set(
    "tolist item cpu numpy __bool__ __int__ __float__ __index__ __contains__ __repr__ __format__ equal "
    "allclose nonzero argwhere masked_select unique unique_consecutive bincount repeat_interleave is_nonzero "
    "__array__ pin_memory".split()
)
# They put values of the host into memory of the device.
FROM_HOST = {"tensor", "as_tensor", "new_tensor", "from_numpy", "scalar_tensor"}


class Stream:
    """What one stream has seen of the others' work."""

    def __init__(self, gpu, device=None):
        self.gpu, self.device = gpu, gpu.device if device is None else device
        gpu.streams.append(self)
        self.cuda_stream = 1000 + len(gpu.streams)
        self.seen = {}

    def wait_stream(self, other):
        """What comes later here runs after what is there now."""
        for key, tick in other.seen.items():
            self.seen[key] = max(tick, self.seen.get(key, 0))


class Graph:
    """What a capture has written down."""

    def __init__(self, gpu):
        self.gpu, self.work, self.made, self.touched = gpu, [], [], []

    def replay(self):
        """Run it again on the current stream."""
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for found in self.touched:
                self.gpu._touch(found, self.gpu.current[found[2].index])
            for run in self.work:
                run()

    def poison(self):
        """Memory of a graph holds nothing before its first replay."""
        for value in self.made:
            value.fill_(
                float("nan") if value.is_floating_point() else -(2**30) if value.dtype.itemsize > 3 else 0
            )


class Recorder(TorchDispatchMode):
    """Writes down what torch computes during a capture."""

    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        writes = [a for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        is_view = any(r.alias_info is not None for r in func._schema.returns) and not writes
        if is_view:
            return result
        given = {_memory(v) for v in _tensors((args, kwargs))}
        outs = [] if writes else [v for v in _tensors(result) if _memory(v) not in given]
        self.graph.made += outs
        if "empty" in func.__name__ or not (writes or outs):
            return result

        def again():
            found = _tensors(func(*args, **kwargs))
            for old, new in zip(outs, found, strict=False):
                old.copy_(new)

        self.graph.work.append(again)
        return result


class Watch(TorchFunctionMode):
    """Knows which tensors are on a device, and what is done with them."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.gpu.call(func, args, dict(kwargs or {}))


class Api:
    """One device's driver: real structures, the emulator's launches, and what is forbidden.

    A capture forbids UNSAFE calls; with another device current, or its context, OF_CONTEXT ones go wrong.
    """

    UNSAFE = ("cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute")
    OF_CONTEXT = (
        *UNSAFE,
        "cuOccupancyMaxActiveBlocksPerMultiprocessor",
        "cuOccupancyMaxActiveClusters",
        "cuLaunchKernelEx",
    )

    def __init__(self, gpu, real, device):
        self.gpu, self.real, self.device, self.calls = gpu, real, device, []
        self.good = real.CUresult.CUDA_SUCCESS
        modes = real.CUstreamCaptureMode
        self.mode, self.relaxed = (
            modes.CU_STREAM_CAPTURE_MODE_GLOBAL,
            modes.CU_STREAM_CAPTURE_MODE_RELAXED,
        )

    def __getattr__(self, name):
        if not name.startswith("cu"):
            return getattr(self.real, name)

        def call(*given):
            self.calls.append(name)
            current = self.gpu.contexts[-1] if self.gpu.contexts else self.gpu.device
            if name in self.OF_CONTEXT and current != self.device:
                raise Violation(f"{name} for device {self.device} while device {current} is current")
            if name in self.UNSAFE and self.gpu.graph is not None and self.mode != self.relaxed:
                raise Violation(f"{name} while a capture is on, and this thread is not let off")
            return self.good, *getattr(self, f"_{name}", lambda *given: (None,))(*given)

        return call

    def _cuThreadExchangeStreamCaptureMode(self, mode):
        before, self.mode = self.mode, mode
        return (before,)

    def _cuDeviceGet(self, number):
        return (number,)

    def _cuDevicePrimaryCtxRetain(self, number):
        return (number,)

    def _cuCtxPushCurrent(self, context):
        self.gpu.contexts.append(context)
        return ()

    def _cuCtxPopCurrent(self):
        return (self.gpu.contexts.pop(),)

    def _cuModuleLoadData(self, code):
        return (code,)

    def _cuModuleGetFunction(self, module, entry):
        return ((module, entry.decode()),)

    def _cuOccupancyMaxActiveBlocksPerMultiprocessor(self, *given):
        return (1,)

    def _cuOccupancyMaxActiveClusters(self, *given):
        return (1,)

    def _cuLaunchKernelEx(self, config, function, pointers, extra):
        text, entry = function
        attributes = {a.id.name: a.value for a in (config.attrs if config.numAttrs else [])}
        dimension = attributes.get("CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION")
        cluster = 1 if dimension is None else dimension.clusterDim.x
        found = compiled(text, self.gpu.entries[text])
        count = getattr(found, f"count_{entry}")()
        places = (ctypes.c_void_p * count).from_address(pointers)
        values = [ctypes.create_string_buffer(ctypes.string_at(place, 8), 8) for place in places]
        given = (ctypes.c_void_p * count)(*map(ctypes.addressof, values))
        grid = config.gridDimX, config.gridDimY, config.gridDimZ
        threads, shared = config.blockDimX, config.sharedMemBytes

        def run():
            assert values
            Emulator().run(found, entry, given, grid, threads, cluster, shared)

        addresses = [int.from_bytes(value.raw, "little") for value in values]
        self.gpu.launched(entry, int(config.hStream), addresses, run)
        return ()


class WatchedDriver(Driver):
    """Tells the emulator the entries of each text."""

    def __init__(self, gpu, device, api):
        super().__init__(device, api, "sm_90")
        self.gpu = gpu

    def function(self, kernel, entry, shared_bytes):
        self.gpu.entries[kernel.text] = kernel.entries
        return super().function(kernel, entry, shared_bytes)


class Gpu:
    """Two devices, their streams and the capture that is on.

    Attributes:
        launches: (entry, number of the stream, device) of each launch, replays apart.
        captures: graphs that were made.
        api: of each device.
    """

    def __init__(self, real):
        self.device, self.graph, self.streams, self.captures = 0, None, [], []
        self.launches, self.entries, self.at, self.user = [], {}, {}, set()
        self.before, self.takes_uploads_for_users = set(), False
        self.contexts = []  # that were pushed
        self.default = {k: Stream(self, k) for k in KINDS}
        self.current = dict(self.default)
        self.api = {k: Api(self, real, k) for k in KINDS}
        self.drivers = {k: WatchedDriver(self, k, api) for k, api in self.api.items()}

    def to(self, value, index=0, *, is_user=True):
        """A tensor, or a module's parameters, on a device. The user's own may be read on every stream."""
        if isinstance(value, torch.nn.Module):
            for module in value.modules():
                for name, one in list(module._parameters.items()):
                    module._parameters[name] = torch.nn.Parameter(self.to(one.detach(), index))
            return value
        made = value.detach().clone().as_subclass(KINDS[index]).requires_grad_(value.requires_grad)
        self.know(made)
        if is_user:
            self.user.add(_memory(made))
        return made

    def know(self, value):
        """Keep the memory, so that its address stays its own."""
        storage = torch.Tensor.untyped_storage(value)
        if storage.nbytes():
            self.at.setdefault(storage.data_ptr(), [storage, {}, value.place])

    # what is done

    def forbid(self, what):
        """Raise if a capture is on."""
        if self.graph is not None:
            raise Violation(f"{what} while a capture is on")

    def call(self, func, args, kwargs):
        """Run a function of torch as a GPU would take it."""
        name, operands = func.__name__, _tensors((args, kwargs))
        ours = [value for value in operands if isinstance(value, OnDevice)]
        places = {value.place for value in ours}
        if name == "_has_compatible_shallow_copy_type":  # of Module.to, which moves from one to the other
            return False
        if len(places) > 1:
            raise Violation(f"{name} of tensors on {sorted(map(str, places))}")
        kind = KINDS[places.pop().index] if places else None
        if name in READING and ours:
            self.forbid(f"{name}, which waits for values of the device,")
            kind = None
        if name in FROM_HOST and ours:
            self.forbid(f"{name}, which copies from the host,")
        if name in ("__getitem__", "__setitem__") and ours:
            index = _tensors(args[1])
            if any(value.dtype in (torch.bool, torch.uint8) for value in index):
                self.forbid("an index of bools, which waits for their number,")
            if any(not isinstance(value, OnDevice) for value in index):
                self.forbid("an index on the host, which is copied from there,")
        elif name in ("copy_", "to", "type_as", "cuda"):
            args, kwargs, kind = self._moved(name, args, kwargs, kind)
        elif ours and name not in ("backward", "grad") and not name.startswith("_"):
            if any(value.dim() and not isinstance(value, OnDevice) for value in operands):
                raise Violation(f"{name} of tensors on the host and on a device")
        if name != "to" and kwargs.get("device") is not None:
            place = torch.device(kwargs["device"])
            if place.type == "cuda":
                if name in FROM_HOST:
                    self.forbid(f"{name} of the host's values")
                kind = KINDS[self.device if place.index is None else place.index]
                kwargs["device"] = "cpu"
            else:
                kind = None
        result = func(*args, **kwargs)
        made = _tensors(result)
        if kind is None or not made:
            return result
        with torch._C.DisableTorchFunction():
            if name == "_pack_padded_sequence":  # (data, lengths on the host)
                return self._marked(result[0], kind), result[1]
            result = tree_map(lambda v: self._marked(v, kind), result)
            if name == "to" and not ours and self.takes_uploads_for_users:
                self.user.update(map(_memory, _tensors(result)))
            for value in (*ours, *_tensors(result)):
                self.touch(value)
        return result

    def _moved(self, name, args, kwargs, kind):
        """The arguments of a copy without a device, and where its result is."""
        if name == "copy_":
            is_from, is_to = (isinstance(value, OnDevice) for value in (args[1], args[0]))
            kind = type(args[0]) if is_to else None
        else:
            given = (*args[1:], *kwargs.values())
            wanted = [v for v in given if isinstance(v, torch.device | torch.Tensor | str | int)]
            wanted = [v for v in wanted if not isinstance(v, bool)]
            if name == "type_as" or not wanted:
                return args, kwargs, kind
            place = wanted[0].device if isinstance(wanted[0], torch.Tensor) else torch.device(wanted[0])
            rest = (v for v in args[1:] if v is not wanted[0] and isinstance(v, torch.dtype))
            args = args[0], *rest  # not whether it may be late: nothing is here
            kwargs = {k: v for k, v in kwargs.items() if v is not wanted[0]}
            is_from, is_to = isinstance(args[0], OnDevice), place.type == "cuda"
            index = place.index if place.index is not None else self.device
            if is_from != is_to or (is_to and args[0].place.index != index):
                kwargs["copy"] = True
            kind = KINDS[index] if is_to else None
        if is_from and not is_to:
            self.forbid(f"{name}, a copy from the device to the host,")
        if is_to and not is_from:
            self.forbid(f"{name}, a copy from the host's memory,")
        return args, kwargs, kind

    def _marked(self, value, kind):
        if not isinstance(value, torch.Tensor) or isinstance(value, OnDevice):
            return value
        made = value.as_subclass(kind)
        self.know(made)
        return made

    def touch(self, value):
        """Its memory is read or written on the current stream."""
        found = self.at.get(_memory(value))
        if found is None or _memory(value) in self.user:
            return
        if self.graph is not None:
            self._of_graph(found)
            return
        self._touch(found, self.current[found[2].index])

    def _of_graph(self, found):
        """The graph that is captured has this memory for its own."""
        if found[0].data_ptr() in self.before:
            raise Violation("memory from before the capture, which may be given to others, in a graph")
        self.graph.touched.append(found)

    def _touch(self, found, stream):
        key = stream.cuda_stream
        for other, tick in found[1].items():
            if other != key and stream.seen.get(other, 0) < tick:
                raise Violation(f"memory of stream {other} is touched on stream {key}, which has not waited")
        stream.seen[key] = stream.seen.get(key, 0) + 1
        found[1][key] = stream.seen[key]

    def launched(self, entry, stream, addresses, run):
        """A kernel of ours."""
        self.launches.append((entry, stream, self.device))
        current = self.current[self.device]
        if stream != current.cuda_stream:
            raise Violation(f"{entry} on stream {stream}, torch's current one is {current.cuda_stream}")
        pairs = [(address, self._around(address)) for address in addresses]
        for address, memory in pairs:
            if memory is None and address > 1 << 32 and address < 1 << 63:
                raise Violation(f"{entry} with memory that torch has not given: {address:#x}")
        found = [memory for _, memory in pairs if memory is not None]
        if any(f[2].index != self.device for f in found):
            raise Violation(f"{entry} on device {self.device} with memory of another")
        if self.graph is not None:
            self.graph.work.append(run)
            for each in found:
                if each[0].data_ptr() not in self.user:
                    self._of_graph(each)
        else:
            for each in found:
                if each[0].data_ptr() not in self.user:
                    self._touch(each, current)
        run()

    def _around(self, address):
        for start, found in self.at.items():
            if start <= address < start + found[0].nbytes():
                return found
        return None

    # torch.cuda

    @contextmanager
    def stream(self, stream):
        """torch.cuda.stream."""
        before = self.current[stream.device]
        self.current[stream.device] = stream
        try:
            yield
        finally:
            self.current[stream.device] = before

    @contextmanager
    def on(self, device):
        """torch.cuda.device."""
        index = device.index if isinstance(device, torch.device) else device
        before, self.device = self.device, self.device if index is None or index < 0 else index
        try:
            yield
        finally:
            self.device = before

    @contextmanager
    def capture(self, graph, pool=None, stream=None, capture_error_mode="global", is_kept=True):
        """torch.cuda.graph. `is_kept`: whoever captures keeps the memory that the graph was given."""
        self.synchronize()
        with self.stream(stream or Stream(self)):
            self.graph, self.before = graph, set() if is_kept else {*self.at}
            try:
                with Recorder(graph):
                    yield
            finally:
                self.graph = None
        self.captures.append(graph)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            graph.poison()

    def synchronize(self, device=None):
        """Wait for everything."""
        self.forbid("synchronize")
        for stream in self.streams:
            for other in self.streams:
                stream.wait_stream(other)

    @contextmanager
    def watched(self, monkeypatch):
        """torch with these devices."""
        cuda_step.clear()
        names = SimpleNamespace(
            Stream=lambda device=None: Stream(self, None if device is None else torch.device(device).index),
            CUDAGraph=lambda: Graph(self),
            graph=self.capture,
            stream=self.stream,
            device=self.on,
            device_of=lambda value: self.on(value.get_device()),
            synchronize=self.synchronize,
            device_count=lambda: len(KINDS),
            current_device=lambda: self.device,
            current_stream=lambda device=None: self.current[_index(device, self.device)],
            is_current_stream_capturing=lambda: self.graph is not None,
            get_device_properties=lambda device: SimpleNamespace(multi_processor_count=132),
        )
        for name, made in vars(names).items():
            monkeypatch.setattr(torch.cuda, name, made)
        monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda value: False)
        monkeypatch.setattr(cuda, "_why_no_device", lambda index: "")
        plain = lambda value: torch.Tensor if isinstance(value, OnDevice) else type(value)  # noqa: E731
        monkeypatch.setattr(cuda, "type", plain, raising=False)  # ours stand for plain ones
        monkeypatch.setattr(cuda, "is_dispatch_mode_active", lambda: False)  # ours looks into everything
        monkeypatch.setattr(cuda_step, "launcher_of", lambda d: self.drivers[_index(d, self.device)])
        monkeypatch.setattr(cuda_step, "device_of", lambda device: H100)
        monkeypatch.setattr(compiling, "compile", lambda text, arch: SimpleNamespace(code=text))
        run_backward = library.run_backward

        def backward(calls, gradients, values, *given, **how):
            if how.get("is_operator"):
                return run_backward(calls, gradients, values, *given, **how)
            # The engine has taken the watch away, and its gradients do not say where they are. Its threads
            # have the device of the forward pass.
            kind = type(values[0][0])
            with torch._C.DisableTorchFunction():
                gradients = [[self._marked(g, kind) for g in each] for each in gradients]
            with Watch(self), self.on(kind.place):
                return run_backward(calls, gradients, values, *given, **how)

        monkeypatch.setattr(library, "run_backward", backward)
        with Watch(self):
            yield self
        cuda_step.clear()


def _index(device, current):
    if isinstance(device, torch.device | str):
        device = torch.device(device).index
    return current if device is None else device


def _tensors(tree):
    return [value for value in tree_flatten(tree)[0] if isinstance(value, torch.Tensor)]


def _memory(value):
    with torch._C.DisableTorchFunction():
        return torch.Tensor.untyped_storage(value).data_ptr()


def entries_of(launches):
    """The names of loops, without the number of a step."""
    return [re.sub(r"_\d+$", "", entry) for entry, *_ in launches]
