// Random bits of the projections, for a GPU and for the host: attribution/projection/reference.py
// in C++, bit for bit. Nothing is included, so that every compiler takes it (nvcc, NVRTC, g++).
//
// On the host, compile with -ffp-contract=off: a fused product and sum rounds once, not twice.

#ifndef WINNOW_RANDOM_CUH
#define WINNOW_RANDOM_CUH

#if defined(__CUDACC__)
#define WINNOW_BOTH __host__ __device__ __forceinline__
#else
#define WINNOW_BOTH inline
#endif

namespace winnow {

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

enum Kind { SPARSE = 0, RADEMACHER = 1, GAUSSIAN = 2, HADAMARD = 3 };

const u32 SLOT_BASE = 7u << 16;
const u32 PERMUTATION_PART = 1u << 14;
const u32 COLUMN_SIGN_PART = 1u << 15;
const int BLOCK_BITS = 12;  // places of a Hadamard block

struct Words {
  u32 w[4];
};

// Whose bits: the seed and the checkpoint.
struct Key {
  u64 seed;
  u32 checkpoint;
};

// Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011).
WINNOW_BOTH Words draw(u64 index, u32 part, Kind kind, Key key) {
  u32 x0 = (u32)index, x1 = (u32)(index >> 32) | ((u32)kind << 24);
  u32 x2 = key.checkpoint, x3 = SLOT_BASE + part;
  u32 k0 = (u32)key.seed, k1 = (u32)(key.seed >> 32);
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const u64 product0 = (u64)0xD2511F53u * x0, product1 = (u64)0xCD9E8D57u * x2;
    x0 = (u32)(product1 >> 32) ^ x1 ^ k0;
    x1 = (u32)product1;
    x2 = (u32)(product0 >> 32) ^ x3 ^ k1;
    x3 = (u32)product0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Words{{x0, x1, x2, x3}};
}

// Bit c % 128 of the words; 1 means minus.
WINNOW_BOTH u32 bit(const u32* w, u32 c) { return (w[(c >> 5) & 3u] >> (c & 31u)) & 1u; }

// Column and sign bit of a slot of the sparse projection, from the words of part slot / 4.
WINNOW_BOTH u32 sparse_column(u32 word, i64 slot, i64 dim, i64 nonzeros) {
  const i64 first = slot * dim / nonzeros, width = (slot + 1) * dim / nonzeros - first;
  return (u32)(first + (i64)(((u64)(word >> 1) * (u64)width) >> 31));
}

// A bijection of [0, 4096).
WINNOW_BOTH u32 permuted(u32 place, const Words& words) {
  const u32 mask = (1u << BLOCK_BITS) - 1u;
  u32 x = place;
  for (int n = 0; n < 4; ++n) {
    x = (x * (2u * (words.w[n] & 0x7FFu) + 1u) + (words.w[n] >> 11)) & mask;
    x ^= x >> 6;
  }
  return x;
}

// Float operations that are rounded to nearest and never fused.
#if defined(__CUDA_ARCH__)
WINNOW_BOTH float add(float a, float b) { return __fadd_rn(a, b); }
WINNOW_BOTH float mul(float a, float b) { return __fmul_rn(a, b); }
WINNOW_BOTH float over(float a, float b) { return __fdiv_rn(a, b); }
WINNOW_BOTH float root(float a) { return __fsqrt_rn(a); }
WINNOW_BOTH int as_int(float a) { return __float_as_int(a); }
WINNOW_BOTH float as_float(int a) { return __int_as_float(a); }
#else
WINNOW_BOTH float add(float a, float b) { return a + b; }
WINNOW_BOTH float mul(float a, float b) { return a * b; }
WINNOW_BOTH float over(float a, float b) { return a / b; }
WINNOW_BOTH float root(float a) { return __builtin_sqrtf(a); }
WINNOW_BOTH int as_int(float a) {
  int b;
  __builtin_memcpy(&b, &a, sizeof b);
  return b;
}
WINNOW_BOTH float as_float(int a) {
  float b;
  __builtin_memcpy(&b, &a, sizeof b);
  return b;
}
#endif

// Two standard normal numbers of two words (Box and Muller 1958); see reference.normals.
WINNOW_BOTH void normal_pair(u32 a, u32 b, float* first, float* second) {
  int bits = as_int((float)(int)(2u * (a >> 9) + 1u)) + (0x3F800000 - 0x3F3504F3);
  const float exponent = (float)((bits >> 23) - (127 + 24));
  const float m = as_float((bits & 0x7FFFFF) + 0x3F3504F3);
  const float s = over(add(m, -1.0f), add(m, 1.0f));
  float z = mul(s, s);
  float series = (float)(2.0 / 9);
  series = add(mul(series, z), (float)(2.0 / 7));
  series = add(mul(series, z), (float)(2.0 / 5));
  series = add(mul(series, z), (float)(2.0 / 3));
  const float log_m = add(mul(s, mul(z, series)), mul(2.0f, s));
  const float ln2 = (float)0.693147180559945309417;
  float radius = root(mul(-2.0f, add(mul(exponent, ln2), log_m)));

  const int step = 2 * (int)((b & 0x3FFFFFFFu) >> 7) + 1 - (1 << 23);
  const float x = mul((float)step, (float)(3.14159265358979323846 / 2 / 16777216));
  z = mul(x, x);
  float sine = (float)(1.0 / 362880);
  sine = add(mul(sine, z), (float)(-1.0 / 5040));
  sine = add(mul(sine, z), (float)(1.0 / 120));
  sine = add(mul(sine, z), (float)(-1.0 / 6));
  sine = add(mul(x, mul(z, sine)), x);
  float cosine = (float)(-1.0 / 3628800);
  cosine = add(mul(cosine, z), (float)(1.0 / 40320));
  cosine = add(mul(cosine, z), (float)(-1.0 / 720));
  cosine = add(mul(cosine, z), (float)(1.0 / 24));
  cosine = add(mul(cosine, z), (float)(-1.0 / 2));
  cosine = add(mul(z, cosine), 1.0f);
  const u32 quarter = b >> 30;
  if (quarter >= 2u) radius = -radius;
  *first = mul(radius, (quarter & 1u) ? -sine : cosine);
  *second = mul(radius, (quarter & 1u) ? cosine : sine);
}

}  // namespace winnow

#endif
