// A GPU as far as correctness goes: CTAs, clusters, barriers, mbarriers, late memory, mma fragments.
// One fiber per CUDA thread; which one runs next is drawn at random, the same way for the same seed.
#include "emulator.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <queue>
#include <sys/mman.h>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {
Here* here;

namespace {
constexpr size_t STACK = 256 << 10;
constexpr int GUARD = 256;
constexpr unsigned char MARK = 0xA5;

struct Barrier {
  int size = 0, arrived = 0, sum = 0, result = 0;
  std::vector<struct Fiber*> waiting;
};
struct Warp {
  Barrier barrier;
  int kind = 0;
  u32 values[32], a[32][4], b[32][2];
  float* c[32];
};
struct Cta {
  int index, rank, alive;
  int speed;               // CTAs of a higher speed run more often, until speeds are drawn again
  std::vector<unsigned char> memory;
  unsigned char* shared;
  Barrier barrier;
  Barrier* cluster;
  Cta* first;              // of its cluster
};
enum State { ready, blocked, paused, done };
struct Late {              // a store that others do not see yet
  void* to;
  unsigned char value[16];
  int bytes;
};
struct Fiber : Here {
#if defined(__x86_64__)
  void* stack_pointer;
#else
  ucontext_t context;
#endif
  Cta* cta;
  Warp* warp;
  State state = ready;
  const char* waits_for = "";
  std::vector<Late> to_peers;
};
struct Message {
  u64 due;
  Late store;
  u64* barrier;            // of an st.async, else null
  Cta* cta;                // whose memory it is (st.async) or who stored (global)
  u64 number;
  bool operator<(const Message& other) const {
    return due != other.due ? due > other.due : number > other.number;
  }
};
struct Mbarrier {
  unsigned char mark, phase;
  short count, pending, unused;
};
static_assert(sizeof(Mbarrier) == 8);

struct Machine {
  Sizes sizes;
  void (*body)(void**);
  void** arguments;
  std::vector<Cta> ctas;
  std::vector<Barrier> clusters;
  std::vector<Warp> warps;
  std::vector<Fiber> fibers;
  std::vector<Fiber*> runnable;
  std::priority_queue<Message> messages;
  u64 tick = 0, quiet = 0, sent = 0;
  u64 random_state;
  bool failed = false;
#if defined(__x86_64__)
  void* stack_pointer;
#else
  ucontext_t context;
#endif
} machine;

Fiber* me() { return static_cast<Fiber*>(here); }

u32 draw(u32 below) {
  machine.random_state ^= machine.random_state << 13;
  machine.random_state ^= machine.random_state >> 7;
  machine.random_state ^= machine.random_state << 17;
  return (u32)((machine.random_state >> 24) % below);
}

void say(const char* format, ...) {
  if (machine.failed) return;
  machine.failed = true;
  va_list rest;
  va_start(rest, format);
  vsnprintf(machine.sizes.error, 1024, format, rest);
  va_end(rest);
}

#if defined(__x86_64__)
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
void to_machine() { emulator_switch(&me()->stack_pointer, machine.stack_pointer); }
void to_fiber(Fiber* fiber) { emulator_switch(&machine.stack_pointer, fiber->stack_pointer); }
#else
void to_machine() { swapcontext(&me()->context, &machine.context); }
void to_fiber(Fiber* fiber) { swapcontext(&machine.context, &fiber->context); }
#endif

void begin() {
  machine.body(machine.arguments);
  me()->state = done;
  to_machine();
  abort();
}

void prepare(Fiber* fiber, unsigned char* stack) {
#if defined(__x86_64__)
  void** top = (void**)(stack + STACK - 64);
  *--top = nullptr;         // where begin() would return to
  *--top = (void*)begin;
  top -= 6;
  memset(top, 0, 6 * sizeof(void*));
  fiber->stack_pointer = top;
#else
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = stack;
  fiber->context.uc_stack.ss_size = STACK;
  makecontext(&fiber->context, begin, 0);
#endif
}

void wake(Fiber* fiber) {
  fiber->state = ready;
  machine.runnable.push_back(fiber);
  machine.quiet = 0;
}

// Waits until `size` fibers have come. The last one does `work` before the others go on.
template <class Work>
void meet(Barrier& barrier, const char* name, Work work) {
  if (++barrier.arrived == barrier.size) {
    work();
    barrier.arrived = 0;
    auto others = std::move(barrier.waiting);
    barrier.waiting.clear();
    for (Fiber* fiber : others) wake(fiber);
    machine.quiet = 0;
    // The last one does not go on at once either: it might always be the fastest then.
    me()->state = paused;
    machine.quiet = 0;
  } else {
    barrier.waiting.push_back(me());
    me()->state = blocked;
  }
  me()->waits_for = name;
  to_machine();
}

Mbarrier* check(u64* at) {
  auto* barrier = (Mbarrier*)at;
  if (barrier->mark != 0x5B) fail("an mbarrier was used before it was made");
  return barrier;
}

// tx counts live beside the eight bytes, which hold no number as large as the hardware's.
std::vector<std::pair<u64*, long long>> bytes_left;
long long& bytes_of(u64* barrier) {
  for (auto& [at, left] : bytes_left)
    if (at == barrier) return left;
  bytes_left.push_back({barrier, 0});
  return bytes_left.back().second;
}

void advance(u64* at) {
  auto* barrier = (Mbarrier*)at;
  if (barrier->pending == 0 && bytes_of(at) == 0) {
    barrier->phase ^= 1;
    barrier->pending = barrier->count;
    machine.quiet = 0;
  }
}

void deliver(const Message& message) {
  if (message.barrier) {
    if (!message.cta->alive) say("a message reached CTA %d, which had ended", message.cta->index);
    if (((Mbarrier*)message.barrier)->mark != 0x5B) {
      say("a message came before the mbarrier of CTA %d was made", message.cta->index);
      return;
    }
  }
  memcpy(message.store.to, message.store.value, message.store.bytes);
  machine.quiet = 0;
  if (message.barrier) {
    bytes_of(message.barrier) -= message.store.bytes;
    advance(message.barrier);
  }
}

unsigned char* in_peer(const void* mine, int rank, int bytes) {
  Cta* cta = me()->cta;
  const long long offset = (const unsigned char*)mine - cta->shared;
  if (rank < 0 || rank >= machine.sizes.cluster) fail("a rank outside the cluster");
  if (offset < 0 || offset + bytes > machine.sizes.shared_bytes) fail("a peer's address outside shared memory");
  if (offset % bytes) fail("a peer's address is not aligned to the size of the store");
  return cta->first[rank].shared + offset;
}

void post(Late store, u64* barrier, Cta* cta) {
  const u32 fibers = (u32)machine.fibers.size();
  // Mostly soon, sometimes after every other thread had several turns.
  const u32 delay = draw(4) ? draw(2 * fibers) : draw(12 * fibers);
  machine.messages.push({machine.tick + delay, store, barrier, cta, machine.sent++});
}

// Makes a CTA's late global stores visible: what comes before a release.
void flush(Cta* cta) {
  std::priority_queue<Message> kept;
  while (!machine.messages.empty()) {
    const Message& next = machine.messages.top();
    if (!next.barrier && next.cta == cta) deliver(next);
    else kept.push(next);
    machine.messages.pop();
  }
  machine.messages = std::move(kept);
}

void run() {
  Machine& m = machine;
  size_t left = m.fibers.size();
  while (left && !m.failed) {
    if (m.tick++ % 4096 == 0)
      for (Cta& cta : m.ctas) cta.speed = draw(4);
    while (!m.messages.empty() && m.messages.top().due <= m.tick) {
      const Message next = m.messages.top();
      m.messages.pop();
      deliver(next);
    }
    // The only thread that can go on may belong to the slowest CTA and has every eighth of its turns: of so
    // many all are missed once in e^50. At 24 it was once in 20, and long loops were taken for stuck.
    const bool is_stuck = m.runnable.empty() || m.quiet > 400 * m.runnable.size() + 64;
    if (is_stuck && !m.messages.empty()) {
      m.tick = m.messages.top().due;
      m.quiet = 0;
      continue;
    }
    if (is_stuck) {
      const Fiber* stuck = nullptr;
      for (const Fiber& fiber : m.fibers)
        if (fiber.state == blocked || fiber.state == paused) stuck = &fiber;
      say("deadlock: %zu of %zu threads are left and none can go on; CTA %d thread %d waits %s", left,
          m.fibers.size(), stuck ? stuck->cta->index : -1, stuck ? (int)stuck->thread.x : -1,
          stuck ? stuck->waits_for : "");
      break;
    }
    size_t at = draw((u32)m.runnable.size());
    const size_t other = draw((u32)m.runnable.size());
    if (m.runnable[other]->cta->speed > m.runnable[at]->cta->speed && draw(8)) at = other;
    Fiber* fiber = m.runnable[at];
    m.runnable[at] = m.runnable.back();
    m.runnable.pop_back();
    fiber->state = ready;
    m.quiet++;
    here = fiber;
    to_fiber(fiber);
    if (fiber->state == done) {
      left--;
      fiber->cta->alive--;
      m.quiet = 0;
    } else if (fiber->state != blocked) {
      m.runnable.push_back(fiber);
    } else {
      m.quiet = 0;
    }
  }
  here = nullptr;
}
}  // namespace

