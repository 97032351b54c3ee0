"""The emulator of CUDA kernels: what it must run, and what it must refuse."""

import contextlib

import numpy as np
import pytest

from cellfuse.codegen.cuda.kernel import CudaKernel, Parameter
from gpu.emulator.launcher import WHY_NOT, Emulator, EmulatorError

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def run(body, *arrays, blocks=1, threads=64, cluster=1, shared=1024, seed=0, n=0, before=""):
    parameters = [Parameter(f"p{k}") for k in range(len(arrays))] + [Parameter("n", "int32")]
    types = {"f": "float*", "u": "u32*"}
    given = ", ".join(f"{types[a.dtype.kind]} p{k}" for k, a in enumerate(arrays))
    text = f'{before}\nextern "C" __global__ void kernel({given}, int n) {{ {body} }}'
    kernel = CudaKernel(text, ("kernel",), tuple(parameters), threads, shared, cluster)
    Emulator(seed).launch(kernel, "kernel", (blocks, 1, 1), [*(a.ctypes.data for a in arrays), n])


def floats(count):
    return np.full(count, np.nan, np.float32)


REVERSE = """
  float* s = (float*)shared_memory();
  s[threadIdx.x] = (float)(blockIdx.x * 100 + threadIdx.x);
  {barrier}
  p0[blockIdx.x * blockDim.x + threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
"""


def test_a_block_barrier_orders_shared_memory():
    out = floats(96)
    run(REVERSE.replace("{barrier}", "__syncthreads();"), out, blocks=2, threads=48)
    np.testing.assert_array_equal(out[:48], np.arange(48)[::-1])
    np.testing.assert_array_equal(out[48:], 100 + np.arange(48)[::-1])


def test_without_the_barrier_it_shows():
    out = floats(48)
    run(REVERSE.replace("{barrier}", ""), out, threads=48)
    assert np.isnan(out).any()


def test_the_same_seed_gives_the_same_order():
    body = "p0[threadIdx.x] = (float)add_release_order(p1);"
    before = (
        "static float add_release_order(u32* p) { float seen = (float)*p; add_release(p, 1); return seen; }"
    )
    orders = []
    for seed in (1, 1, 2):
        out, counter = floats(64), np.zeros(1, np.uint32)
        run(body, out, counter, seed=seed, before=before)
        orders.append(out)
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()


def test_an_array_without_elements_is_refused_as_nvrtc_does():
    with pytest.raises(EmulatorError, match=r"(?s)g\+\+ does not take.*zero-size array"):
        run("float none[0]; (void)none;", floats(1))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("if (threadIdx.x) __syncthreads();", "deadlock.*block barrier"),
        ("if (blockIdx.x) sync_cluster();", "deadlock.*cluster barrier"),
        ("Patience p; while (load_acquire(p1) == 0) p.again();", "deadlock.*nobody writes"),
        ("shared_memory()[1024] = 1;", "behind its 1024 bytes"),
        ("barrier_expect((u64*)shared_memory(), 4);", "before it was made"),
        ("store_peer((float*)shared_memory(), 2, 1.0f);", "rank outside"),
        ("store_peer((float*)p0, 0, 1.0f);", "outside shared memory"),
        ("if (threadIdx.x % 2) __syncwarp(); else __shfl_sync(~0u, 1.0f, 0);", "different functions"),
        ("__trap();", "__trap"),
        ("send4(shared_memory(), 1, 1.0f, (u64*)shared_memory() + 1);", "before the mbarrier"),
    ],
)
def test_what_a_gpu_forbids_is_an_error(body, says):
    with pytest.raises(EmulatorError, match=says):
        run(body, floats(8), np.zeros(1, np.uint32), blocks=2, cluster=2)


def test_a_grid_that_is_no_whole_number_of_clusters_is_refused():
    with pytest.raises(EmulatorError, match="whole number of clusters"):
        run("", floats(1), blocks=3, cluster=2)


RING = """
  u64* bar = (u64*)shared_memory();
  float* box = (float*)(bar + 2);
  const int rank = blockIdx.x;
  if (threadIdx.x == 0) { barrier_init(bar, 1); barrier_expect(bar, 64 * 4); }
  barrier_init_fence();
  sync_cluster();
  send4(box + threadIdx.x, (rank + 1) % 4, rank * 100.0f + threadIdx.x, bar);
  {wait}
  p0[rank * 64 + threadIdx.x] = box[threadIdx.x];
  barrier_wait(bar, 0);
"""


def test_messages_count_on_an_mbarrier():
    out = floats(256)
    run(RING.replace("{wait}", "barrier_wait(bar, 0);"), out, blocks=4, cluster=4)
    wanted = np.array([[(r - 1) % 4 * 100 + t for t in range(64)] for r in range(4)])
    np.testing.assert_array_equal(out.reshape(4, 64), wanted)


@pytest.mark.parametrize("wait", ["", "barrier_wait(bar, 1);"])
def test_a_message_is_late_for_who_does_not_wait(wait):
    out = floats(256)
    body = RING.replace("{wait}", wait).replace("barrier_wait(bar, 0);", "sync_cluster();")
    with contextlib.suppress(EmulatorError):  # where the block ended before a message came
        run(body, out, blocks=4, cluster=4)
    assert np.isnan(out).any()


