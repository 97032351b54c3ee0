// The product of a block of weights with an operand, the same weights at every time step.
//   sums[split][b][row] = sum over a part of k of weight(row, k) * operand[k][b]
// A thread has every SPLITS-th value of k, or a warp one of SPLITS stretches of k, PARTS in all.
// Every weight belongs to one thread, which holds WEIGHTS pieces of four: the first IN_REGISTERS in
// registers, the others in shared memory, where no two threads meet. Kernels add the splits in order.
DEV int thread() { return (int)threadIdx.x; }

struct Weights {
  float4 held[IN_REGISTERS > 0 ? IN_REGISTERS : 1];
  float4* others;
  DEV float4& at(int i) { return i < IN_REGISTERS ? held[i] : others[(i - IN_REGISTERS) * THREADS + thread()]; }
};

#if PRECISION == 0  // strict float32: fused multiply-adds, operand[k][b] in float32
DEV void put_operand(u32* operand, int k, int b, float value) { ((float*)operand)[k * TILE + b] = value; }
DEV float operand_value(float value) { return value; }

// A thread has four rows, or several times four, and every SPLITS-th k.
template <class Weight>
DEV float4 piece_of(int i, Weight weight) {
  const int column = thread() % ROW_THREADS, split = thread() / ROW_THREADS;
  const int row = (i / PARTS * ROW_THREADS + column) * 4, k = i % PARTS * SPLITS + split;
  float v[4];
#pragma unroll
  for (int j = 0; j < 4; j++) v[j] = split < SPLITS && row + j < ROWS && k < DEPTH ? weight(row + j, k) : 0.0f;
  return make_float4(v[0], v[1], v[2], v[3]);
}

DEV void multiply(Weights& weights, const u32* operand, float* sums) {
  const int column = thread() % ROW_THREADS, split = thread() / ROW_THREADS;
  if (split >= SPLITS) return;
  const float* first = (const float*)operand + split * TILE;
#pragma unroll
  for (int group = 0; group < WEIGHTS / PARTS; group++) {
    const int row = (group * ROW_THREADS + column) * 4;
    float total[4][TILE];
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int b = 0; b < TILE; b++) total[j][b] = 0.0f;
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
      const float4 w = weights.at(group * PARTS + i);
      const float* from = first + i * SPLITS * TILE;
      float value[TILE];
      if constexpr (TILE % 4 == 0) {
#pragma unroll
        for (int b = 0; b < TILE; b += 4) {
          const float4 four = *(const float4*)(from + b);
          value[b] = four.x, value[b + 1] = four.y, value[b + 2] = four.z, value[b + 3] = four.w;
        }
      } else {
#pragma unroll
        for (int b = 0; b < TILE; b++) value[b] = from[b];
      }
#pragma unroll
      for (int b = 0; b < TILE; b++) {
        total[0][b] += w.x * value[b];
        total[1][b] += w.y * value[b];
        total[2][b] += w.z * value[b];
        total[3][b] += w.w * value[b];
      }
    }
    if (row < ROWS) {
#pragma unroll
      for (int b = 0; b < TILE; b++)
        *(float4*)(sums + (split * TILE + b) * SUMS_ROW + row) =
            make_float4(total[0][b], total[1][b], total[2][b], total[3][b]);
    }
  }
}

#else  // tensor cores: weights are the left operand of mma, sequences its eight columns
constexpr int K_OF_MMA = PRECISION == 1 ? 8 : 16;
constexpr int VALUES_OF_WORD = PRECISION == 1 ? 1 : 2;
DEV u32 operand_word(float low, float high) {
  if constexpr (PRECISION == 1) return round_tf32(low);
  if constexpr (PRECISION == 2) return pack_bf16(low, high);
  return pack_f16(low, high);
}
// operand[b][k], OPERAND_ROW words a row: an odd multiple of 16, so that no two lanes meet in a bank
DEV void put_operand(u32* operand, int k, int b, float value) {
  if constexpr (PRECISION == 1) operand[b * OPERAND_ROW + k] = round_tf32(value);
  else ((u16*)(operand + b * OPERAND_ROW))[k] = (u16)(PRECISION == 2 ? to_bf16(value) : to_f16(value));
}
DEV void mma(float* c, const float4& a, u32 b0, u32 b1) {
  const u32 words[4] = {__float_as_uint(a.x), __float_as_uint(a.y), __float_as_uint(a.z), __float_as_uint(a.w)};
  if constexpr (PRECISION == 1) mma_tf32(c, words, b0, b1);
  else if constexpr (PRECISION == 2) mma_bf16(c, words, b0, b1);
  else mma_f16(c, words, b0, b1);
}