void fail(const char* what) {
  say("%s (CTA %d thread %d)", what, me()->cta->index, (int)me()->thread.x);
  me()->state = blocked;
  to_machine();
  abort();
}

void pause() {
  me()->state = paused;
  me()->waits_for = "for memory that nobody writes";
  to_machine();
}

void block_barrier() { meet(me()->cta->barrier, "at a block barrier", [] {}); }

int block_count(int value) {
  Barrier& barrier = me()->cta->barrier;
  barrier.sum += value;
  meet(barrier, "at a block barrier", [&] {
    barrier.result = barrier.sum;
    barrier.sum = 0;
  });
  return barrier.result;
}

void cluster_barrier() {
  for (const Late& store : me()->to_peers) memcpy(store.to, store.value, store.bytes);
  me()->to_peers.clear();
  meet(*me()->cta->cluster, "at a cluster barrier", [] {});
}

static void as_one(int kind) {
  Warp* warp = me()->warp;
  if (warp->barrier.arrived && warp->kind != kind) fail("the lanes of a warp called different functions together");
  warp->kind = kind;
}

void warp_barrier() {
  as_one(1);
  meet(me()->warp->barrier, "for its warp", [] {});
}

u32 exchange_lanes(u32 value, int from) {
  Warp* warp = me()->warp;
  as_one(2);
  warp->values[me()->lane] = value;
  meet(warp->barrier, "for its warp", [] {});
  const u32 result = warp->values[from];
  as_one(3);
  meet(warp->barrier, "for its warp", [] {});
  return result;
}

