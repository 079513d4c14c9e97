// The Hadamard projection: a thread block takes two rows of the batch through the transform of one
// block of 4096 parameters after the other, in shared memory; signs and sampled rows are drawn once
// for both. Each column belongs to one thread, so that the order of every sum is fixed.

#include "sums.cuh"

namespace winnow {

const int PLACES = 1 << BLOCK_BITS;
const int PAIR = 2;                      // rows of the batch in a thread block
const int POINTS = 16;                   // of a transform in registers; 16**3 = 4096
const int PITCH = PLACES + PLACES / 32;  // `slot` spreads neighbours over the banks
const int SIGN_WORDS = PLACES / 32;

__device__ __forceinline__ int slot(int place) { return place + (place >> 5); }

// In place: three passes of transforms of 16 points in registers. 256 threads.
template <typename T>
__device__ __forceinline__ void walsh_hadamard(T* buffer) {
  for (int step = 1; step < PLACES; step *= POINTS) {
    const int low = threadIdx.x % step, high = threadIdx.x / step;
    const int base = high * step * POINTS + low;
    for (int row = 0; row < PAIR; ++row) {
      T x[POINTS];
      for (int n = 0; n < POINTS; ++n) x[n] = buffer[row * PITCH + slot(base + n * step)];
#if defined(__CUDACC__)
#pragma unroll
#endif
      for (int half = 1; half < POINTS; half *= 2)
#if defined(__CUDACC__)
#pragma unroll
#endif
        for (int n = 0; n < POINTS; ++n)
          if (!(n & half)) {
            const T a = x[n], b = x[n + half];
            x[n] = a + b;
            x[n + half] = a - b;
          }
      for (int n = 0; n < POINTS; ++n) buffer[row * PITCH + slot(base + n * step)] = x[n];
    }
    __syncthreads();
  }
}

template <typename T>
__device__ __forceinline__ void sample(const T* gradients, i64 row_stride, T* target, i64 n_rows,
                                       i64 count, i64 offset, i64 dim, Key key,
                                       i64 blocks_per_slice, i64 tile, bool deterministic) {
  extern __shared__ unsigned char memory[];
  T* buffer = reinterpret_cast<T*>(memory);                       // [PAIR, PITCH]
  T* total = buffer + PAIR * PITCH;                               // [PAIR, tile]
  u32* place_signs = reinterpret_cast<u32*>(total + PAIR * tile); // [SIGN_WORDS]
  u32* column_signs = place_signs + SIGN_WORDS;                   // [tile / 32]
  const int thread = threadIdx.x;
  const i64 row0 = (i64)blockIdx.x * PAIR;
  const i64 slice = blockIdx.y, column0 = (i64)blockIdx.z * tile;
  const i64 blocks = (offset + count - 1) / PLACES + 1;
  const i64 first = offset / PLACES + slice * blocks_per_slice;
  const i64 last = first + blocks_per_slice < blocks ? first + blocks_per_slice : blocks;
  for (i64 i = thread; i < PAIR * tile; i += blockDim.x) total[i] = 0;
  for (i64 block = first; block < last; ++block) {
    for (int n = thread; n < SIGN_WORDS / 4; n += blockDim.x) {
      const Words words = draw((u64)(block * (SIGN_WORDS / 4) + n), 0, HADAMARD, key);
      for (int i = 0; i < 4; ++i) place_signs[n * 4 + i] = words.w[i];
    }
    for (i64 n = thread; n < tile / 128; n += blockDim.x) {
      const u32 part = COLUMN_SIGN_PART + (u32)(column0 / 128 + n);
      const Words words = draw((u64)block, part, HADAMARD, key);
      for (int i = 0; i < 4; ++i) column_signs[n * 4 + i] = words.w[i];
    }
    __syncthreads();
    for (int row = 0; row < PAIR; ++row)
      for (int place = thread; place < PLACES; place += blockDim.x) {
        const i64 j = block * PLACES + place - offset;
        T value = 0;
        if (row0 + row < n_rows && j >= 0 && j < count)
          value = gradients[(row0 + row) * row_stride + j];
        const bool minus = (place_signs[place >> 5] >> (place & 31)) & 1u;
        buffer[row * PITCH + slot(place)] = minus ? -value : value;
      }
    __syncthreads();
    walsh_hadamard<T>(buffer);
    Words words;
    i64 fold = -1;
    for (i64 c = thread; c < tile && column0 + c < dim; c += blockDim.x) {
      const i64 column = column0 + c;
      if (column / PLACES != fold) {
        fold = column / PLACES;
        words = draw((u64)block, PERMUTATION_PART + (u32)fold, HADAMARD, key);
      }
      const int at = slot((int)permuted((u32)(column % PLACES), words));
      const bool minus = (column_signs[c >> 5] >> (c & 31)) & 1u;
      for (int row = 0; row < PAIR; ++row) {
        const T value = buffer[row * PITCH + at];
        total[row * tile + c] += minus ? -value : value;
      }
    }
    __syncthreads();
  }
  __syncthreads();
  for (int row = 0; row < PAIR; ++row)
    for (i64 c = thread; c < tile; c += blockDim.x)
      if (row0 + row < n_rows && column0 + c < dim)
        deliver<T>(target, total[row * tile + c], slice, row0 + row, column0 + c, n_rows, dim,
                   deterministic);
}

}  // namespace winnow

#define WINNOW_HADAMARD(T)                                                                      \
  extern "C" __global__ void __launch_bounds__(256) hadamard_##T(                               \
      const T* gradients, T* target, long long row_stride, long long n_rows, long long count,   \
      long long offset, long long dim, long long seed, long long checkpoint,                    \
      long long blocks_per_slice, long long tile, long long deterministic) {                    \
    winnow::sample<T>(gradients, row_stride, target, n_rows, count, offset, dim,                \
                      winnow::Key{(winnow::u64)seed, (winnow::u32)checkpoint},                  \
                      blocks_per_slice, tile, deterministic != 0);                              \
  }

WINNOW_HADAMARD(float)
WINNOW_HADAMARD(double)
