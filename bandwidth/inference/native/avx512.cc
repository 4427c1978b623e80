// Kernels for AVX-512 with BW, VL, DQ, VBMI and VNNI.
//
// A book of 16 floats is one register, and one permutation looks up 16 weights;
// it ignores the upper bits of an index, so a shift of the packed words is all
// that unpacking takes. Books of bytes are looked up 64 at a time.

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace bandwidth {
namespace {

// Rows of activations that share one look-up.
constexpr int kBatch = 4;
// Sums a row, so that one addition need not wait for the last.
constexpr int kChains = 4;

inline __m512i Load(const void* p) { return _mm512_loadu_si512(p); }

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

void Codebook16Product(const Codebook& m, const IntegerBook<int16_t>& book,
                       const Integers<int16_t>& x, const Range& range) {
  if (m.bits == 2) return Codebook16<2>(m, book, x, range);
  Codebook16<4>(m, book, x, range);
}

void Uniform16(const Uniform& m, const Integers<int16_t>& x,
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

void Codebook8Product(const Codebook& m, const IntegerBook<int8_t>& book,
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

void Uniform8(const Uniform& m, const Integers<int8_t>& x,
              const Range& range) {
  int64_t row = 0;
  for (; row + kBatch <= x.batch; row += kBatch) {
    Uniform8Rows<kBatch>(m, x, row, range);
  }
  for (; row < x.batch; ++row) Uniform8Rows<1>(m, x, row, range);
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
      Codebook16Product,
      Uniform16,
      Codebook8Product,
      Uniform8,
  };
  return kernels;
}

}  // namespace bandwidth

#endif  // __x86_64__