void barrier_init(u64* at, u32 count) {
  const Mbarrier made{0x5B, 0, (short)count, (short)count, 0};
  memcpy(at, &made, 8);
  bytes_of(at) = 0;
}

void barrier_expect(u64* at, u32 bytes) {
  Mbarrier* barrier = check(at);
  if (barrier->pending == 0) fail("an mbarrier had more arrivals than it was made for");
  bytes_of(at) += bytes;
  barrier->pending--;
  advance(at);
}

bool barrier_passed(u64* at, u32 parity) { return check(at)->phase != (parity & 1); }

void send(void* to, int rank, const void* value, int bytes, u64* barrier) {
  Late store{in_peer(to, rank, bytes), {}, bytes};
  memcpy(store.value, value, bytes);
  u64* other = (u64*)in_peer(barrier, rank, 8);
  post(store, other, me()->cta->first + rank);
}

void store_late(void* to, const void* value, int bytes) {
  Late store{to, {}, bytes};
  memcpy(store.value, value, bytes);
  post(store, nullptr, me()->cta);
}

void store_peer_late(void* to, int rank, const void* value, int bytes) {
  Late store{in_peer(to, rank, bytes), {}, bytes};
  memcpy(store.value, value, bytes);
  me()->to_peers.push_back(store);
}

u32 add_release(u32* at, u32 value) {
  flush(me()->cta);
  machine.quiet = 0;
  return *at += value;
}

static float half_of(Format format, u32 word, int which) {
  const u32 bits = which ? word >> 16 : word & 0xffff;
  if (format == bf16) return __uint_as_float(bits << 16);
  const u16 narrow = (u16)bits;
  _Float16 value;
  memcpy(&value, &narrow, 2);
  return (float)value;
}