def test_a_message_to_a_block_that_ended_is_an_error():
    body = """
      u64* bar = (u64*)shared_memory();
      if (threadIdx.x == 0) barrier_init(bar, 1);
      sync_cluster();
      if (blockIdx.x == 0 && threadIdx.x == 0) send4(bar + 2, 1, 1.0f, bar);
    """
    endings = []
    for seed in range(20):
        try:
            run(body, floats(1), blocks=2, cluster=2, seed=seed)
        except EmulatorError as error:
            endings.append(str(error))
    assert endings
    assert all("had ended" in ending for ending in endings)


def test_a_release_makes_stores_visible_and_nothing_else_does():
    body = """
      uint4* there = (uint4*)p0;
      if (blockIdx.x == 0) {
        store_shared_by_all(there + threadIdx.x, make_uint4(1, 1, 1, 1));
        __syncthreads();
        if (threadIdx.x == 0) {release};
      } else {
        Patience p;
        if (threadIdx.x == 0) while (load_acquire(p1) == 0) p.again();
        __syncthreads();
        p0[256 + threadIdx.x] = load_shared_by_all(there + threadIdx.x).w;
      }
    """
    found = {}
    for release in ("add_release(p1, 1)", "*p1 = 1"):
        out, flag = np.zeros(320, np.uint32), np.zeros(1, np.uint32)
        run(body.replace("{release}", release), out, flag, blocks=2)
        found[release] = out[256:].all()
    assert found == {"add_release(p1, 1)": True, "*p1 = 1": False}


def test_relaxed_stores_come_word_by_word():
    body = """
      uint4* there = (uint4*)p0;
      if (threadIdx.x == 0) store_relaxed(there, make_uint4(1, 1, 1, 1));
      else if (threadIdx.x == 1) {
        Patience p;
        uint4 v = load_relaxed(there);
        while (!(v.x | v.y | v.z | v.w)) { p.again(); v = load_relaxed(there); }
        p1[0] = v.x + v.y + v.z + v.w;
      }
    """
    out, seen = np.zeros(4, np.uint32), np.zeros(1, np.uint32)
    run(body, out, seen, threads=2)
    assert out.tolist() == [1, 1, 1, 1]
    assert 0 < seen[0] < 4


def _rounded(values, kind):
    bits = values.view(np.uint32)
    if kind == "tf32":
        return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)
    if kind == "bf16":
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return values.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize(("kind", "depth"), [("tf32", 8), ("bf16", 16), ("f16", 16)])
def test_mma_multiplies_by_the_fragments_of_the_ptx_manual(kind, depth):
    """Row and column of each register as PTX ISA 9.7.14.5 draws them, written again by hand."""
    pack = {"tf32": "round_tf32(x)", "bf16": "pack_bf16(x, y)", "f16": "pack_f16(x, y)"}[kind]
    step = 1 if kind == "tf32" else 2
    body = f"""
      const int lane = threadIdx.x, group = lane >> 2, inside = lane & 3;
      u32 a[4], b[2]; float c[4];
      auto word = [](float x, float y) {{ return {pack}; }};
      const float* A = p0; const float* B = p1; float* C = p2;
      for (int i = 0; i < 4; i++) {{
        const int row = (i == 0 || i == 2) ? group : group + 8;
        const int column = inside * {step} + (i < 2 ? 0 : {depth // 2});
        a[i] = word(A[row * {depth} + column], A[row * {depth} + column + {step} - 1]);
      }}
      for (int i = 0; i < 2; i++) {{
        const int row = inside * {step} + (i ? {depth // 2} : 0);
        b[i] = word(B[row * 8 + group], B[(row + {step} - 1) * 8 + group]);
      }}
      for (int i = 0; i < 4; i++) c[i] = C[(i < 2 ? group : group + 8) * 8 + inside * 2 + (i & 1)];
      mma_{kind}(c, a, b[0], b[1]);
      for (int i = 0; i < 4; i++) C[(i < 2 ? group : group + 8) * 8 + inside * 2 + (i & 1)] = c[i];
    """
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=s).astype(np.float32) for s in ((16, depth), (depth, 8)))
    out = rng.normal(size=(16, 8)).astype(np.float32)
    wanted = out + _rounded(left, kind).astype(np.float64) @ _rounded(right, kind)
    run(body, left, right, out, threads=32)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


def test_rounding_of_operands():
    values = np.array([1.0, -3.14159, 1e-8, 65504.0, 7e4, np.inf, 0.1, 2.0**-24], np.float32)
    forms = {"bf16": "__uint_as_float(to_bf16(p0[i]) << 16)", "tf32": "__uint_as_float(round_tf32(p0[i]))"}
    for kind, form in forms.items():
        out = floats(8)
        run(f"const int i = threadIdx.x; p1[i] = {form};", values, out, threads=8)
        np.testing.assert_array_equal(out, _rounded(values, kind))
    halves = np.zeros(8, np.uint32)
    run("p1[threadIdx.x] = to_f16(p0[threadIdx.x]);", values, halves, threads=8)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(halves.astype(np.uint16), values.astype(np.float16).view(np.uint16))
