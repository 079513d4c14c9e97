// Runs a CUDA kernel on the host, to test its arithmetic, its indices and its barriers where there
// is no GPU: thread blocks one after the other, the threads of a block as coroutines that take
// turns at __syncthreads(), in another order each time: a missing barrier shows. Include it before the kernel; no warp functions, no static __shared__.

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct Index {
  unsigned x, y, z;
};

inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace winnow {
alignas(16) inline unsigned char memory[1 << 18];
}

struct Coroutine {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  bool done;
};

inline ucontext_t scheduler;
inline Coroutine* current;
inline void (*kernel)(const long long*);
inline const long long* arguments;

inline void __syncthreads() { swapcontext(&current->context, &scheduler); }

template <typename T>
void atomicAdd(T* address, T value) {
  *address += value;
}

inline void body() {
  kernel(arguments);
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

// Returns 1 if some threads of a block met a barrier that others did not.
inline int run_blocks(unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared) {
  static std::vector<Coroutine> all;
  all.resize(threads);
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  std::minstd_rand turns(1);
  gridDim = {x, y, z};
  blockDim = {threads, 1, 1};
  for (unsigned block = 0; block < x * y * z; ++block) {
    blockIdx = {block % x, block / x % y, block / x / y};
    // What a kernel reads before it writes must not be what it hopes for.
    std::memset(winnow::memory, 0x7F, sizeof winnow::memory);
    for (Coroutine& one : all) {
      getcontext(&one.context);
      one.context.uc_stack.ss_sp = one.stack.data();
      one.context.uc_stack.ss_size = one.stack.size();
      one.context.uc_link = nullptr;
      makecontext(&one.context, body, 0);
      one.done = false;
    }
    for (unsigned left = threads; left > 0;) {
      unsigned finished = 0;
      std::shuffle(order.begin(), order.end(), turns);
      for (unsigned thread : order) {
        current = &all[thread];
        threadIdx = {thread, 0, 0};
        swapcontext(&scheduler, &current->context);
        finished += current->done;
      }
      if (finished != 0 && finished != threads) return 1;
      left = threads - finished;
    }
    for (unsigned byte = shared; byte < sizeof winnow::memory; ++byte)
      if (winnow::memory[byte] != 0x7F) return 2;  // beyond what it asked for
  }
  return 0;
}

// All arguments are 64 bits wide, and the calling conventions of x86-64 and AArch64 let a function
// be called with more of them than it takes.
inline void call(void* address, const long long* a) {
  using Kernel = void (*)(long long, long long, long long, long long, long long, long long,
                          long long, long long, long long, long long, long long, long long);
  reinterpret_cast<Kernel>(address)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9],
                                    a[10], a[11]);
}

inline void* called;

extern "C" int launch(void* address, unsigned x, unsigned y, unsigned z, unsigned threads,
                      unsigned shared, const long long* values) {
  called = address;
  kernel = [](const long long* a) { call(called, a); };
  arguments = values;
  return run_blocks(x, y, z, threads, shared);
}
