// Compiles a CUDA kernel source with the host compiler, so that its arithmetic and its barriers
// are tested on a machine without a GPU. Never part of a GPU build.
//
// Included before the source:  g++ -std=c++17 -O2 -ffp-contract=off -include cuda_on_host.h -x c++
//
// A block's threads are fibers that take turns at __syncthreads() in the order that
// `host::order` asks for: a missing barrier gives different results in different orders. Blocks
// run one after another. No warp intrinsics and no streams: the sources use none.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#define DEPLOYKIT_HOST 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __launch_bounds__(...)
#define __constant__ static
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

using std::max;
using std::min;

// --- scalar types and intrinsics ------------------------------------------------------------
using __half = _Float16;
inline float __half2float(__half value) { return static_cast<float>(value); }
inline __half __float2half_rn(float value) { return static_cast<__half>(value); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffsll(unsigned long long bits) { return __builtin_ffsll(static_cast<long long>(bits)); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
template <typename T>
T __ldg(const T* address) { return *address; }
template <typename T>
T atomicAdd(T* address, T value) { T old = *address; *address += value; return old; }
template <typename T>
T atomicMax(T* address, T value) { T old = *address; *address = std::max(old, value); return old; }
template <typename T>
T atomicMin(T* address, T value) { T old = *address; *address = std::min(old, value); return old; }
template <typename T>
T atomicOr(T* address, T value) { T old = *address; *address |= value; return old; }
template <typename T>
T atomicAnd(T* address, T value) { T old = *address; *address &= value; return old; }
inline void __threadfence() {}

// --- fibers -----------------------------------------------------------------------------------
namespace host {

enum class Order { kForward, kReverse, kShuffled };
inline Order order = Order::kForward;
inline unsigned threads = 0;  // per block; 0: as many as the launch asks for

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
  dim3 index;
};

inline ucontext_t scheduler;
inline Fiber* current = nullptr;
inline const std::function<void()>* body = nullptr;
inline std::vector<unsigned char> dynamic_shared;

inline void run_fiber() {
  (*body)();
  current->done = true;
}

inline void arrange(std::vector<Fiber*>& fibers) {
  static uint64_t state = 0x9E3779B97F4A7C15ull;
  if (order == Order::kReverse) std::reverse(fibers.begin(), fibers.end());
  if (order != Order::kShuffled) return;
  for (size_t i = fibers.size(); i > 1; --i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    std::swap(fibers[i - 1], fibers[(state >> 33) % i]);
  }
}

// Runs one block: every live fiber up to its next barrier, again and again until all have ended.
inline void run_block(std::vector<Fiber>& fibers) {
  constexpr size_t kStack = 1 << 16;
  for (Fiber& fiber : fibers) {
    fiber.done = false;
    fiber.stack.resize(kStack);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, run_fiber, 0);
  }
  for (;;) {
    std::vector<Fiber*> live;
    for (Fiber& fiber : fibers)
      if (!fiber.done) live.push_back(&fiber);
    if (live.empty()) return;
    arrange(live);
    size_t ended = 0;
    for (Fiber* fiber : live) {
      current = fiber;
      threadIdx = fiber->index;
      swapcontext(&scheduler, &fiber->context);
      ended += fiber->done;
    }
    if (ended != 0 && ended != live.size()) {
      std::fprintf(stderr, "a barrier was reached by some threads of a block only\n");
      std::abort();
    }
  }
}

// What `kernel<<<grid, block, shared>>>(...)` does, with fewer threads where asked.
inline void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& kernel) {
  gridDim = grid;
  if (threads != 0) block = dim3(threads);
  blockDim = block;
  body = &kernel;
  dynamic_shared.assign(shared, 0xA5);  // not zero: shared memory is not initialised
  std::vector<Fiber> fibers(static_cast<size_t>(block.x) * block.y * block.z);
  for (size_t i = 0; i < fibers.size(); ++i)
    fibers[i].index = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block(fibers);
      }
}

}  // namespace host

inline void __syncthreads() { swapcontext(&host::current->context, &host::scheduler); }
