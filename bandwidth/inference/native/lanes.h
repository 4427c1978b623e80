// Eight rows of floats in a register of AVX2.

#ifndef BANDWIDTH_INFERENCE_NATIVE_LANES_H_
#define BANDWIDTH_INFERENCE_NATIVE_LANES_H_

#include <immintrin.h>

#include <cstdint>

namespace bandwidth {
namespace {

struct EightFloats {
  using Sum = __m256;
  using Unit = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kMostRows = 16;
  static constexpr int kSums = 12;  // registers for them

  static Sum Start(const int32_t*, int) { return _mm256_setzero_ps(); }
  static Unit LoadUnit(const int32_t* p) {
    return _mm256_load_ps(reinterpret_cast<const float*>(p));
  }
  static Unit Broadcast(const int32_t* p) {
    return _mm256_broadcast_ss(reinterpret_cast<const float*>(p));
  }
  static Sum MultiplyAdd(Unit weight, Unit x, Sum sum) {
    return _mm256_fmadd_ps(weight, x, sum);
  }
  static void Add(Sum sum, float, float* to) {
    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sum));
  }
  static void Store(__m256 weights, float scale, int32_t* to) {
    _mm256_storeu_ps(reinterpret_cast<float*>(to),
                     _mm256_mul_ps(weights, _mm256_set1_ps(scale)));
  }
};

}  // namespace
}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_LANES_H_