// Fragments of mma.sync.m16n8k8 (tf32) and m16n8k16 (bf16, f16), PTX ISA "Matrix fragments".
void mma(Format format, float* c, const u32* a, u32 b0, u32 b1) {
  Warp* warp = me()->warp;
  as_one(4 + format);
  const int lane = me()->lane;
  memcpy(warp->a[lane], a, 16);
  warp->b[lane][0] = b0;
  warp->b[lane][1] = b1;
  warp->c[lane] = c;
  meet(warp->barrier, "for its warp", [&] {
    const int depth = format == tf32 ? 8 : 16;
    float left[16][16], right[16][8];
    for (int of = 0; of < 32; of++) {
      const int group = of / 4, place = of % 4;
      for (int i = 0; i < 4; i++) {
        const int row = group + (i & 1) * 8;
        if (format == tf32) {
          left[row][place + (i >> 1) * 4] = __uint_as_float(warp->a[of][i] & 0xffffe000u);
        } else {
          for (int j = 0; j < 2; j++) left[row][place * 2 + (i >> 1) * 8 + j] = half_of(format, warp->a[of][i], j);
        }
      }
      for (int i = 0; i < 2; i++) {
        if (format == tf32) {
          right[place + i * 4][group] = __uint_as_float(warp->b[of][i] & 0xffffe000u);
        } else {
          for (int j = 0; j < 2; j++) right[place * 2 + i * 8 + j][group] = half_of(format, warp->b[of][i], j);
        }
      }
    }
    for (int of = 0; of < 32; of++)
      for (int i = 0; i < 4; i++) {
        const int row = of / 4 + (i >> 1) * 8, column = of % 4 * 2 + (i & 1);
        float sum = warp->c[of][i];
        for (int k = 0; k < depth; k++) sum += left[row][k] * right[k][column];
        warp->c[of][i] = sum;
      }
  });
}

void launch(const Sizes& sizes, void (*body)(void**), void** arguments) {
  Machine& m = machine;
  m = Machine{};
  bytes_left.clear();
  m.sizes = sizes;
  m.body = body;
  m.arguments = arguments;
  m.random_state = 0x9E3779B97F4A7C15ull * (sizes.seed + 1) | 1;
  const int blocks = sizes.blocks.x * sizes.blocks.y * sizes.blocks.z;
  const int threads = sizes.threads.x * sizes.threads.y * sizes.threads.z;
  if (blocks % sizes.cluster) return say("a grid of %d CTAs is not a whole number of clusters of %d", blocks, sizes.cluster);
  const int warps = (threads + 31) / 32;
  m.ctas.resize(blocks);
  m.clusters.resize(blocks / sizes.cluster);
  m.warps.resize((size_t)blocks * warps);
  m.fibers.resize((size_t)blocks * threads);
  for (Barrier& barrier : m.clusters) barrier.size = sizes.cluster * threads;
  for (size_t w = 0; w < m.warps.size(); w++) {
    const int rest = threads - (int)(w % warps) * 32;
    m.warps[w].barrier.size = rest < 32 ? rest : 32;
  }
  for (int i = 0; i < blocks; i++) {
    Cta& cta = m.ctas[i];
    cta.index = i;
    cta.rank = i % sizes.cluster;
    cta.alive = threads;
    cta.first = &m.ctas[i - cta.rank];
    cta.cluster = &m.clusters[i / sizes.cluster];
    cta.barrier.size = threads;
    cta.memory.assign(sizes.shared_bytes + GUARD + 128, 0xFF);
    cta.shared = (unsigned char*)(((uintptr_t)cta.memory.data() + 127) & ~(uintptr_t)127);
    memset(cta.shared + sizes.shared_bytes, MARK, GUARD);
  }
  const size_t room = m.fibers.size() * STACK;
  auto* stacks = (unsigned char*)mmap(nullptr, room, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) return say("no memory for %zu threads", m.fibers.size());
  const auto unfold = [](int i, const dim3& size) {
    return dim3{i % size.x, i / size.x % size.y, i / size.x / size.y};
  };
  for (size_t i = 0; i < m.fibers.size(); i++) {
    Fiber& fiber = m.fibers[i];
    const int thread = (int)(i % threads);
    fiber.cta = &m.ctas[i / threads];
    fiber.warp = &m.warps[i / threads * warps + thread / 32];
    fiber.thread = unfold(thread, sizes.threads);
    fiber.block = unfold(fiber.cta->index, sizes.blocks);
    fiber.threads = sizes.threads;
    fiber.blocks = sizes.blocks;
    fiber.lane = thread % 32;
    fiber.rank = fiber.cta->rank;
    fiber.shared = fiber.cta->shared;
    prepare(&fiber, stacks + i * STACK);
    m.runnable.push_back(&fiber);
  }
  run();
  while (!m.failed && !m.messages.empty()) {   // global stores that come after the last thread
    deliver(m.messages.top());
    m.messages.pop();
  }
  for (const Cta& cta : m.ctas)
    for (int i = 0; i < GUARD; i++)
      if (cta.shared[sizes.shared_bytes + i] != MARK) {
        say("CTA %d wrote behind its %lld bytes of shared memory", cta.index, sizes.shared_bytes);
        break;
      }
  munmap(stacks, room);
}
}  // namespace emulator
