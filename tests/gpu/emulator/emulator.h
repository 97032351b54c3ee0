// What a CUDA kernel's text may use, for g++: compiled in front of the text, which then runs on the CPU.
// Declares only; the machine itself is emulator.cpp. Light on purpose: it is read once per kernel.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define CELLFUSE_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __grid_constant__

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i64 = long long;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {
// The CUDA thread that runs now.
struct Here {
  dim3 thread, block, threads, blocks;
  int lane, rank;          // in its warp; of its CTA in its cluster
  unsigned char* shared;   // dynamic shared memory of its CTA
};
extern Here* here;

struct Sizes {
  dim3 blocks, threads;
  int cluster;
  long long shared_bytes;
  unsigned seed;
  char* error;             // 1024 characters, empty where all went well
};
void launch(const Sizes&, void (*body)(void**), void** arguments);
void fail(const char* what);
void pause();              // one turn of a loop that waits for memory
void block_barrier();
int block_count(int value);   // a block barrier that adds up values
void cluster_barrier();
void warp_barrier();
u32 exchange_lanes(u32 value, int from);
void barrier_init(u64* barrier, u32 count);
void barrier_expect(u64* barrier, u32 bytes);
bool barrier_passed(u64* barrier, u32 parity);
void send(void* to, int rank, const void* value, int bytes, u64* barrier);
void store_late(void* to, const void* value, int bytes);                 // seen at some time
void store_peer_late(void* to, int rank, const void* value, int bytes);  // seen after a cluster barrier
u32 add_release(u32* at, u32 value);
enum Format { tf32, bf16, f16 };
void mma(Format, float* c, const u32* a, u32 b0, u32 b1);

}  // namespace emulator

#define threadIdx (emulator::here->thread)
#define blockIdx (emulator::here->block)
#define blockDim (emulator::here->threads)
#define gridDim (emulator::here->blocks)

// ---- CUDA's own functions ----
inline void __syncthreads() { emulator::block_barrier(); }
inline int __syncthreads_or(int value) { return emulator::block_count(value != 0) != 0; }
inline void __syncwarp(unsigned = ~0u) { emulator::warp_barrier(); }
inline void __threadfence() {}
inline void __trap() { emulator::fail("the kernel called __trap()"); }
inline long long clock64() { return 0; }
inline u32 __float_as_uint(float x) { u32 u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(u32 u) { float x; memcpy(&x, &u, 4); return x; }
inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
inline float __int_as_float(int i) { return __uint_as_float((u32)i); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline void __stcg(T* p, T v) { *p = v; }
template <class T> inline void __stcs(T* p, T v) { *p = v; }
inline float __shfl_sync(unsigned, float x, int lane, int = 32) {
  return __uint_as_float(emulator::exchange_lanes(__float_as_uint(x), lane & 31));
}
inline float __shfl_xor_sync(unsigned, float x, int mask, int = 32) {
  return __uint_as_float(emulator::exchange_lanes(__float_as_uint(x), emulator::here->lane ^ mask));
}
inline float __shfl_down_sync(unsigned, float x, int by, int = 32) {
  const int from = emulator::here->lane + by;
  return __uint_as_float(emulator::exchange_lanes(__float_as_uint(x), from < 32 ? from : emulator::here->lane));
}

// ---- what device.cuh says in PTX ----
#define DEV inline
#define KERNEL extern "C"
inline unsigned char* shared_memory() { return emulator::here->shared; }
inline void sync_cluster() { emulator::cluster_barrier(); }
inline void barrier_init(u64* barrier, u32 count) { emulator::barrier_init(barrier, count); }
inline void barrier_init_fence() {}
inline void barrier_expect(u64* barrier, u32 bytes) { emulator::barrier_expect(barrier, bytes); }
struct Patience {
  void again() { emulator::pause(); }
};
inline void barrier_wait(u64* barrier, u32 parity) {
  while (!emulator::barrier_passed(barrier, parity)) emulator::pause();
}
inline void send16(void* to, int rank, uint4 v, u64* barrier) { emulator::send(to, rank, &v, 16, barrier); }
inline void send8(void* to, int rank, float x, float y, u64* barrier) {
  const float v[2] = {x, y};
  emulator::send(to, rank, v, 8, barrier);
}
inline void send4(void* to, int rank, float x, u64* barrier) { emulator::send(to, rank, &x, 4, barrier); }
template <class T> inline void store_peer(T* to, int rank, T value) {
  emulator::store_peer_late(to, rank, &value, sizeof(T));
}
inline void add_release(u32* at, u32 value) { emulator::add_release(at, value); }
inline u32 load_acquire(const u32* at) { return *(const volatile u32*)at; }
inline void store_relaxed(uint4* to, uint4 v) {
  // No order between its words either.
  const u32 words[4] = {v.x, v.y, v.z, v.w};
  for (int i = 0; i < 4; i++) emulator::store_late((u32*)to + i, words + i, 4);
}
inline uint4 load_relaxed(const uint4* from) { return *from; }
inline void store_shared_by_all(uint4* to, uint4 v) { emulator::store_late(to, &v, 16); }
inline uint4 load_shared_by_all(const uint4* from) { return *from; }
inline u32 to_bf16(float x) {
  const u32 u = __float_as_uint(x);
  return x != x ? 0x7fffu : (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
}
inline u32 to_f16(float x) {
  const _Float16 h = (_Float16)x;
  u16 u;
  memcpy(&u, &h, 2);
  return x != x ? 0x7fffu : u;
}
inline u32 pack_bf16(float low, float high) { return to_bf16(low) | to_bf16(high) << 16; }
inline u32 pack_f16(float low, float high) { return to_f16(low) | to_f16(high) << 16; }
inline u32 round_tf32(float x) {
  return x != x ? 0x7fffffffu : (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
}
inline void mma_tf32(float* c, const u32* a, u32 b0, u32 b1) { emulator::mma(emulator::tf32, c, a, b0, b1); }
inline void mma_bf16(float* c, const u32* a, u32 b0, u32 b1) { emulator::mma(emulator::bf16, c, a, b0, b1); }
inline void mma_f16(float* c, const u32* a, u32 b0, u32 b1) { emulator::mma(emulator::f16, c, a, b0, b1); }
