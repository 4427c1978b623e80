// Kernels for AVX2 with FMA.
//
// A register holds half a book of 16 floats, so that a look-up is two
// permutations and a choice. A block is met in two halves of 32 bytes.

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace bandwidth {
namespace {

constexpr int kBatch = 4;
constexpr int kWide = 8;

inline __m256i Load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

inline float Sum(__m256 v) {
  const __m128 four =
      _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline int32_t Sum(__m256i v) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v),
                                     _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

template <int kBits>
struct Book {
  __m256 low;
  __m256 high;
  const float* book;

  explicit Book(const float* values) : book(values) {
    if constexpr (kBits == 2) {
      low = high =
          _mm256_broadcast_ps(reinterpret_cast<const __m128*>(values));
    } else {
      low = _mm256_loadu_ps(values);
      high = _mm256_loadu_ps(values + kWide);
    }
  }

  // What the lowest bits of eight words mean.
  __m256 operator()(__m256i words) const {
    if constexpr (kBits == 2) return _mm256_permutevar8x32_ps(low, words);
    if constexpr (kBits == 4) {
      const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(words, 28));
      return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, words),
                              _mm256_permutevar8x32_ps(high, words), upper);
    }
    const __m256i codes = _mm256_and_si256(words, _mm256_set1_epi32(255));
    return _mm256_i32gather_ps(book, codes, 4);
  }
};

template <int kBits, int kRows>
void CodebookRows(const Codebook& m, const Floats& x, int64_t row,
                  const Range& range) {
  constexpr int kFields = 32 / kBits;
  const Groups& g = m.groups;
  const uint8_t* codes =
      m.codes + range.begin * g.runs * g.run_blocks * kBlockBytes;
  for (int64_t n = range.begin; n < range.end; ++n) {
    __m256 sums[kRows][2];
    for (auto& own : sums) own[0] = own[1] = _mm256_setzero_ps();
    const float* in = x.x + row * x.stride;
    for (int64_t run = 0; run < g.runs; ++run) {
      const Book<kBits> book(m.book +
                             (((n / g.group) * g.runs + run) << kBits));
      for (int64_t block = 0; block < g.run_blocks; ++block) {
        for (int h = 0; h < 2; ++h) {
          __m256i words = Load(codes + 32 * h);
#pragma GCC unroll 16
          for (int j = 0; j < kFields; ++j) {
            const __m256 weights = book(words);
            words = _mm256_srli_epi32(words, kBits);
#pragma GCC unroll 4
            for (int b = 0; b < kRows; ++b) {
              const float* part = in + b * x.stride + j * kLanes + h * kWide;
              sums[b][j % 2] = _mm256_fmadd_ps(weights, _mm256_loadu_ps(part),
                                               sums[b][j % 2]);
            }
          }
        }
        codes += kBlockBytes;
        in += kFields * kLanes;
      }
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[(row + b) * range.stride + n] =
          Sum(_mm256_add_ps(sums[b][0], sums[b][1]));
    }
  }
}

