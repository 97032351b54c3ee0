// How the CTAs of a group give each other their part of the next operand. A group shares the weights of
// one direction, one head and TILE sequences; each CTA makes a slice of the operand at every step.
//   none           one CTA: a block barrier
//   cluster_barrier  stores to the others' shared memory, then a barrier of the cluster. For debugging:
//                  its release waits for all global stores of the step, too
//   messages       st.async, counted by the receiver's mbarrier; no fence
//   counter        through global memory, then a counter that all CTAs raise. For debugging, as above
//   write_once     through global memory where every word is written once: the data is the flag
// Operands are numbered; the slice of operand 1 is the first that is exchanged.
constexpr u32 UNSET = 0xffffffffu;

// How many of a thread's chunks it asks for before it looks at them: at most 8, all rounds alike if they can
// be. A last round that is shorter takes predicates and addresses of its own, for which registers lack.
DEV constexpr int chunks_at_once(int each) {
  for (int count = 8; count >= 4; count--)
    if (each % count == 0) return count;
  return each < 8 ? each : 8;
}

struct Exchange {
  u32* operands;    // shared memory: [BUFFERS][OPERAND_WORDS]
  u64* arrived;     // shared memory: [2]
  uint4* outside;   // global memory of the group
  u32* counter;     // of the group
  int rank;

  DEV u32* operand(int number) const { return operands + (BUFFERS == 2 ? number & 1 : 0) * OPERAND_WORDS; }

  // The four words of an operand that are a chunk of a rank's slice.
  DEV static int chunk_at(int of_rank, int chunk) {
    if constexpr (PRECISION == 0) return of_rank * SLICE_CHUNKS * 4 + chunk * 4;
    constexpr int IN_ROW = SLICE_CHUNKS / TILE;
    return chunk / IN_ROW * OPERAND_ROW + (of_rank * IN_ROW + chunk % IN_ROW) * 4;
  }
  // Outside, an operand has the same order without the padding between rows.
  DEV uint4* outside_of(int number) const {
    const i64 place = EXCHANGE == COUNTER ? number & 1 : number - 1;
    return outside + place * CTAS * SLICE_CHUNKS;
  }
  DEV static int outside_at(int of_rank, int chunk) {
    if constexpr (PRECISION == 0) return of_rank * SLICE_CHUNKS + chunk;
    constexpr int IN_ROW = SLICE_CHUNKS / TILE;
    return chunk / IN_ROW * (CTAS * IN_ROW) + of_rank * IN_ROW + chunk % IN_ROW;
  }
  DEV static int inside_at(int index) {
    if constexpr (PRECISION == 0) return index * 4;
    constexpr int IN_ROW = CTAS * SLICE_CHUNKS / TILE;
    return index / IN_ROW * OPERAND_ROW + index % IN_ROW * 4;
  }

  // Before the loop; every CTA of the cluster must run before anyone writes into it.
  DEV void begin() {
    if constexpr (EXCHANGE == MESSAGES || SCATTERS) {
      if (thread() == 0) {
        barrier_init(arrived, 1);
        barrier_init(arrived + 1, 1);
        barrier_init_fence();
      }
    }
    __syncthreads();
    if constexpr (CLUSTER > 1) sync_cluster();
  }

  // The slice lies in operand(number) of this CTA. Ends the work on it in this CTA.
  DEV void send(int number) {
    __syncthreads();
    if constexpr (EXCHANGE == CLUSTER_BARRIER || EXCHANGE == MESSAGES) {
      constexpr int COUNT = SLICE_CHUNKS * (CTAS - 1);
      u64* barrier = arrived + (number & 1);
      if constexpr (EXCHANGE == MESSAGES) {
        // Whoever's bytes come before this: the phase cannot end before this one arrival.
        if (thread() == 0) barrier_expect(barrier, COUNT * 16);
      }
#pragma unroll
      for (int i = 0; i < (COUNT + THREADS - 1) / THREADS; i++) {
        const int index = i * THREADS + thread();
        if (COUNT % THREADS == 0 || index < COUNT) {
          const int to = index / SLICE_CHUNKS;
          uint4* at = (uint4*)(operand(number) + chunk_at(rank, index % SLICE_CHUNKS));
          if constexpr (EXCHANGE == MESSAGES) send16(at, to + (to >= rank), *at, barrier);
          else store_peer(at, to + (to >= rank), *at);
        }
      }
    } else if constexpr (EXCHANGE == COUNTER || EXCHANGE == WRITE_ONCE) {
      for (int chunk = thread(); chunk < SLICE_CHUNKS; chunk += THREADS) {
        uint4 v = *(const uint4*)(operand(number) + chunk_at(rank, chunk));
        if constexpr (EXCHANGE == WRITE_ONCE) {
          // A NaN of these bits could only be copied from an input: another NaN goes instead.
          v.x = v.x == UNSET ? UNSET >> 1 : v.x;
          v.y = v.y == UNSET ? UNSET >> 1 : v.y;
          v.z = v.z == UNSET ? UNSET >> 1 : v.z;
          v.w = v.w == UNSET ? UNSET >> 1 : v.w;
          store_relaxed(outside_of(number) + outside_at(rank, chunk), v);
        } else {
          store_shared_by_all(outside_of(number) + outside_at(rank, chunk), v);
        }
      }
    }
  }

  // After this, operand(number) is whole and may be read.
  DEV void receive(int number) {
    if constexpr (EXCHANGE == CLUSTER_BARRIER) sync_cluster();
    if constexpr (EXCHANGE == MESSAGES) barrier_wait(arrived + (number & 1), (number - 1) >> 1 & 1);
    if constexpr (EXCHANGE == COUNTER) {
      __syncthreads();
      if (thread() == 0) {
        add_release(counter, 1);
        Patience patience;
        while ((int)(load_acquire(counter) - (u32)number * CTAS) < 0) patience.again();
      }
      __syncthreads();
    }
    if constexpr (EXCHANGE == COUNTER || EXCHANGE == WRITE_ONCE) {
      // With the own slice, which is there already: all chunks in one row need no question of rank.
      constexpr int COUNT = SLICE_CHUNKS * CTAS, EACH = (COUNT + THREADS - 1) / THREADS;
      constexpr int AT_ONCE = chunks_at_once(EACH);
      constexpr bool IS_EVEN = COUNT % (AT_ONCE * THREADS) == 0;
#pragma unroll
      for (int first = 0; first < EACH; first += AT_ONCE) {
        const uint4* from = outside_of(number) + first * THREADS + thread();
        uint4 value[AT_ONCE];
        Patience patience;
        while (true) {
          bool is_missing = false;
#pragma unroll
          for (int i = 0; i < AT_ONCE; i++) {
            if (IS_EVEN || (first + i) * THREADS + thread() < COUNT) {
              value[i] = EXCHANGE == COUNTER ? load_shared_by_all(from + i * THREADS) : load_relaxed(from + i * THREADS);
              is_missing |= value[i].x == UNSET | value[i].y == UNSET | value[i].z == UNSET | value[i].w == UNSET;
            }
          }
          if (EXCHANGE == COUNTER || !is_missing) break;
          patience.again();
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
          const int index = (first + i) * THREADS + thread();
          if (IS_EVEN || index < COUNT) *(uint4*)(operand(number) + inside_at(index)) = value[i];
        }
      }
      __syncthreads();
    }
  }
};
