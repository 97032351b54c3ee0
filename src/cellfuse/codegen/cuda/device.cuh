// What the kernels of a whole loop need beyond CUDA C++, as inline PTX; nothing here knows a cell.
// An emulator that runs the text on a CPU says all this itself and defines CELLFUSE_EMULATED.
#ifndef CELLFUSE_EMULATED
#define DEV __device__ __forceinline__
#define KERNEL extern "C" __global__
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

DEV unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}
DEV u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// A loop that waits for memory: traps after about two seconds, so that an error is no hang.
struct Patience {
  u32 turns = 0;
  i64 start = 0;
  DEV void again() {
    if ((++turns & 1023u) == 0) {
      const i64 now = clock64();
      if (turns == 1024u) start = now;
      else if (now - start > 4000000000ll) __trap();
    }
  }
};

// ---- clusters ----
DEV void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEV u32 in_peer(u32 address, int rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
DEV void store_peer(float* to, int rank, float v) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(in_peer(shared_address(to), rank)), "f"(v) : "memory");
}
DEV void store_peer(uint4* to, int rank, uint4 v) {
  asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(in_peer(shared_address(to), rank)),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// ---- messages: st.async delivers data and counts its bytes on the receiver's mbarrier. No fence. ----
DEV void barrier_init(u64* barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
DEV void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void barrier_expect(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
DEV void barrier_wait(u64* barrier, u32 parity) {
  Patience patience;
  while (true) {
    u32 passed;
    asm volatile(
        "{\n\t.reg .pred p;\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(passed)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    if (passed) break;
    patience.again();
  }
}
DEV void send16(void* to, int rank, uint4 v, u64* barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   in_peer(shared_address(to), rank)),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(in_peer(shared_address(barrier), rank))
               : "memory");
}
DEV void send8(void* to, int rank, float x, float y, u64* barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
                   in_peer(shared_address(to), rank)),
               "r"(__float_as_uint(x)), "r"(__float_as_uint(y)), "r"(in_peer(shared_address(barrier), rank))
               : "memory");
}

// ---- the whole grid ----
DEV void add_release(u32* at, u32 value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
DEV u32 load_acquire(const u32* at) {
  u32 value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
DEV void store_relaxed(uint4* to, uint4 v) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
DEV uint4 load_relaxed(const uint4* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
// Past the first-level cache, which other processors' stores do not reach; ordered by a release.
DEV void store_shared_by_all(uint4* to, uint4 v) { __stcg(to, v); }
DEV uint4 load_shared_by_all(const uint4* from) { return __ldcg(from); }

// ---- tensor cores ----
DEV u32 pack_bf16(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
DEV u32 pack_f16(float low, float high) {
  u32 both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
DEV u32 to_bf16(float x) { return pack_bf16(x, 0.0f) & 0xffffu; }
DEV u32 to_f16(float x) { return pack_f16(x, 0.0f) & 0xffffu; }
DEV u32 round_tf32(float x) {
  u32 word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
  return word;
}
#define CELLFUSE_MMA(name, shape, type)                                                                        \
  DEV void name(float* c, const u32* a, u32 b0, u32 b1) {                                                      \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                                       \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                        \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                              \
  }
CELLFUSE_MMA(mma_tf32, "m16n8k8", "tf32")
CELLFUSE_MMA(mma_bf16, "m16n8k16", "bf16")
CELLFUSE_MMA(mma_f16, "m16n8k16", "f16")
#endif