template <int kBits>
void CodebookBatch(const Codebook& m, const Floats& x, const Range& range) {
  int64_t row = 0;
  for (; row + kBatch <= x.batch; row += kBatch) {
    CodebookRows<kBits, kBatch>(m, x, row, range);
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
    __m256 totals[kRows];
    for (__m256& total : totals) total = _mm256_setzero_ps();
    const float* in = x.x + row * x.stride;
    for (int64_t run = 0; run < g.runs; ++run) {
      __m256 sums[kRows][2];
      for (auto& own : sums) own[0] = own[1] = _mm256_setzero_ps();
      for (int64_t block = 0; block < g.run_blocks; ++block) {
#pragma GCC unroll 8
        for (int j = 0; j < kBlockBytes / kWide; ++j) {
          const __m128i bytes = _mm_loadl_epi64(
              reinterpret_cast<const __m128i*>(levels + j * kWide));
          const __m256 weights =
              _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#pragma GCC unroll 4
          for (int b = 0; b < kRows; ++b) {
            const float* part = in + b * x.stride + j * kWide;
            sums[b][j % 2] = _mm256_fmadd_ps(weights, _mm256_loadu_ps(part),
                                             sums[b][j % 2]);
          }
        }
        levels += kBlockBytes;
        in += kBlockBytes;
      }
      const __m256 step =
          _mm256_set1_ps(m.step[(n / g.group) * g.runs + run]);
      for (int b = 0; b < kRows; ++b) {
        totals[b] = _mm256_fmadd_ps(
            step, _mm256_add_ps(sums[b][0], sums[b][1]), totals[b]);
      }
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[(row + b) * range.stride + n] = Sum(totals[b]);
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

void SparseProduct(const Sparse& m, const Floats& x, const Range& range) {
  const __m256i most = _mm256_set1_epi32(m.inputs - 1);
  for (int64_t n = range.begin; n < range.end; ++n) {
    const int64_t first = std::clamp<int64_t>(m.starts[n], 0, m.nonzeros);
    const int64_t last =
        std::clamp<int64_t>(m.starts[n + 1], first, m.nonzeros);
    const int64_t whole = first + (last - first) / kWide * kWide;
    for (int64_t b = 0; b < x.batch; ++b) {
      const float* in = x.x + b * x.stride;
      __m256 sums = _mm256_setzero_ps();
      for (int64_t i = first; i < whole; i += kWide) {
        const __m256i read =
            m.columns16
                ? _mm256_cvtepu16_epi32(_mm_loadu_si128(
                      reinterpret_cast<const __m128i*>(m.columns16 + i)))
                : Load(m.columns32 + i);
        const __m256i columns = _mm256_min_epu32(read, most);
        const __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(
            reinterpret_cast<const __m128i*>(m.codes + i)));
        sums = _mm256_fmadd_ps(_mm256_i32gather_ps(m.book, codes, 4),
                               _mm256_i32gather_ps(in, columns, 4), sums);
      }
      float total = Sum(sums);
      for (int64_t i = whole; i < last; ++i) {
        const uint32_t column = m.columns16
                                    ? m.columns16[i]
                                    : static_cast<uint32_t>(m.columns32[i]);
        total += m.book[m.codes[i]] *
                 in[std::min<uint32_t>(column, m.inputs - 1)];
      }
      range.y[b * range.stride + n] = total;
    }
  }
}

// A book of words as two tables of bytes.
template <int kBits>
struct Book16 {
  __m256i low;
  __m256i high;

  explicit Book16(const int16_t* book) {
    alignas(16) uint8_t bytes[2][16];
    for (int i = 0; i < 16; ++i) {
      const uint16_t value = book[i % (1 << kBits)];
      bytes[0][i] = value & 255;
      bytes[1][i] = value >> 8;
    }
    low = _mm256_broadcastsi128_si256(
        _mm_load_si128(reinterpret_cast<const __m128i*>(bytes[0])));
    high = _mm256_broadcastsi128_si256(
        _mm_load_si128(reinterpret_cast<const __m128i*>(bytes[1])));
  }

  __m256i operator()(__m256i words) const {
    const __m256i mask = _mm256_set1_epi16((1 << kBits) - 1);
    const __m256i codes = _mm256_and_si256(words, mask);
    // The byte above has the highest bit and so becomes 0.
    const __m256i index =
        _mm256_or_si256(codes, _mm256_set1_epi16(static_cast<short>(0x8000)));
    return _mm256_or_si256(
        _mm256_shuffle_epi8(low, index),
        _mm256_slli_epi16(_mm256_shuffle_epi8(high, index), 8));
  }
};

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
      __m256 total = _mm256_setzero_ps();
      for (int64_t run = 0; run < g.runs; ++run) {
        const int64_t shared = (n / g.group) * g.runs + run;
        const Book16<kBits> table(book.book + (shared << kBits));
        __m256 sums = _mm256_setzero_ps();
        for (int64_t block = 0; block < g.run_blocks; ++block) {
          for (int h = 0; h < 2; ++h) {
            __m256i words = Load(codes + 32 * h);
            const int16_t* part = in + 16 * h;
#pragma GCC unroll 4
            for (int f = 0; f < kFields; f += 2) {
              // Four products of the largest integers fit into 32 bits.
              const __m256i one =
                  _mm256_madd_epi16(table(words), Load(part + 32 * f));
              words = _mm256_srli_epi16(words, kBits);
              const __m256i two =
                  _mm256_madd_epi16(table(words), Load(part + 32 * (f + 1)));
              words = _mm256_srli_epi16(words, kBits);
              sums = _mm256_add_ps(
                  sums, _mm256_cvtepi32_ps(_mm256_add_epi32(one, two)));
            }
          }
          codes += kBlockBytes;
          in += 32 * kFields;
        }
        total = _mm256_fmadd_ps(_mm256_set1_ps(book.scale[shared]), sums,
                                total);
      }
      range.y[b * range.stride + n] = Sum(total) * x.scale[b];
    }
  }
}

void Codebook16Product(const Codebook& m, const IntegerBook<int16_t>& book,
                       const Integers<int16_t>& x, const Range& range) {
  if (m.bits == 2) return Codebook16<2>(m, book, x, range);
  Codebook16<4>(m, book, x, range);
}

