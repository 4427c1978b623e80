// Products of a few rows for AVX2; as avx512_rows.h.

#ifndef BANDWIDTH_INFERENCE_NATIVE_AVX2_ROWS_H_
#define BANDWIDTH_INFERENCE_NATIVE_AVX2_ROWS_H_

#include <immintrin.h>

#include <cstdint>

#include "activations.h"
#include "avx2_tables.h"
#include "kernels.h"

namespace bandwidth {
namespace {

inline float Sum(__m256 v) {
  const __m128 four =
      _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Sums of a row, so that one addition need not wait for the last.
constexpr int Chains(int rows) { return rows == 1 ? 4 : 2; }

template <int kRows, typename Source>
void FloatRows(const Source& source, const Arranged<float>& x, int64_t first,
               const Range& range) {
  constexpr int kChains = Chains(kRows);
  const Groups& g = source.groups();
  const Window<kRows, float> rows(x, first);
  typename Source::Table table;
  for (int64_t n = range.begin; n < range.end; ++n) {
    __m256 totals[kRows], sums[kRows][kChains];
    for (int b = 0; b < kRows; ++b) {
      totals[b] = _mm256_setzero_ps();
      for (__m256& sum : sums[b]) sum = _mm256_setzero_ps();
    }
    const uint8_t* codes = source.At(n, 0);
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      source.Set(table, n, run);
      for (int64_t block = 0; block < g.run_blocks; ++block) {
        table.Block(codes, [&](int j, __m256 weights) {
#pragma GCC unroll 4
          for (int b = 0; b < kRows; ++b) {
            __m256& sum = sums[b][j % kChains];
            sum = _mm256_fmadd_ps(
                weights, _mm256_loadu_ps(rows.in[b] + at + j * kWide), sum);
          }
        });
        codes += kBlockBytes;
        at += Source::kVectors * kWide;
      }
      if constexpr (Source::kScaled) {
        for (int b = 0; b < kRows; ++b) {
          for (__m256& sum : sums[b]) {
            totals[b] =
                _mm256_fmadd_ps(_mm256_set1_ps(table.scale), sum, totals[b]);
            sum = _mm256_setzero_ps();
          }
        }
      }
    }
    for (int b = 0; b < kRows; ++b) {
      __m256 sum = totals[b];
      for (const __m256& each : sums[b]) sum = _mm256_add_ps(sum, each);
      range.y[rows.row[b] * range.stride + n] = Sum(sum);
    }
  }
}

template <int kRows, int kBits>
void CodebookWordRows(const WordCodes<kBits>& source,
                      const Arranged<int16_t>& x, int64_t first,
                      const Range& range) {
  constexpr int kChains = kRows == 1 ? 2 : 1;
  const Groups& g = source.groups();
  const Window<kRows, int16_t> rows(x, first);
  WordTable<kBits> table;
  for (int64_t n = range.begin; n < range.end; ++n) {
    __m256 totals[kRows];
    for (__m256& total : totals) total = _mm256_setzero_ps();
    const uint8_t* codes = source.At(n, 0);
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      source.Set(table, n, run);
      __m256 sums[kRows][kChains];
      for (auto& own : sums) {
        for (__m256& sum : own) sum = _mm256_setzero_ps();
      }
      for (int64_t block = 0; block < g.run_blocks; ++block) {
        table.Block(codes, [&](int i, __m256i first, __m256i second) {
#pragma GCC unroll 4
          for (int b = 0; b < kRows; ++b) {
            // Four products of the largest integers fit into 32 bits.
            const int16_t* in = rows.in[b] + at + 32 * i;
            const __m256i sum =
                _mm256_add_epi32(_mm256_madd_epi16(first, Load(in)),
                                 _mm256_madd_epi16(second, Load(in + 16)));
            __m256& own = sums[b][i % kChains];
            own = _mm256_add_ps(own, _mm256_cvtepi32_ps(sum));
          }
        });
        codes += kBlockBytes;
        at += 64 * 8 / kBits;
      }
      for (int b = 0; b < kRows; ++b) {
        for (const __m256& sum : sums[b]) {
          totals[b] =
              _mm256_fmadd_ps(_mm256_set1_ps(table.scale), sum, totals[b]);
        }
      }
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[rows.row[b] * range.stride + n] =
          Sum(totals[b]) * x.scale[rows.row[b]];
    }
  }
}

template <int kRows>
void UniformWordRows(const FloatLevels& source, const Arranged<int16_t>& x,
                     int64_t first, const Range& range) {
  const Groups& g = source.groups();
  const Window<kRows, int16_t> rows(x, first);
  for (int64_t n = range.begin; n < range.end; ++n) {
    __m256 totals[kRows];
    for (__m256& total : totals) total = _mm256_setzero_ps();
    const uint8_t* levels = source.At(n, 0);
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      const __m256 step = _mm256_set1_ps(source.m.step[g.At(n, run)]);
      for (int64_t block = 0; block < g.run_blocks; ++block) {
        __m256i sums[kRows];
        for (__m256i& sum : sums) sum = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int i = 0; i < kBlockBytes; i += 16) {
          const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(
              reinterpret_cast<const __m128i*>(levels + i)));
#pragma GCC unroll 4
          for (int b = 0; b < kRows; ++b) {
            sums[b] = _mm256_add_epi32(
                sums[b],
                _mm256_madd_epi16(weights, Load(rows.in[b] + at + i)));
          }
        }
        for (int b = 0; b < kRows; ++b) {
          totals[b] =
              _mm256_fmadd_ps(step, _mm256_cvtepi32_ps(sums[b]), totals[b]);
        }
        levels += kBlockBytes;
        at += kBlockBytes;
      }
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[rows.row[b] * range.stride + n] =
          Sum(totals[b]) * x.scale[rows.row[b]];
    }
  }
}

