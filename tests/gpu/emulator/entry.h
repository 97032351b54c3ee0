// Behind a kernel's text: makes one entry callable with an array of pointers to its arguments, as CUDA does.
#include <utility>

namespace emulator {
template <class... A, size_t... I>
inline void apply_each(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*(A*)arguments[I]...);
}
template <class... A>
inline void apply(void (*kernel)(A...), void** arguments) {
  apply_each(kernel, arguments, std::index_sequence_for<A...>{});
}
template <class... A>
constexpr int count(void (*)(A...)) {
  return sizeof...(A);
}
}  // namespace emulator

#define EMULATED_ENTRY(name)                                                     \
  extern "C" void emulate_##name(const emulator::Sizes* sizes, void** arguments) { \
    emulator::launch(*sizes, [](void** a) { emulator::apply(name, a); }, arguments); \
  }                                                                              \
  extern "C" int count_##name() { return emulator::count(name); }
