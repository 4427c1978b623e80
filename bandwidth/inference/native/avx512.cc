// Kernels for AVX-512 with BW, VL, DQ, VBMI and VNNI.
//
// A book of 16 floats is one register, and one permutation looks up 16 weights;
// it ignores the upper bits of an index, so a shift of the packed words is all
// that unpacking takes. Books of bytes are looked up 64 at a time.

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "avx512_integers.h"
#include "kernels.h"

namespace bandwidth {
namespace {

using avx512::kBatch;
using avx512::Load;

// Sums a row, so that one addition need not wait for the last.
constexpr int kChains = 4;

// A book of 2^bits floats, repeated until it fills a register.
template <int kBits>
inline __m512 Book(const float* book) {
  if constexpr (kBits == 2) {
    return _mm512_broadcast_f32x4(_mm_loadu_ps(book));
  } else {
    return _mm512_loadu_ps(book);
  }
}

template <int kBits>
inline __m512 LookUp(__m512 table, const float* book, __m512i words) {
  if constexpr (kBits == 8) {
    (void)table;
    const __m512i codes = _mm512_and_si512(words, _mm512_set1_epi32(255));
    return _mm512_i32gather_ps(codes, book, 4);
  } else {
    (void)book;
    return _mm512_permutexvar_ps(words, table);
  }
}

template <int kBits, int kRows>
void CodebookRows(const Codebook& m, const Floats& x, int64_t row,
                  const Range& range) {
  constexpr int kFields = 32 / kBits;
  constexpr int kSums = kRows == 1 ? kChains : 2;
  const Groups& g = m.groups;
  const float* in[kRows];
  for (int b = 0; b < kRows; ++b) in[b] = x.x + (row + b) * x.stride;
  const uint8_t* codes =
      m.codes + range.begin * g.runs * g.run_blocks * kBlockBytes;
  for (int64_t n = range.begin; n < range.end; ++n) {
    __m512 sums[kRows][kSums];
    for (auto& own : sums) {
      for (__m512& sum : own) sum = _mm512_setzero_ps();
    }
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      const float* book = m.book + (((n / g.group) * g.runs + run) << kBits);
      const __m512 table = Book<kBits == 8 ? 4 : kBits>(book);
      for (int64_t block = 0; block < g.run_blocks; ++block) {
        __m512i words = Load(codes);
        codes += kBlockBytes;
#pragma GCC unroll 16
        for (int j = 0; j < kFields; ++j) {
          const __m512 weights = LookUp<kBits>(table, book, words);
          words = _mm512_srli_epi32(words, kBits);
#pragma GCC unroll 4
          for (int b = 0; b < kRows; ++b) {
            __m512& sum = sums[b][j % kSums];
            sum = _mm512_fmadd_ps(
                weights, _mm512_loadu_ps(in[b] + at + j * kLanes), sum);
          }
        }
        at += kFields * kLanes;
      }
    }
    for (int b = 0; b < kRows; ++b) {
      __m512 sum = sums[b][0];
      for (int i = 1; i < kSums; ++i) sum = _mm512_add_ps(sum, sums[b][i]);
      range.y[(row + b) * range.stride + n] = _mm512_reduce_add_ps(sum);
    }
  }
}

template <int kBits>
void CodebookBatch(const Codebook& m, const Floats& x, const Range& range) {
  int64_t row = 0;
  for (; row + kBatch <= x.batch; row += kBatch) {
    CodebookRows<kBits, kBatch>(m, x, row, range);
  }
  for (; row + 2 <= x.batch; row += 2) {
    CodebookRows<kBits, 2>(m, x, row, range);
  }
  for (; row < x.batch; ++row) CodebookRows<kBits, 1>(m, x, row, range);
}

void CodebookProduct(const Codebook& m, const Floats& x, const Range& range) {
  switch (m.bits) {
    case 2: return CodebookBatch<2>(m, x, range);
    case 4: return CodebookBatch<4>(m, x, range);
    default: return CodebookBatch<8>(m, x, range);
  }
}

template <int kRows>
void UniformRows(const Uniform& m, const Floats& x, int64_t row,
                 const Range& range) {
  const Groups& g = m.groups;
  const int8_t* levels =
      m.levels + range.begin * g.runs * g.run_blocks * kBlockBytes;
  for (int64_t n = range.begin; n < range.end; ++n) {
    __m512 totals[kRows];
    for (__m512& total : totals) total = _mm512_setzero_ps();
    int64_t at = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      __m512 sums[kRows][2];
      for (auto& own : sums) own[0] = own[1] = _mm512_setzero_ps();
      for (int64_t block = 0; block < g.run_blocks; ++block) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const __m128i bytes = _mm_loadu_si128(
              reinterpret_cast<const __m128i*>(levels + j * kLanes));
          const __m512 weights =
              _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#pragma GCC unroll 4
          for (int b = 0; b < kRows; ++b) {
            const float* in = x.x + (row + b) * x.stride + at + j * kLanes;
            sums[b][j % 2] =
                _mm512_fmadd_ps(weights, _mm512_loadu_ps(in), sums[b][j % 2]);
          }
        }
        levels += kBlockBytes;
        at += kBlockBytes;
      }
      const __m512 step =
          _mm512_set1_ps(m.step[(n / g.group) * g.runs + run]);
      for (int b = 0; b < kRows; ++b) {
        totals[b] = _mm512_fmadd_ps(
            step, _mm512_add_ps(sums[b][0], sums[b][1]), totals[b]);
      }
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[(row + b) * range.stride + n] = _mm512_reduce_add_ps(totals[b]);
    }
  }
}