// The instruction multiplies unsigned by signed bytes and adds pairs in 16
// bits: magnitudes, of -128 too, by bytes up to 127 with the sign, which stay
// below 2^15.
template <int kRows, typename Source>
void ByteRows(const Source& source, const Arranged<int8_t>& x, int64_t first,
              const Range& range) {
  constexpr int kChains = kRows == 1 ? 2 : 1;
  const __m256i ones = _mm256_set1_epi16(1);
  const Groups& g = source.groups();
  const Window<kRows, int8_t> rows(x, first);
  typename Source::Table table;
  for (int64_t n = range.begin; n < range.end; ++n) {
    __m256 totals[kRows];
    for (__m256& total : totals) total = _mm256_setzero_ps();
    const uint8_t* codes = source.At(n, 0);
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      source.Set(table, n, run);
      __m256i sums[kRows][kChains];
      for (auto& own : sums) {
        for (__m256i& sum : own) sum = _mm256_setzero_si256();
      }
      for (int64_t block = 0; block < g.run_blocks; ++block) {
        table.Block(codes, [&](int i, __m256i weights) {
          const __m256i magnitudes = _mm256_abs_epi8(weights);
#pragma GCC unroll 4
          for (int b = 0; b < kRows; ++b) {
            const __m256i in =
                _mm256_sign_epi8(Load(rows.in[b] + at + 32 * i), weights);
            __m256i& sum = sums[b][i % kChains];
            sum = _mm256_add_epi32(
                sum, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, in),
                                       ones));
          }
        });
        codes += kBlockBytes;
        at += 32 * Source::kVectors;
      }
      for (int b = 0; b < kRows; ++b) {
        __m256i sum = sums[b][0];
        if constexpr (kChains == 2) sum = _mm256_add_epi32(sum, sums[b][1]);
        totals[b] = _mm256_fmadd_ps(_mm256_set1_ps(table.scale),
                                    _mm256_cvtepi32_ps(sum), totals[b]);
      }
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[rows.row[b] * range.stride + n] =
          Sum(totals[b]) * x.scale[rows.row[b]];
    }
  }
}

}  // namespace
}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_AVX2_ROWS_H_
