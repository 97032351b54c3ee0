// The loop over time, forward or backward. CTA `rank` of a group has units rank * UNITS ... of its head.
// Rows of the arrays over time are [step][sequence][direction]; see `persistent.py` for every array.

// One unit of one sequence, which one thread works on at all steps: in registers from step to step.
struct Item {
  int u, b;        // in the slice, in the tile
  bool is_mine;    // false: this thread has nothing to do here
  bool is_real;    // false: padding up to a whole tile
  int unit;        // in a row of H values
  int length;      // steps of its sequence
  i64 sequence;    // row of its sequence at step 0
  i64 start;       // place in [direction][sequence][H]
};

struct Group {
  int rank, direction, head, first;
  bool is_reversed;

  DEV Group(const Arguments& a) {
    rank = blockIdx.x % CTAS;
    const int group = blockIdx.x / CTAS, tiles = gridDim.x / (CTAS * HEADS * DIRECTIONS);
    first = a.first + group % tiles * TILE;
    head = group / tiles % HEADS;
    direction = group / tiles / HEADS;
    is_reversed = a.reversed >> direction & 1;
  }
  DEV Item item(const Arguments& a, int number) const {
    Item i;
    const int index = thread() + number * THREADS;
    i.u = index % UNITS;
    i.b = index / UNITS;
    i.is_mine = index < UNITS * TILE;
    const int of_head = rank * UNITS + i.u;
    i.is_real = i.is_mine && of_head < HEAD_UNITS && first + i.b < a.batch;
    i.unit = head * HEAD_UNITS + of_head;
    i.length = i.is_real && a.lengths ? a.lengths[first + i.b] : a.steps;
    i.sequence = (i64)(first + i.b) * DIRECTIONS + direction;
    i.start = ((i64)direction * a.batch + first + i.b) * H + i.unit;
    return i;
  }
  // The n-th step of the forward loop, as a time step.
  DEV int time(const Arguments& a, int n) const { return is_reversed ? a.steps - 1 - n : n; }
  DEV i64 row(const Arguments& a, const Item& i, int t) const { return (i64)t * a.batch * DIRECTIONS + i.sequence; }
  DEV float weight(const Arguments& a, int matrix, int to, int from) const {
    if (to >= HEAD_UNITS || from >= HEAD_UNITS) return 0.0f;
    return a.weights[((((i64)direction * MATRICES + matrix) * HEADS + head) * HEAD_UNITS + to) * HEAD_UNITS + from];
  }
  DEV i64 state_size(const Arguments& a) const { return (i64)DIRECTIONS * a.batch * H; }
};

struct Shared {
  u32* operands;
  float* sums;
  float4* weights;
  u64* arrived;
  float* inbox;
  DEV Shared(unsigned char* memory)
      : operands((u32*)memory), sums((float*)(memory + AT_SUMS)), weights((float4*)(memory + AT_WEIGHTS)),
        arrived((u64*)(memory + AT_ARRIVED)), inbox((float*)(memory + AT_INBOX)) {}
};

DEV Exchange exchange_of(const Arguments& a, const Shared& shared, const Group& group) {
  const i64 number = blockIdx.x / CTAS, operands = EXCHANGE == COUNTER ? 2 : a.steps;
  uint4* outside = (uint4*)a.exchange + number * operands * CTAS * SLICE_CHUNKS;
  return Exchange{shared.operands, shared.arrived, outside, a.counters + number * 32, group.rank};
}

DEV void load_fixed(const Arguments& a, const Group& group, const Item& i, float* parameters) {
#pragma unroll
  for (int q = 0; q < PARAMETERS; q++)
    parameters[q] = i.is_real ? a.parameters[((i64)group.direction * PARAMETERS + q) * H + i.unit] : 0.0f;
}

