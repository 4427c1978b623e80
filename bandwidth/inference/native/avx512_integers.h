// Kernels of integers for AVX-512; part of avx512.cc, which is compiled for it.

#ifndef BANDWIDTH_INFERENCE_NATIVE_AVX512_INTEGERS_H_
#define BANDWIDTH_INFERENCE_NATIVE_AVX512_INTEGERS_H_

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace bandwidth {
namespace avx512 {

// Rows of activations that share one look-up.
constexpr int kBatch = 4;

inline __m512i Load(const void* p) { return _mm512_loadu_si512(p); }

// A book of 2^bits words, repeated until it fills a register.
template <int kBits>
inline __m512i Book16(const int16_t* book) {
  if constexpr (kBits == 2) {
    int64_t words;
    std::memcpy(&words, book, sizeof(words));
    return _mm512_set1_epi64(words);
  } else {
    return _mm512_broadcast_i64x4(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(book)));
  }
}

template <int kBits>
void Codebook16(const Codebook& m, const IntegerBook<int16_t>& book,
                const Integers<int16_t>& x, const Range& range) {
  constexpr int kFields = 16 / kBits;
  const Groups& g = m.groups;
  const int64_t row_blocks = g.runs * g.run_blocks;
  for (int64_t n = range.begin; n < range.end; ++n) {
    for (int64_t b = 0; b < x.batch; ++b) {
      const uint8_t* codes = m.codes + n * row_blocks * kBlockBytes;
      const int16_t* in = x.x + b * x.stride;
      __m512 total = _mm512_setzero_ps();
      for (int64_t run = 0; run < g.runs; ++run) {
        const int64_t shared = (n / g.group) * g.runs + run;
        const __m512i table = Book16<kBits>(book.book + (shared << kBits));
        __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int64_t block = 0; block < g.run_blocks; ++block) {
          __m512i words = Load(codes);
          codes += kBlockBytes;
#pragma GCC unroll 4
          for (int f = 0; f < kFields; f += 2) {
            // Four products of the largest integers fit into 32 bits.
            __m512i sum = _mm512_madd_epi16(
                _mm512_permutexvar_epi16(words, table), Load(in));
            words = _mm512_srli_epi16(words, kBits);
            sum = _mm512_dpwssd_epi32(
                sum, _mm512_permutexvar_epi16(words, table), Load(in + 32));
            words = _mm512_srli_epi16(words, kBits);
            in += 64;
            __m512& own = sums[f / 2 % 2];
            own = _mm512_add_ps(own, _mm512_cvtepi32_ps(sum));
          }
        }
        total = _mm512_fmadd_ps(_mm512_set1_ps(book.scale[shared]),
                                _mm512_add_ps(sums[0], sums[1]), total);
      }
      range.y[b * range.stride + n] =
          _mm512_reduce_add_ps(total) * x.scale[b];
    }
  }
}

inline void Codebook16Product(const Codebook& m, const IntegerBook<int16_t>& book,
                       const Integers<int16_t>& x, const Range& range) {
  if (m.bits == 2) return Codebook16<2>(m, book, x, range);
  Codebook16<4>(m, book, x, range);
}

inline void Uniform16(const Uniform& m, const Integers<int16_t>& x,
               const Range& range) {
  // 2 * 2^15 * 2^7 a product of pairs: 127 of them fit into 32 bits.
  constexpr int64_t kBlocks = 32;
  const Groups& g = m.groups;
  const int64_t width = g.runs * g.run_blocks * kBlockBytes;
  for (int64_t n = range.begin; n < range.end; ++n) {
    for (int64_t b = 0; b < x.batch; ++b) {
      const int8_t* levels = m.levels + n * width;
      const int16_t* in = x.x + b * x.stride;
      __m512 total = _mm512_setzero_ps();
      for (int64_t run = 0; run < g.runs; ++run) {
        __m512 sums = _mm512_setzero_ps();
        for (int64_t block = 0; block < g.run_blocks; block += kBlocks) {
          const int64_t end = std::min(block + kBlocks, g.run_blocks);
          __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
          for (int64_t i = block; i < end; ++i) {
            for (int h = 0; h < 2; ++h) {
              const __m512i weights = _mm512_cvtepi8_epi16(_mm256_loadu_si256(
                  reinterpret_cast<const __m256i*>(levels + 32 * h)));
              sum[h] = _mm512_dpwssd_epi32(sum[h], weights, Load(in + 32 * h));
            }
            levels += kBlockBytes;
            in += kBlockBytes;
          }
          sums = _mm512_add_ps(sums, _mm512_cvtepi32_ps(sum[0]));
          sums = _mm512_add_ps(sums, _mm512_cvtepi32_ps(sum[1]));
        }
        const float step = m.step[(n / g.group) * g.runs + run];
        total = _mm512_fmadd_ps(_mm512_set1_ps(step), sums, total);
      }
      range.y[b * range.stride + n] =
          _mm512_reduce_add_ps(total) * x.scale[b];
    }
  }
}

// Books of bytes, offset by 128: the instruction multiplies unsigned by signed.
template <int kBits>
struct Bytes {
  static constexpr int kTables = kBits == 8 ? 4 : 1;
  __m512i tables[kTables];

