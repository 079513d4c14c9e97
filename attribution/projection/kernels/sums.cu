// out[i] += the sum of partial[s, i] over the slices s, in their order.

#include "sums.cuh"

extern "C" __global__ void merge_float(const float* partial, float* out, long long slices,
                                       long long numbers) {
  winnow::merge<float>(partial, out, slices, numbers);
}

extern "C" __global__ void merge_double(const double* partial, double* out, long long slices,
                                        long long numbers) {
  winnow::merge<double>(partial, out, slices, numbers);
}
