// Products of a few rows for AVX-512: a register holds inputs of one output,
// and what a look-up finds is multiplied with each of the rows at once.

#ifndef BANDWIDTH_INFERENCE_NATIVE_AVX512_ROWS_H_
#define BANDWIDTH_INFERENCE_NATIVE_AVX512_ROWS_H_

#include <immintrin.h>

#include <cstdint>

#include "activations.h"
#include "avx512_tables.h"
#include "kernels.h"

namespace bandwidth {
namespace {

// Sums of a row, so that one addition need not wait for the last.
constexpr int Chains(int rows) { return rows <= 2 ? 4 : rows == 4 ? 2 : 1; }

template <int kRows, typename Source>
void FloatRows(const Source& source, const Arranged<float>& x, int64_t first,
               const Range& range) {
  constexpr int kChains = Chains(kRows);
  const Groups& g = source.groups();
  const Window<kRows, float> rows(x, first);
  typename Source::Table table;
  for (int64_t n = range.begin; n < range.end; ++n) {
    __m512 totals[kRows], sums[kRows][kChains];
    for (int b = 0; b < kRows; ++b) {
      totals[b] = _mm512_setzero_ps();
      for (__m512& sum : sums[b]) sum = _mm512_setzero_ps();
    }
    const uint8_t* codes = source.At(n, 0);
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      source.Set(table, n, run);
      for (int64_t block = 0; block < g.run_blocks; ++block) {
        table.Block(codes, [&](int j, __m512 weights) {
#pragma GCC unroll 8
          for (int b = 0; b < kRows; ++b) {
            __m512& sum = sums[b][j % kChains];
            sum = _mm512_fmadd_ps(
                weights, _mm512_loadu_ps(rows.in[b] + at + j * kLanes), sum);
          }
        });
        codes += kBlockBytes;
        at += Source::kVectors * kLanes;
      }
      if constexpr (Source::kScaled) {
        for (int b = 0; b < kRows; ++b) {
          for (__m512& sum : sums[b]) {
            totals[b] =
                _mm512_fmadd_ps(_mm512_set1_ps(table.scale), sum, totals[b]);
            sum = _mm512_setzero_ps();
          }
        }
      }
    }
    for (int b = 0; b < kRows; ++b) {
      __m512 sum = totals[b];
      for (const __m512& each : sums[b]) sum = _mm512_add_ps(sum, each);
      range.y[rows.row[b] * range.stride + n] = _mm512_reduce_add_ps(sum);
    }
  }
}

template <int kRows, int kBits>
void CodebookWordRows(const WordCodes<kBits>& source,
                      const Arranged<int16_t>& x, int64_t first,
                      const Range& range) {
  const Groups& g = source.groups();
  const Window<kRows, int16_t> rows(x, first);
  WordTable<kBits> table;
  for (int64_t n = range.begin; n < range.end; ++n) {
    __m512 totals[kRows];
    for (__m512& total : totals) total = _mm512_setzero_ps();
    const uint8_t* codes = source.At(n, 0);
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      source.Set(table, n, run);
      __m512 sums[kRows][2];
      for (auto& own : sums) own[0] = own[1] = _mm512_setzero_ps();
      for (int64_t block = 0; block < g.run_blocks; ++block) {
        table.Block(codes, [&](int i, __m512i first, __m512i second) {
#pragma GCC unroll 4
          for (int b = 0; b < kRows; ++b) {
            // Four products of the largest integers fit into 32 bits.
            const int16_t* in = rows.in[b] + at + 64 * i;
            const __m512i sum = _mm512_dpwssd_epi32(
                _mm512_madd_epi16(first, Load(in)), second, Load(in + 32));
            __m512& own = sums[b][i % 2];
            own = _mm512_add_ps(own, _mm512_cvtepi32_ps(sum));
          }
        });
        codes += kBlockBytes;
        at += 64 * 8 / kBits;
      }
      for (int b = 0; b < kRows; ++b) {
        totals[b] = _mm512_fmadd_ps(_mm512_set1_ps(table.scale),
                                    _mm512_add_ps(sums[b][0], sums[b][1]),
                                    totals[b]);
      }
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[rows.row[b] * range.stride + n] =
          _mm512_reduce_add_ps(totals[b]) * x.scale[rows.row[b]];
    }
  }
}