  explicit Bytes(const int8_t* book) {
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(128));
    if constexpr (kBits == 2) {
      int32_t bytes;
      std::memcpy(&bytes, book, sizeof(bytes));
      tables[0] = _mm512_set1_epi32(bytes);
    } else if constexpr (kBits == 4) {
      tables[0] = _mm512_broadcast_i32x4(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(book)));
    } else {
      for (int i = 0; i < kTables; ++i) tables[i] = Load(book + 64 * i);
    }
    for (__m512i& table : tables) table = _mm512_xor_si512(table, offset);
  }

  __m512i operator()(__m512i codes) const {
    if constexpr (kBits == 8) {
      const __m512i low =
          _mm512_permutex2var_epi8(tables[0], codes, tables[1]);
      const __m512i high =
          _mm512_permutex2var_epi8(tables[2], codes, tables[3]);
      return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
    } else {
      const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
      return _mm512_shuffle_epi8(tables[0], _mm512_and_si512(codes, mask));
    }
  }
};

template <int kBits, int kRows>
void Codebook8Rows(const Codebook& m, const IntegerBook<int8_t>& book,
                   const Integers<int8_t>& x, int64_t row,
                   const Range& range) {
  constexpr int kFields = 8 / kBits;
  const Groups& g = m.groups;
  const int64_t row_blocks = g.runs * g.run_blocks;
  for (int64_t n = range.begin; n < range.end; ++n) {
    const uint8_t* codes = m.codes + n * row_blocks * kBlockBytes;
    float totals[kRows] = {};
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      const int64_t shared = (n / g.group) * g.runs + run;
      const Bytes<kBits> bytes(book.book + (shared << kBits));
      __m512i sums[kRows][2];
      for (auto& own : sums) own[0] = own[1] = _mm512_setzero_si512();
      for (int64_t block = 0; block < g.run_blocks; ++block) {
        __m512i words = Load(codes);
        codes += kBlockBytes;
#pragma GCC unroll 4
        for (int f = 0; f < kFields; ++f) {
          const __m512i weights = bytes(words);
          words = _mm512_srli_epi16(words, kBits);
#pragma GCC unroll 4
          for (int b = 0; b < kRows; ++b) {
            const int8_t* in = x.x + (row + b) * x.stride + at;
            // Of one field blocks take turns.
            __m512i& sum = sums[b][(kFields == 1 ? block : f) % 2];
            sum = _mm512_dpbusd_epi32(sum, weights, Load(in));
          }
          at += kBlockBytes;
        }
      }
      for (int b = 0; b < kRows; ++b) {
        const int32_t sum =
            _mm512_reduce_add_epi32(_mm512_add_epi32(sums[b][0], sums[b][1]));
        const int32_t offset = 128 * x.sums[(row + b) * g.runs + run];
        totals[b] += static_cast<float>(sum - offset) * book.scale[shared];
      }
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[(row + b) * range.stride + n] = totals[b] * x.scale[row + b];
    }
  }
}

template <int kBits>
void Codebook8(const Codebook& m, const IntegerBook<int8_t>& book,
               const Integers<int8_t>& x, const Range& range) {
  int64_t row = 0;
  for (; row + kBatch <= x.batch; row += kBatch) {
    Codebook8Rows<kBits, kBatch>(m, book, x, row, range);
  }
  for (; row < x.batch; ++row) {
    Codebook8Rows<kBits, 1>(m, book, x, row, range);
  }
}

inline void Codebook8Product(const Codebook& m, const IntegerBook<int8_t>& book,
                      const Integers<int8_t>& x, const Range& range) {
  switch (m.bits) {
    case 2: return Codebook8<2>(m, book, x, range);
    case 4: return Codebook8<4>(m, book, x, range);
    default: return Codebook8<8>(m, book, x, range);
  }
}

template <int kRows>
void Uniform8Rows(const Uniform& m, const Integers<int8_t>& x, int64_t row,
                  const Range& range) {
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(128));
  const Groups& g = m.groups;
  const int64_t width = g.runs * g.run_blocks * kBlockBytes;
  for (int64_t n = range.begin; n < range.end; ++n) {
    const int8_t* levels = m.levels + n * width;
    float totals[kRows] = {};
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      __m512i sums[kRows][2];
      for (auto& own : sums) own[0] = own[1] = _mm512_setzero_si512();
      for (int64_t block = 0; block < g.run_blocks; ++block) {
        const __m512i weights =
            _mm512_xor_si512(Load(levels + at), offset);
        for (int b = 0; b < kRows; ++b) {
          const int8_t* in = x.x + (row + b) * x.stride + at;
          __m512i& sum = sums[b][block % 2];
          sum = _mm512_dpbusd_epi32(sum, weights, Load(in));
        }
        at += kBlockBytes;
      }
      const float step = m.step[(n / g.group) * g.runs + run];
      for (int b = 0; b < kRows; ++b) {
        const int32_t sum =
            _mm512_reduce_add_epi32(_mm512_add_epi32(sums[b][0], sums[b][1]));
        const int32_t less = 128 * x.sums[(row + b) * g.runs + run];
        totals[b] += static_cast<float>(sum - less) * step;
      }
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[(row + b) * range.stride + n] = totals[b] * x.scale[row + b];
    }
  }
}

inline void Uniform8(const Uniform& m, const Integers<int8_t>& x,
              const Range& range) {
  int64_t row = 0;
  for (; row + kBatch <= x.batch; row += kBatch) {
    Uniform8Rows<kBatch>(m, x, row, range);
  }
  for (; row < x.batch; ++row) Uniform8Rows<1>(m, x, row, range);
}

}  // namespace avx512
}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_AVX512_INTEGERS_H_