#if !IS_BACKWARD
DEV void run(const Arguments& a) {
  const Group group(a);
  const Shared shared(shared_memory());
  Exchange exchange = exchange_of(a, shared, group);
  const float* constants = a.constants + group.direction * CONSTANTS;

  Weights weights;
  weights.others = shared.weights;
  if constexpr (MATRICES > 0) {
    load_weights(weights, [&](int row, int k) {
      return group.weight(a, row / UNITS, group.rank * UNITS + row % UNITS, k);
    });
    for (int i = thread(); i < BUFFERS * OPERAND_WORDS; i += THREADS) shared.operands[i] = 0;
    __syncthreads();
    for (int i = thread(); i < CTAS * UNITS * TILE; i += THREADS) {
      const int k = i % (CTAS * UNITS), b = i / (CTAS * UNITS);
      if (k < HEAD_UNITS && group.first + b < a.batch) {
        const i64 at = ((i64)group.direction * a.batch + group.first + b) * H + group.head * HEAD_UNITS + k;
        put_operand(exchange.operand(0), k, b, a.initial[STATE * group.state_size(a) + at]);
      }
    }
  }
  Item items[ITEMS];
  float state[ITEMS][STATES], x[ITEMS][ROOM(PRODUCTS)], parameters[ITEMS][ROOM(PARAMETERS)];
#pragma unroll
  for (int j = 0; j < ITEMS; j++) {
    const Item& i = items[j] = group.item(a, j);
    load_fixed(a, group, i, parameters[j]);
#pragma unroll
    for (int q = 0; q < STATES; q++) state[j][q] = i.is_real ? a.initial[q * group.state_size(a) + i.start] : 0.0f;
#pragma unroll
    for (int q = 0; q < PRODUCTS; q++)
      x[j][q] = i.is_real ? a.products[(group.row(a, i, group.time(a, 0)) * PRODUCTS + q) * H + i.unit] : 0.0f;
  }
  if constexpr (MATRICES > 0) exchange.begin();

  for (int n = 0; n < a.steps; n++) {
    const int t = group.time(a, n);
    if constexpr (MATRICES > 0) {
      if (n > 0) exchange.receive(n);
      multiply(weights, exchange.operand(n), shared.sums);
      __syncthreads();
    }
    float out[ITEMS], kept[ITEMS][ROOM(KEPT)];
#pragma unroll
    for (int j = 0; j < ITEMS; j++) {
      const Item& i = items[j];
      if (!i.is_mine) continue;
      float product[ROOM(MATRICES)], next[STATES];
#pragma unroll
      for (int g = 0; g < MATRICES; g++) product[g] = total_of(shared.sums, g * UNITS + i.u, i.b);
      cell_forward(state[j], x[j], product, parameters[j], constants, next, &out[j], kept[j]);
      const bool is_live = i.is_real && t < i.length;
#pragma unroll
      for (int q = 0; q < STATES; q++) state[j][q] = is_live ? next[q] : state[j][q];
      out[j] = is_live ? out[j] : 0.0f;
      if constexpr (MATRICES > 0)
        put_operand(exchange.operand(n + 1), group.rank * UNITS + i.u, i.b, i.is_real ? state[j][STATE] : 0.0f);
    }
    if constexpr (MATRICES > 0) {
      if (n + 1 < a.steps) exchange.send(n + 1);
    }
    // What nobody waits for: results to memory, the input products of the next step from it.
#pragma unroll
    for (int j = 0; j < ITEMS; j++) {
      const Item& i = items[j];
      if (!i.is_real) continue;
      store_step(a, group.row(a, i, t), i.unit, state[j], out[j], kept[j]);
      if (n + 1 < a.steps) {
        const i64 row = group.row(a, i, group.time(a, n + 1));
#pragma unroll
        for (int q = 0; q < PRODUCTS; q++) x[j][q] = a.products[(row * PRODUCTS + q) * H + i.unit];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < ITEMS; j++)
#pragma unroll
    for (int q = 0; q < STATES; q++)
      if (items[j].is_real) a.final[q * group.state_size(a) + items[j].start] = state[j][q];
  if constexpr (CLUSTER > 1) sync_cluster();
}

#else
// Backward, two ways. Where CTAs are a cluster, each multiplies its own gradients by the transpose of its
// weights and sends the owners of the units the partial sums (SCATTERS): fewer bytes. Else each collects
// the gradients of all CTAs as an operand and multiplies them by the columns that belong to its units.
// The n-th step of the forward loop is step T - 1 - n here.

// Partial sums at their owner: [2][CTAS][UNITS * TILE], as the sender's threads hold them.
DEV float* inbox_at(float* inbox, int number, int from, int u, int b) {
  float* of_rank = inbox + ((number & 1) * CTAS + from) * INBOX_WORDS;
  return of_rank + (IS_DIRECT ? u * (TILE + 2) + b : b * UNITS + u);
}

DEV void send_partial_sums(Weights& weights, const u32* operand, const Shared& shared, int rank, int number) {
  u64* barrier = shared.arrived + (number & 1);
  if constexpr (EXCHANGE == MESSAGES) {
    if (thread() == 0) barrier_expect(barrier, CTAS * UNITS * TILE * 4);
  }
#if PRECISION != 0
  if constexpr (IS_DIRECT) {  // straight from the accumulators, two sequences at a time
    const int warp = thread() / 32, lane = thread() % 32, column = warp % ROW_WARPS;
    Totals totals;
    multiply(weights, operand, totals);
    if (warp >= ROW_WARPS) return;
#pragma unroll
    for (int i = 0; i < TILES_OF_WARP; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = (i * ROW_WARPS + column) * 16 + half * 8 + lane / 4, owner = row / UNITS;
        if (row >= ROWS) continue;
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
          float* to = inbox_at(shared.inbox, number, rank, row % UNITS, n * 8 + lane % 4 * 2);
          const float x = totals.at[i][n][half * 2], y = totals.at[i][n][half * 2 + 1];
          if constexpr (EXCHANGE == MESSAGES) {
            send8(to, owner, x, y, barrier);
          } else {
            store_peer(to, owner, x);
            store_peer(to + 1, owner, y);
          }
        }
      }
    return;
  }
#endif
  multiply(weights, operand, shared.sums);
  __syncthreads();
  constexpr int COUNT = CTAS * UNITS / 4 * TILE;
#pragma unroll
  for (int i = 0; i < (COUNT + THREADS - 1) / THREADS; i++) {
    const int index = i * THREADS + thread();
    if (COUNT % THREADS == 0 || index < COUNT) {
      const int row = index % (CTAS * UNITS / 4) * 4, b = index / (CTAS * UNITS / 4);
      float total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int split = 0; split < SPLITS; split++) {
        const float4 part = *(const float4*)(shared.sums + (split * TILE + b) * SUMS_ROW + row);
        total[0] += part.x, total[1] += part.y, total[2] += part.z, total[3] += part.w;
      }
      uint4 words = make_uint4(__float_as_uint(total[0]), __float_as_uint(total[1]), __float_as_uint(total[2]),
                               __float_as_uint(total[3]));
      uint4* to = (uint4*)inbox_at(shared.inbox, number, rank, row % UNITS, b);
      if constexpr (EXCHANGE == MESSAGES) send16(to, row / UNITS, words, barrier);
      else store_peer(to, row / UNITS, words);
    }
  }
}

