// The sparse projection. `sparse_plan` draws columns and signs once for the whole batch and sorts
// the entries of each chunk of parameters by column; `sparse_apply` then gives each column of a
// chunk to one thread, which sums its entries in order for four rows at a time. So there are no
// float atomics in shared memory, and the order of every sum is fixed.

#include "sums.cuh"

namespace winnow {

const int ENTRIES = 2048;  // of a chunk; a power of two
const int ROWS = 4;        // of the batch in a thread block
const u32 PAD = 0xFFFFFFFFu;

// Bits of a key: 20 column, 11 parameter within the chunk, 1 sign. PAD needs dim < 2**20.
__device__ __forceinline__ u32 column_of(u32 key) { return key >> 12; }

__device__ __forceinline__ void plan(u32* keys, i64 count, i64 offset, i64 dim, i64 nonzeros,
                                     Key key) {
  extern __shared__ unsigned char memory[];
  u32* sorted = reinterpret_cast<u32*>(memory);  // [ENTRIES]
  const i64 parameters = ENTRIES / nonzeros;
  const i64 base = (i64)blockIdx.x * parameters;
  for (int e = threadIdx.x; e < ENTRIES; e += blockDim.x) {
    const i64 local = e / nonzeros, slot = e % nonzeros;
    u32 entry = PAD;
    if (local < parameters && base + local < count) {
      const Words words = draw((u64)(offset + base + local), (u32)(slot / 4), SPARSE, key);
      const u32 word = words.w[slot % 4];
      entry = sparse_column(word, slot, dim, nonzeros) << 12 | (u32)local << 1 | (word & 1u);
    }
    sorted[e] = entry;
  }
  for (int size = 2; size <= ENTRIES; size *= 2)  // bitonic sort (Batcher 1968)
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < ENTRIES / 2; i += blockDim.x) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const u32 a = sorted[low], b = sorted[high];
        if ((a > b) == ((low & size) == 0)) {
          sorted[low] = b;
          sorted[high] = a;
        }
      }
    }
  __syncthreads();
  for (int e = threadIdx.x; e < ENTRIES; e += blockDim.x)
    keys[(i64)blockIdx.x * ENTRIES + e] = sorted[e];
}

template <typename T>
__device__ __forceinline__ void apply(const u32* keys, const T* gradients, i64 row_stride,
                                      T* target, i64 n_rows, i64 count, i64 dim, i64 nonzeros,
                                      i64 chunks_per_slice, i64 tile, bool deterministic) {
  extern __shared__ unsigned char memory[];
  T* total = reinterpret_cast<T*>(memory);  // [tile, ROWS]
  T* values = total + tile * ROWS;          // [parameters, ROWS]
  const i64 parameters = ENTRIES / nonzeros;
  const i64 chunks = (count + parameters - 1) / parameters;
  const i64 row0 = (i64)blockIdx.x * ROWS;
  const i64 slice = blockIdx.y, column0 = (i64)blockIdx.z * tile;
  const i64 first = slice * chunks_per_slice;
  const i64 last = first + chunks_per_slice < chunks ? first + chunks_per_slice : chunks;
  for (i64 i = threadIdx.x; i < tile * ROWS; i += blockDim.x) total[i] = 0;
  for (i64 chunk = first; chunk < last; ++chunk) {
    const i64 base = chunk * parameters;
    for (int r = 0; r < ROWS; ++r)
      for (i64 j = threadIdx.x; j < parameters; j += blockDim.x) {
        const bool inside = row0 + r < n_rows && base + j < count;
        values[j * ROWS + r] = inside ? gradients[(row0 + r) * row_stride + base + j] : T(0);
      }
    __syncthreads();
    const u32* own = keys + chunk * ENTRIES;
    for (int i = threadIdx.x; i < ENTRIES; i += blockDim.x) {
      u32 key = own[i];
      const u32 column = column_of(key);
      // The first entry of a column sums all of them.
      if (key == PAD || column < column0 || column >= column0 + tile) continue;
      if (i > 0 && column_of(own[i - 1]) == column) continue;
      T sums[ROWS] = {};
      for (int e = i; column_of(key) == column;) {
        const T* value = values + ((key >> 1) & (ENTRIES - 1)) * ROWS;
        const T sign = (key & 1u) ? T(-1) : T(1);
        for (int r = 0; r < ROWS; ++r) sums[r] += sign * value[r];
        if (++e == ENTRIES) break;
        key = own[e];
      }
      for (int r = 0; r < ROWS; ++r) total[(column - column0) * ROWS + r] += sums[r];
    }
    __syncthreads();
  }
  __syncthreads();
  for (int r = 0; r < ROWS; ++r)
    for (i64 c = threadIdx.x; c < tile; c += blockDim.x)
      if (row0 + r < n_rows && column0 + c < dim)
        deliver<T>(target, total[c * ROWS + r], slice, row0 + r, column0 + c, n_rows, dim,
                   deterministic);
}

}  // namespace winnow

extern "C" __global__ void __launch_bounds__(256)
    sparse_plan(unsigned int* keys, long long count, long long offset, long long dim,
                long long nonzeros, long long seed, long long checkpoint) {
  winnow::plan(keys, count, offset, dim, nonzeros,
               winnow::Key{(winnow::u64)seed, (winnow::u32)checkpoint});
}

#define WINNOW_SPARSE_APPLY(T)                                                                  \
  extern "C" __global__ void __launch_bounds__(256) sparse_apply_##T(                           \
      const unsigned int* keys, const T* gradients, T* target, long long row_stride,            \
      long long n_rows, long long count, long long dim, long long nonzeros,                     \
      long long chunks_per_slice, long long tile, long long deterministic) {                    \
    winnow::apply<T>(keys, gradients, row_stride, target, n_rows, count, dim, nonzeros,         \
                     chunks_per_slice, tile, deterministic != 0);                               \
  }

WINNOW_SPARSE_APPLY(float)
WINNOW_SPARSE_APPLY(double)
