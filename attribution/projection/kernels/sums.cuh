// How a thread block hands over its sums. A launch cuts the parameters in slices, one for each
// blockIdx of an axis; the sums of different slices meet here and nowhere else.

#ifndef WINNOW_SUMS_CUH
#define WINNOW_SUMS_CUH

#include "random.cuh"

namespace winnow {

// Deterministic: target is [slices, rows, dim], and `merge` adds the slices in their order.
// Otherwise target is the result [rows, dim] itself, and slices add in the order they come.
template <typename T>
__device__ __forceinline__ void deliver(T* target, T value, i64 slice, i64 row, i64 column,
                                        i64 n_rows, i64 dim, bool deterministic) {
  if (deterministic)
    target[(slice * n_rows + row) * dim + column] = value;
  else
    atomicAdd(&target[row * dim + column], value);
}

template <typename T>
__device__ __forceinline__ void merge(const T* partial, T* out, i64 slices, i64 numbers) {
  const i64 stride = (i64)gridDim.x * blockDim.x;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < numbers; i += stride) {
    T sum = 0;
    for (i64 slice = 0; slice < slices; ++slice) sum += partial[slice * numbers + i];
    out[i] += sum;
  }
}

}  // namespace winnow

#endif