// The gradient that comes back through the matrices, of what was sent under this number.
DEV float recurrent_gradient(const Shared& shared, const Item& i, int number) {
  if constexpr (!SCATTERS) return total_of(shared.sums, i.u, i.b);
  float total = 0.0f;
#pragma unroll
  for (int from = 0; from < CTAS; from++) total += *inbox_at(shared.inbox, number, from, i.u, i.b);
  return total;
}
DEV void receive_partial_sums(const Shared& shared, int number) {
  if constexpr (EXCHANGE == MESSAGES) barrier_wait(shared.arrived + (number & 1), (number - 1) >> 1 & 1);
  else sync_cluster();
}

DEV void run(const Arguments& a) {
  const Group group(a);
  const Shared shared(shared_memory());
  Exchange exchange = exchange_of(a, shared, group);
  const float* constants = a.constants + group.direction * CONSTANTS;

  Weights weights;
  weights.others = shared.weights;
  if constexpr (MATRICES > 0) {
    load_weights(weights, [&](int row, int k) {
      const int of_rank = SCATTERS ? group.rank : k / (MATRICES * UNITS), rest = k % (MATRICES * UNITS);
      const int from = SCATTERS ? row : group.rank * UNITS + row;
      return group.weight(a, rest / UNITS, of_rank * UNITS + rest % UNITS, from);
    });
    for (int i = thread(); i < BUFFERS * OPERAND_WORDS; i += THREADS) shared.operands[i] = 0;
  }
  Item items[ITEMS];
  float carry[ITEMS][STATES], parameters[ITEMS][ROOM(PARAMETERS)], totals[ITEMS][ROOM(TOTALS)];
  float loaded[ITEMS][ROOM(LOADS)], factors[ITEMS][ROOM(FACTORS)], from_output[ITEMS], next_output[ITEMS];

  const auto load = [&](int j, int n) {
    const Item& i = items[j];
    const int t = group.time(a, n);
    const i64 row = group.row(a, i, t), before = group.row(a, i, group.time(a, n > 0 ? n - 1 : 0));
    load_step(a, row, before, i.start, n == 0, group.state_size(a), i.unit, loaded[j]);
    next_output[j] = a.output_gradient[row * H + i.unit];
  };
#pragma unroll
  for (int j = 0; j < ITEMS; j++) {
    const Item& i = items[j] = group.item(a, j);
    load_fixed(a, group, i, parameters[j]);
#pragma unroll
    for (int q = 0; q < STATES; q++)
      carry[j][q] = i.is_real ? a.final_gradient[q * group.state_size(a) + i.start] : 0.0f;
#pragma unroll
    for (int q = 0; q < TOTALS; q++) totals[j][q] = 0.0f;
#pragma unroll
    for (int q = 0; q < LOADS; q++) loaded[j][q] = 0.0f;
    if (i.is_real) {
      load(j, a.steps - 1);
      cell_factors(loaded[j], parameters[j], constants, factors[j]);
      from_output[j] = next_output[j];
      if (a.steps > 1) load(j, a.steps - 2);
    }
  }
  if constexpr (MATRICES > 0) exchange.begin();

  for (int number = 1; number <= a.steps; number++) {
    const int n = a.steps - number, t = group.time(a, n);
    if constexpr (SCATTERS) {
      if (number > 1) receive_partial_sums(shared, number - 1);
    }
    float gradients[ITEMS][ROOM(GRADIENTS)];
#pragma unroll
    for (int j = 0; j < ITEMS; j++) {
      const Item& i = items[j];
      if (!i.is_mine) continue;
      if constexpr (MATRICES > 0) {
        if (number > 1) carry[j][STATE] += recurrent_gradient(shared, i, number - 1);
      }
#pragma unroll
      for (int q = 0; q < GRADIENTS; q++) gradients[j][q] = 0.0f;
      if (i.is_real && t < i.length) {
        float incoming[STATES + 1];
        incoming[0] = from_output[j];
#pragma unroll
        for (int q = 0; q < STATES; q++) incoming[q + 1] = carry[j][q];
        cell_gradients(factors[j], incoming, parameters[j], constants, carry[j], gradients[j], totals[j]);
      }
#pragma unroll
      for (int g = 0; g < MATRICES; g++)
        put_operand(exchange.operand(number), (SCATTERS ? 0 : group.rank * MATRICES * UNITS) + g * UNITS + i.u, i.b,
                    gradients[j][gradient_of(g)]);
    }
    if constexpr (SCATTERS) {
      __syncthreads();
      send_partial_sums(weights, exchange.operand(number), shared, group.rank, number);
    } else if constexpr (MATRICES > 0) {
      exchange.send(number);
    }
    // What nobody waits for: results to memory, and the factors of the step that comes next.
#pragma unroll
    for (int j = 0; j < ITEMS; j++) {
      const Item& i = items[j];
      if (!i.is_real) continue;
      const i64 row = group.row(a, i, t);
#pragma unroll
      for (int q = 0; q < GRADIENTS; q++) a.gradients[(row * GRADIENTS + q) * H + i.unit] = gradients[j][q];
      if (n > 0) {
        cell_factors(loaded[j], parameters[j], constants, factors[j]);
        from_output[j] = next_output[j];
        if (n > 1) load(j, n - 2);
      }
    }
    if constexpr (MATRICES > 0 && !SCATTERS) {
      exchange.receive(number);
      multiply(weights, exchange.operand(number), shared.sums);
      __syncthreads();
    }
  }
  if constexpr (SCATTERS) receive_partial_sums(shared, a.steps);
#pragma unroll
  for (int j = 0; j < ITEMS; j++) {
    const Item& i = items[j];
    if (!i.is_real) continue;
    if constexpr (MATRICES > 0) carry[j][STATE] += recurrent_gradient(shared, i, a.steps);
#pragma unroll
    for (int q = 0; q < STATES; q++) a.initial_gradient[q * group.state_size(a) + i.start] = carry[j][q];
#pragma unroll
    for (int q = 0; q < TOTALS; q++) a.totals[q * group.state_size(a) + i.start] = totals[j][q];
  }
  if constexpr (CLUSTER > 1) sync_cluster();
}
#endif