// The sum over k may run in any order: the four words that a lane needs for two tiles of k lie side by side.
DEV int word_of(int part, int half) {
  const int q = thread() % 32 % 4;
  if (part / 2 * 2 + 1 < PARTS) return part / 2 * 16 + q * 4 + part % 2 * 2 + half;
  return part * 8 + q * 2 + half;
}
// A warp has every ROW_WARPS-th tile of 16 rows.
template <class Weight>
DEV float4 piece_of(int i, Weight weight) {
  const int warp = thread() / 32, lane = thread() % 32, column = warp % ROW_WARPS, split = warp / ROW_WARPS;
  const int tile = i / PARTS * ROW_WARPS + column;
  float word[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const int row = tile * 16 + lane / 4 + (j & 1) * 8;
    const int k = (split * PARTS * 8 + word_of(i % PARTS, j >> 1)) * VALUES_OF_WORD;
    float value[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < VALUES_OF_WORD; n++)
      if (split < SPLITS && row < ROWS && k + n < DEPTH) value[n] = weight(row, k + n);
    word[j] = __uint_as_float(operand_word(value[0], value[1]));
  }
  return make_float4(word[0], word[1], word[2], word[3]);
}

constexpr int TILES_OF_WARP = WEIGHTS / PARTS;
struct Totals {
  float at[ROOM(TILES_OF_WARP)][TILE / 8][4];
};
DEV void multiply(Weights& weights, const u32* operand, Totals& totals) {
  const int warp = thread() / 32, lane = thread() % 32, split = warp / ROW_WARPS;
#pragma unroll
  for (int i = 0; i < TILES_OF_WARP; i++)
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
      for (int j = 0; j < 4; j++) totals.at[i][n][j] = 0.0f;
  if (split >= SPLITS) return;
  const u32* first = operand + lane / 4 * OPERAND_ROW + split * PARTS * 8 + lane % 4 * 4;
#pragma unroll
  for (int k = 0; k + 1 < PARTS; k += 2)
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
      const uint4 words = *(const uint4*)(first + n * 8 * OPERAND_ROW + k * 8);
#pragma unroll
      for (int i = 0; i < TILES_OF_WARP; i++) mma(totals.at[i][n], weights.at(i * PARTS + k), words.x, words.y);
#pragma unroll
      for (int i = 0; i < TILES_OF_WARP; i++) mma(totals.at[i][n], weights.at(i * PARTS + k + 1), words.z, words.w);
    }
  if constexpr (PARTS % 2 == 1) {
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
      const u32* from = first - lane % 4 * 2 + n * 8 * OPERAND_ROW + (PARTS - 1) * 8;
      const uint2 words = *(const uint2*)from;
#pragma unroll
      for (int i = 0; i < TILES_OF_WARP; i++) mma(totals.at[i][n], weights.at(i * PARTS + PARTS - 1), words.x, words.y);
    }
  }
}
DEV void multiply(Weights& weights, const u32* operand, float* sums) {
  const int warp = thread() / 32, lane = thread() % 32, column = warp % ROW_WARPS, split = warp / ROW_WARPS;
  Totals totals;
  multiply(weights, operand, totals);
  if (split >= SPLITS) return;
  float* first = sums + (split * TILE + lane % 4 * 2) * SUMS_ROW + column * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < TILES_OF_WARP; i++) {
    const int tile = i * ROW_WARPS + column;
    if (tile * 16 >= ROWS) continue;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
      for (int j = 0; j < 4; j++)
        first[i * ROW_WARPS * 16 + (j >> 1) * 8 + (n * 8 + (j & 1)) * SUMS_ROW] = totals.at[i][n][j];
  }
}
#endif

// Through the thread's own memory: with constant indices throughout, the addresses of all weights would
// be computed at once, in more registers than the loop over time needs.
template <class Weight>
DEV void load_weights(Weights& weights, Weight weight) {
  float4 staged[ROOM(WEIGHTS)];
#pragma unroll 1
  for (int i = 0; i < WEIGHTS; i++) staged[i] = piece_of(i, weight);
#pragma unroll
  for (int i = 0; i < WEIGHTS; i++) weights.at(i) = staged[i];
}

// The sum of the splits, always in the same order.
DEV float total_of(const float* sums, int row, int b) {
  float total = 0.0f;
#pragma unroll
  for (int split = 0; split < SPLITS; split++) total += sums[(split * TILE + b) * SUMS_ROW + row];
  return total;
}
