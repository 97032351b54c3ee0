"""Number formats in a GPU's memory: what is stored, what is computed with, the text that converts."""

from __future__ import annotations

# By the name of torch's dtype: the type of every value in registers, and of large buffers in memory.
NUMBERS = {"float32": "float", "float64": "double", "bfloat16": "float", "float16": "float"}
STORED = {"float32": "float", "float64": "double", "bfloat16": "cf_bf16", "float16": "cf_f16"}

# Loads and stores of every format. The integer arithmetic rounds to nearest, ties to even, as the
# instructions do, and keeps NaN.
MEMORY = """
struct cf_bf16 { unsigned short bits; };
struct cf_f16 { unsigned short bits; };
__device__ __forceinline__ float cf_load(const float* p) { return *p; }
__device__ __forceinline__ double cf_load(const double* p) { return *p; }
__device__ __forceinline__ void cf_store(float* p, float v) { *p = v; }
__device__ __forceinline__ void cf_store(double* p, double v) { *p = v; }
__device__ __forceinline__ float cf_load(const cf_bf16* p) {
  return cf_float_of_bits((unsigned int)p->bits << 16);
}
__device__ __forceinline__ void cf_store(cf_bf16* p, float v) {
  union { float from; unsigned int to; } both;
  both.from = v;
  const unsigned int u = both.to;
  p->bits = v != v ? 0x7fc0 : (unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
#ifdef CELLFUSE_EMULATED
__device__ __forceinline__ float cf_load(const cf_f16* p) {
  _Float16 h;
  __builtin_memcpy(&h, &p->bits, 2);
  return (float)h;
}
__device__ __forceinline__ void cf_store(cf_f16* p, float v) {
  const _Float16 h = (_Float16)v;
  __builtin_memcpy(&p->bits, &h, 2);
}
#else
__device__ __forceinline__ float cf_load(const cf_f16* p) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(p->bits));
  return v;
}
__device__ __forceinline__ void cf_store(cf_f16* p, float v) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(v));
}
extern __shared__ __align__(16) unsigned char cf_shared[];
__device__ __forceinline__ unsigned char* shared_memory() { return cf_shared; }
#endif
"""