void UniformProduct(const Uniform& m, const Floats& x, const Range& range) {
  int64_t row = 0;
  for (; row + kBatch <= x.batch; row += kBatch) {
    UniformRows<kBatch>(m, x, row, range);
  }
  for (; row < x.batch; ++row) UniformRows<1>(m, x, row, range);
}

// Columns of 16 weights, none beyond the inputs; those of `mask` alone are read.
inline __m512i Columns(const Sparse& m, int64_t i, __mmask16 mask) {
  const __m512i columns =
      m.columns16
          ? _mm512_cvtepu16_epi32(
                _mm256_maskz_loadu_epi16(mask, m.columns16 + i))
          : _mm512_maskz_loadu_epi32(mask, m.columns32 + i);
  return _mm512_min_epu32(columns, _mm512_set1_epi32(m.inputs - 1));
}

template <int kTables>  // 1: at most 16 entries, 2: at most 32, 0: any number
void SparseRows(const Sparse& m, const Floats& x, const Range& range) {
  const __m512 low = _mm512_loadu_ps(m.book);
  const __m512 high = _mm512_loadu_ps(m.book + 16);
  for (int64_t n = range.begin; n < range.end; ++n) {
    const int64_t first = std::clamp<int64_t>(m.starts[n], 0, m.nonzeros);
    const int64_t last =
        std::clamp<int64_t>(m.starts[n + 1], first, m.nonzeros);
    for (int64_t row = 0; row < x.batch; row += kBatch) {
      const int64_t rows = std::min<int64_t>(kBatch, x.batch - row);
      __m512 sums[kBatch];
      for (__m512& sum : sums) sum = _mm512_setzero_ps();
      for (int64_t i = first; i < last; i += kLanes) {
        const int64_t left = last - i;
        const __mmask16 mask =
            left >= kLanes ? 0xffff : static_cast<__mmask16>((1 << left) - 1);
        const __m512i columns = Columns(m, i, mask);
        const __m512i codes =
            _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, m.codes + i));
        __m512 weights;
        if constexpr (kTables == 1) {
          weights = _mm512_permutexvar_ps(codes, low);
        } else if constexpr (kTables == 2) {
          weights = _mm512_permutex2var_ps(low, codes, high);
        } else {
          weights = _mm512_i32gather_ps(codes, m.book, 4);
        }
        // What no column was read of counts nothing, even if x is infinite.
        for (int64_t b = 0; b < rows; ++b) {
          const __m512 read = _mm512_mask_i32gather_ps(
              _mm512_setzero_ps(), mask, columns,
              x.x + (row + b) * x.stride, 4);
          sums[b] = _mm512_fmadd_ps(weights, read, sums[b]);
        }
      }
      for (int64_t b = 0; b < rows; ++b) {
        range.y[(row + b) * range.stride + n] = _mm512_reduce_add_ps(sums[b]);
      }
    }
  }
}

void SparseProduct(const Sparse& m, const Floats& x, const Range& range) {
  if (m.entries <= 16) return SparseRows<1>(m, x, range);
  if (m.entries <= 32) return SparseRows<2>(m, x, range);
  SparseRows<0>(m, x, range);
}

}  // namespace

const Kernels& Avx512Kernels() {
  static const Kernels kernels = {
      "avx512",
      4,
      8,
      CodebookProduct,
      UniformProduct,
      SparseProduct,
      avx512::Codebook16Product,
      avx512::Uniform16,
      avx512::Codebook8Product,
      avx512::Uniform8,
  };
  return kernels;
}

}  // namespace bandwidth

#endif  // __x86_64__