void Uniform16(const Uniform& m, const Integers<int16_t>& x,
               const Range& range) {
  const Groups& g = m.groups;
  const int64_t width = g.runs * g.run_blocks * kBlockBytes;
  for (int64_t n = range.begin; n < range.end; ++n) {
    for (int64_t b = 0; b < x.batch; ++b) {
      const int8_t* levels = m.levels + n * width;
      const int16_t* in = x.x + b * x.stride;
      __m256 total = _mm256_setzero_ps();
      for (int64_t run = 0; run < g.runs; ++run) {
        __m256 sums = _mm256_setzero_ps();
        for (int64_t block = 0; block < g.run_blocks; ++block) {
          __m256i sum = _mm256_setzero_si256();
          for (int i = 0; i < kBlockBytes; i += 16) {
            const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(
                reinterpret_cast<const __m128i*>(levels + i)));
            sum = _mm256_add_epi32(sum,
                                   _mm256_madd_epi16(weights, Load(in + i)));
          }
          sums = _mm256_add_ps(sums, _mm256_cvtepi32_ps(sum));
          levels += kBlockBytes;
          in += kBlockBytes;
        }
        const float step = m.step[(n / g.group) * g.runs + run];
        total = _mm256_fmadd_ps(_mm256_set1_ps(step), sums, total);
      }
      range.y[b * range.stride + n] = Sum(total) * x.scale[b];
    }
  }
}

// The instruction multiplies unsigned by signed bytes and adds pairs in 16 bits:
// magnitudes by signed ones, which stay below 2^15.
inline __m256i MultiplyAdd(__m256i weights, __m256i x, __m256i sum) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights),
                                             _mm256_sign_epi8(x, weights));
  return _mm256_add_epi32(
      sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

template <int kBits>
void Codebook8(const Codebook& m, const IntegerBook<int8_t>& book,
               const Integers<int8_t>& x, const Range& range) {
  constexpr int kFields = 8 / kBits;
  const Groups& g = m.groups;
  const __m256i mask = _mm256_set1_epi8((1 << kBits) - 1);
  const int64_t row_blocks = g.runs * g.run_blocks;
  for (int64_t n = range.begin; n < range.end; ++n) {
    for (int64_t b = 0; b < x.batch; ++b) {
      const uint8_t* codes = m.codes + n * row_blocks * kBlockBytes;
      const int8_t* in = x.x + b * x.stride;
      float total = 0;
      for (int64_t run = 0; run < g.runs; ++run) {
        const int64_t shared = (n / g.group) * g.runs + run;
        alignas(16) int8_t bytes[16];
        for (int i = 0; i < 16; ++i) {
          bytes[i] = book.book[(shared << kBits) + i % (1 << kBits)];
        }
        const __m256i table = _mm256_broadcastsi128_si256(
            _mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
        __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int64_t block = 0; block < g.run_blocks; ++block) {
          for (int h = 0; h < 2; ++h) {
            __m256i words = Load(codes + 32 * h);
#pragma GCC unroll 4
            for (int f = 0; f < kFields; ++f) {
              const __m256i weights = _mm256_shuffle_epi8(
                  table, _mm256_and_si256(words, mask));
              words = _mm256_srli_epi16(words, kBits);
              sums[h] = MultiplyAdd(
                  weights, Load(in + kBlockBytes * f + 32 * h), sums[h]);
            }
          }
          codes += kBlockBytes;
          in += kBlockBytes * kFields;
        }
        total += static_cast<float>(Sum(_mm256_add_epi32(sums[0], sums[1]))) *
                 book.scale[shared];
      }
      range.y[b * range.stride + n] = total * x.scale[b];
    }
  }
}

void Codebook8Product(const Codebook& m, const IntegerBook<int8_t>& book,
                      const Integers<int8_t>& x, const Range& range) {
  if (m.bits == 2) return Codebook8<2>(m, book, x, range);
  Codebook8<4>(m, book, x, range);
}

void Uniform8(const Uniform& m, const Integers<int8_t>& x,
              const Range& range) {
  const Groups& g = m.groups;
  const int64_t width = g.runs * g.run_blocks * kBlockBytes;
  for (int64_t n = range.begin; n < range.end; ++n) {
    for (int64_t b = 0; b < x.batch; ++b) {
      const int8_t* levels = m.levels + n * width;
      const int8_t* in = x.x + b * x.stride;
      float total = 0;
      for (int64_t run = 0; run < g.runs; ++run) {
        // Bytes of -128 have no positive counterpart: 16 bits hold them.
        __m256i sums = _mm256_setzero_si256();
        for (int64_t k = 0; k < g.run_blocks * kBlockBytes; k += 16) {
          const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(
              reinterpret_cast<const __m128i*>(levels + k)));
          const __m256i values = _mm256_cvtepi8_epi16(_mm_loadu_si128(
              reinterpret_cast<const __m128i*>(in + k)));
          sums = _mm256_add_epi32(sums, _mm256_madd_epi16(weights, values));
        }
        levels += g.run_blocks * kBlockBytes;
        in += g.run_blocks * kBlockBytes;
        total += static_cast<float>(Sum(sums)) *
                 m.step[(n / g.group) * g.runs + run];
      }
      range.y[b * range.stride + n] = total * x.scale[b];
    }
  }
}

}  // namespace

const Kernels& Avx2Kernels() {
  static const Kernels kernels = {
      "avx2",
      4,
      4,
      CodebookProduct,
      UniformProduct,
      SparseProduct,
      Codebook16Product,
      Uniform16,
      Codebook8Product,
      Uniform8,
  };
  return kernels;
}

}  // namespace bandwidth

#endif  // __x86_64__
