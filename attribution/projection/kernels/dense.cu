// The dense projections: a tiled product G P of which P is drawn in shared memory, tile by tile,
// once for the 64 rows of the batch that a thread block holds, and never stored.

#include "sums.cuh"

namespace winnow {

const int TILE_ROWS = 64, TILE_COLUMNS = 128;  // of the result, in one thread block
const int DEPTH = 16;                          // parameters of P in shared memory at a time
const int SPAN = 256;                          // parameters between two partial sums
const int THREADS = 256;
const int LANES = 16;                      // threads along a row of the tile
const int MY_ROWS = TILE_ROWS / (THREADS / LANES), MY_COLUMNS = TILE_COLUMNS / LANES;
const int PITCH = TILE_ROWS + 1;           // odd: a column of G is written without bank conflicts

template <typename T, Kind KIND>
__device__ __forceinline__ void product(const T* gradients, i64 row_stride, T* target, i64 n_rows,
                                        i64 count, i64 offset, i64 dim, Key key,
                                        i64 spans_per_slice, bool deterministic) {
  extern __shared__ unsigned char memory[];
  T* left = reinterpret_cast<T*>(memory);                             // [DEPTH, PITCH]
  T* right = left + DEPTH * PITCH;                                    // [DEPTH, TILE_COLUMNS]
  u32* bits = reinterpret_cast<u32*>(right + DEPTH * TILE_COLUMNS);   // [SPAN, 4], rademacher only
  const int thread = threadIdx.x, lane = thread % LANES, own_row = thread / LANES * MY_ROWS;
  const i64 column0 = (i64)blockIdx.x * TILE_COLUMNS, row0 = (i64)blockIdx.y * TILE_ROWS;
  const i64 slice = blockIdx.z, first = slice * spans_per_slice * SPAN;
  const i64 end = first + spans_per_slice * SPAN, last = end < count ? end : count;
  T total[MY_ROWS][MY_COLUMNS] = {};
  for (i64 span = first; span < last; span += SPAN) {
    if (KIND == RADEMACHER) {
      const Words words = draw((u64)(offset + span + thread), (u32)(column0 / 128), KIND, key);
      for (int n = 0; n < 4; ++n) bits[thread * 4 + n] = words.w[n];
      __syncthreads();
    }
    T sums[MY_ROWS][MY_COLUMNS] = {};
    const i64 stop = span + SPAN < last ? span + SPAN : last;
    for (i64 base = span; base < stop; base += DEPTH) {
      for (int i = thread; i < TILE_ROWS * DEPTH; i += THREADS) {
        const int r = i / DEPTH, d = i % DEPTH;
        const bool inside = row0 + r < n_rows && base + d < stop;
        left[d * PITCH + r] = inside ? gradients[(row0 + r) * row_stride + base + d] : T(0);
      }
      if (KIND == RADEMACHER) {
        for (int i = thread; i < DEPTH * TILE_COLUMNS; i += THREADS) {
          const u32 c = i % TILE_COLUMNS;
          const u32* words = bits + (base - span + i / TILE_COLUMNS) * 4;
          right[i] = bit(words, c) ? T(-1) : T(1);
        }
      } else {
        for (int i = thread; i < DEPTH * TILE_COLUMNS / 4; i += THREADS) {
          const int d = i / (TILE_COLUMNS / 4), part = i % (TILE_COLUMNS / 4);
          const Words words =
              draw((u64)(offset + base + d), (u32)(column0 / 4 + part), KIND, key);
          float numbers[4];
          normal_pair(words.w[0], words.w[1], numbers, numbers + 1);
          normal_pair(words.w[2], words.w[3], numbers + 2, numbers + 3);
          for (int n = 0; n < 4; ++n) right[d * TILE_COLUMNS + part * 4 + n] = T(numbers[n]);
        }
      }
      __syncthreads();
      for (int d = 0; d < DEPTH; ++d) {
        T row[MY_ROWS], column[MY_COLUMNS];
        for (int r = 0; r < MY_ROWS; ++r) row[r] = left[d * PITCH + own_row + r];
        for (int c = 0; c < MY_COLUMNS; ++c) column[c] = right[d * TILE_COLUMNS + lane + c * LANES];
        for (int r = 0; r < MY_ROWS; ++r)
          for (int c = 0; c < MY_COLUMNS; ++c) sums[r][c] += row[r] * column[c];
      }
      __syncthreads();
    }
    // Sums of sums round less than one long sum over all parameters.
    for (int r = 0; r < MY_ROWS; ++r)
      for (int c = 0; c < MY_COLUMNS; ++c) total[r][c] += sums[r][c];
  }
  for (int r = 0; r < MY_ROWS; ++r)
    for (int c = 0; c < MY_COLUMNS; ++c) {
      const i64 row = row0 + own_row + r, column = column0 + lane + c * LANES;
      if (row < n_rows && column < dim)
        deliver<T>(target, total[r][c], slice, row, column, n_rows, dim, deterministic);
    }
}

}  // namespace winnow

#define WINNOW_DENSE(NAME, KIND, T)                                                             \
  extern "C" __global__ void __launch_bounds__(256) NAME##_##T(                                 \
      const T* gradients, T* target, long long row_stride, long long n_rows, long long count,   \
      long long offset, long long dim, long long seed, long long checkpoint,                    \
      long long spans_per_slice, long long deterministic) {                                     \
    winnow::product<T, winnow::KIND>(                                                           \
        gradients, row_stride, target, n_rows, count, offset, dim,                              \
        winnow::Key{(winnow::u64)seed, (winnow::u32)checkpoint}, spans_per_slice,               \
        deterministic != 0);                                                                    \
  }

WINNOW_DENSE(rademacher, RADEMACHER, float)
WINNOW_DENSE(rademacher, RADEMACHER, double)
WINNOW_DENSE(gaussian, GAUSSIAN, float)
WINNOW_DENSE(gaussian, GAUSSIAN, double)