template <int kRows>
void UniformWordRows(const FloatLevels& source, const Arranged<int16_t>& x,
                     int64_t first, const Range& range) {
  // 2 * 2^15 * 2^7 a product of pairs: 127 of them fit into 32 bits.
  constexpr int64_t kBlocks = 32;
  const Groups& g = source.groups();
  const Window<kRows, int16_t> rows(x, first);
  for (int64_t n = range.begin; n < range.end; ++n) {
    __m512 totals[kRows];
    for (__m512& total : totals) total = _mm512_setzero_ps();
    const uint8_t* levels = source.At(n, 0);
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      __m512 step = _mm512_set1_ps(source.m.step[g.At(n, run)]);
      for (int64_t block = 0; block < g.run_blocks; block += kBlocks) {
        const int64_t left = g.run_blocks - block;
        __m512i sums[kRows][2];
        for (auto& own : sums) own[0] = own[1] = _mm512_setzero_si512();
        for (int64_t i = 0; i < (left < kBlocks ? left : kBlocks); ++i) {
#pragma GCC unroll 2
          for (int h = 0; h < 2; ++h) {
            const __m512i weights = _mm512_cvtepi8_epi16(_mm256_loadu_si256(
                reinterpret_cast<const __m256i*>(levels + 32 * h)));
#pragma GCC unroll 4
            for (int b = 0; b < kRows; ++b) {
              sums[b][h] = _mm512_dpwssd_epi32(
                  sums[b][h], weights, Load(rows.in[b] + at + 32 * h));
            }
          }
          levels += kBlockBytes;
          at += kBlockBytes;
        }
        for (int b = 0; b < kRows; ++b) {
          for (const __m512i& sum : sums[b]) {
            totals[b] =
                _mm512_fmadd_ps(step, _mm512_cvtepi32_ps(sum), totals[b]);
          }
        }
      }
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[rows.row[b] * range.stride + n] =
          _mm512_reduce_add_ps(totals[b]) * x.scale[rows.row[b]];
    }
  }
}

template <int kRows, typename Source>
void ByteRows(const Source& source, const Arranged<int8_t>& x, int64_t first,
              const Range& range) {
  constexpr int kChains = kRows == 8 ? 2 : Chains(kRows);
  const Groups& g = source.groups();
  const Window<kRows, int8_t> rows(x, first);
  // What offsets of more inputs add is no float any more; it has to be taken
  // away from integers.
  const bool long_runs = g.run_blocks * Source::kVectors > 16;
  typename Source::Table table;
  for (int64_t n = range.begin; n < range.end; ++n) {
    float whole[kRows] = {};
    __m512 totals[kRows];
    for (__m512& total : totals) total = _mm512_setzero_ps();
    const uint8_t* codes = source.At(n, 0);
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      source.Set(table, n, run);
      __m512i sums[kRows][kChains];
      for (int b = 0; b < kRows; ++b) {
        for (__m512i& sum : sums[b]) sum = _mm512_setzero_si512();
        // What the offset of weights adds is taken away.
        sums[b][0] = _mm512_zextsi128_si512(
            _mm_cvtsi32_si128(-128 * x.sums[rows.row[b] * g.runs + run]));
      }
      // Blocks take turns where they have fewer registers than there are sums.
      constexpr int kTurns =
          kChains > Source::kVectors ? kChains / Source::kVectors : 1;
      const auto add_block = [&](int turn) {
        table.Block(codes, [&](int f, __m512i weights) {
#pragma GCC unroll 8
          for (int b = 0; b < kRows; ++b) {
            __m512i& sum = sums[b][(turn * Source::kVectors + f) % kChains];
            sum = _mm512_dpbusd_epi32(
                sum, weights, Load(rows.in[b] + at + kBlockBytes * f));
          }
        });
        codes += kBlockBytes;
        at += kBlockBytes * Source::kVectors;
      };
      int64_t block = 0;
      for (; block + kTurns <= g.run_blocks; block += kTurns) {
#pragma GCC unroll 4
        for (int turn = 0; turn < kTurns; ++turn) add_block(turn);
      }
      for (; block < g.run_blocks; ++block) add_block(0);
      for (int b = 0; b < kRows; ++b) {
        __m512i sum = sums[b][0];
        for (int i = 1; i < kChains; ++i) {
          sum = _mm512_add_epi32(sum, sums[b][i]);
        }
        if (long_runs) {
          whole[b] += _mm512_reduce_add_epi32(sum) * table.scale;
        } else {
          totals[b] = _mm512_fmadd_ps(_mm512_set1_ps(table.scale),
                                      _mm512_cvtepi32_ps(sum), totals[b]);
        }
      }
    }
    for (int b = 0; b < kRows; ++b) {
      const float sum =
          long_runs ? whole[b] : _mm512_reduce_add_ps(totals[b]);
      range.y[rows.row[b] * range.stride + n] = sum * x.scale[rows.row[b]];
    }
  }
}

}  // namespace
}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_AVX512_ROWS_H_
