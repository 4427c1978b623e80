// Products for AVX2 with FMA.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "activations.h"
#include "avx2_rows.h"
#include "avx2_tables.h"
#include "kernels.h"
#include "lanes.h"
#include "tiles.h"

namespace bandwidth {
namespace {

// Up to so many rows, a register holds inputs of one; of bytes always, of which
// it holds four times as many.
constexpr int64_t kFewRows = 4;

// Sparse matrices have no weights to keep in registers.
struct EightSparse : EightFloats {
  static constexpr int kMostRows = 32;
};

int64_t FloatBytes(const Rows& rows) {
  return ArrangedBytes(rows, 1) +
         ColumnBytes<EightFloats>(rows.batch, rows.filled, 0);
}

template <typename Source>
void FloatProduct(const Source& source, const Rows& rows, int largest,
                  float* y, Scratch& scratch, const Threads& threads) {
  const int64_t outputs = source.outputs(), batch = rows.batch;
  const int64_t work = 2 * outputs * rows.filled * batch;
  const Arranged<float> x =
      FloatsOf(rows, largest, Source::Table::kOrder, scratch);
  if (batch <= kFewRows) {
    return threads(outputs, 1, work, [&](int64_t begin, int64_t end) {
      const Range range{begin, end, y, outputs};
      ByRows<4>(batch, [&](auto count, int64_t row) {
        FloatRows<count.value>(source, x, row, range);
      });
    });
  }
  const auto columns = ColumnsOf<EightFloats>(x.x, x.stride, rows.filled,
                                              batch, scratch, threads);
  threads(outputs, EightFloats::kSums, work, [&](int64_t begin, int64_t end) {
    TileProduct<EightFloats, Source>(source, columns)(
        {begin, end, y, outputs});
  });
}

template <typename Source>
void ByteProduct(const Source& source, const Arranged<int8_t>& x, float* y,
                 const Threads& threads) {
  const int64_t outputs = source.outputs();
  threads(outputs, 1, outputs * x.stride * x.batch,
          [&](int64_t begin, int64_t end) {
            const Range range{begin, end, y, outputs};
            ByRows<4>(x.batch, [&](auto count, int64_t row) {
              ByteRows<count.value>(source, x, row, range);
            });
          });
}

template <int kBits>
void CodebookIntegers(const Codebook& m, const Rows& rows, Mode mode, float* y,
                      const Threads& threads) {
  const int64_t runs = m.groups.runs;
  Scratch scratch(ArrangedBytes(rows, runs));
  if (mode == Mode::kInt8) {
    const auto x = IntegersOfCodes<int8_t>(rows, runs, kBits, scratch);
    return ByteProduct(ByteCodes<kBits>{{m}}, x, y, threads);
  }
  const WordCodes<kBits> source{{m}};
  const auto x = IntegersOf<int16_t>(
      rows, runs, scratch,
      [&](const int32_t* from, int64_t count, int16_t* to) {
        Reorder(from, count, WordTable<kBits>::kOrder, to);
      });
  threads(m.outputs, 1, m.outputs * rows.filled * rows.batch,
          [&](int64_t begin, int64_t end) {
            const Range range{begin, end, y, m.outputs};
            ByRows<4>(rows.batch, [&](auto count, int64_t row) {
              CodebookWordRows<count.value>(source, x, row, range);
            });
          });
}

template <int kBits>
void CodebookBits(const Codebook& m, const Rows& rows, Mode mode, float* y,
                  const Threads& threads) {
  if constexpr (kBits < 8) {
    if (mode == Mode::kInt8 ||
        (mode == Mode::kInt16 && rows.batch <= kFewRows)) {
      return CodebookIntegers<kBits>(m, rows, mode, y, threads);
    }
  }
  const int largest = mode == Mode::kExact   ? 0
                      : mode == Mode::kInt16 ? kLargest16
                                             : kLargest8;
  Scratch scratch(FloatBytes(rows) + BookBytes(m));
  Codebook rounded = m;
  rounded.book = BooksOf(
      m, mode == Mode::kInt16 ? kLargestBook16 : largest, scratch);
  FloatProduct(FloatCodes<kBits>{rounded}, rows, largest, y, scratch, threads);
}

void CodebookProduct(const Codebook& m, const Rows& rows, Mode mode, float* y,
                     const Threads& threads) {
  switch (m.bits) {
    case 2: return CodebookBits<2>(m, rows, mode, y, threads);
    case 4: return CodebookBits<4>(m, rows, mode, y, threads);
    default: return CodebookBits<8>(m, rows, mode, y, threads);
  }
}

void UniformProduct(const Uniform& m, const Rows& rows, Mode mode, float* y,
                    const Threads& threads) {
  const FloatLevels source{m};
  const int64_t runs = m.groups.runs;
  if (mode == Mode::kInt8) {
    Scratch scratch(ArrangedBytes(rows, runs));
    const auto x = IntegersOfLevels<int8_t>(rows, runs, scratch);
    return ByteProduct(ByteLevels{{m}}, x, y, threads);
  }
  if (mode == Mode::kInt16 && rows.batch <= kFewRows) {
    Scratch scratch(ArrangedBytes(rows, runs));
    const auto x = IntegersOfLevels<int16_t>(rows, runs, scratch);
    return threads(m.outputs, 1, m.outputs * rows.filled * rows.batch,
                   [&](int64_t begin, int64_t end) {
                     const Range range{begin, end, y, m.outputs};
                     ByRows<4>(rows.batch, [&](auto count, int64_t row) {
                       UniformWordRows<count.value>(source, x, row, range);
                     });
                   });
  }
  Scratch scratch(FloatBytes(rows));
  FloatProduct(source, rows, mode == Mode::kInt16 ? kLargest16 : 0, y, scratch,
               threads);
}

void SparseRow(const Sparse& m, const float* x, const Range& range) {
  const __m256i most = _mm256_set1_epi32(m.inputs - 1);
  for (int64_t n = range.begin; n < range.end; ++n) {
    const int64_t last = m.Last(n);
    int64_t i = m.First(n);
    __m256 sums = _mm256_setzero_ps();
    for (; i + kWide <= last; i += kWide) {
      const __m256i read =
          m.columns16
              ? _mm256_cvtepu16_epi32(_mm_loadu_si128(
                    reinterpret_cast<const __m128i*>(m.columns16 + i)))
              : Load(m.columns32 + i);
      const __m256i columns = _mm256_min_epu32(read, most);
      const __m256i codes = _mm256_cvtepu8_epi32(
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(m.codes + i)));
      sums = _mm256_fmadd_ps(_mm256_i32gather_ps(m.book, codes, 4),
                             _mm256_i32gather_ps(x, columns, 4), sums);
    }
    float total = Sum(sums);
    for (; i < last; ++i) total += m.book[m.codes[i]] * x[m.Column(i)];
    range.y[n] = total;
  }
}

void SparseProduct(const Sparse& m, const Rows& rows, float* y,
                   const Threads& threads) {
  const int64_t work = 4 * m.nonzeros * rows.batch;
  if (rows.batch == 1) {
    return threads(m.outputs, 1, work, [&](int64_t begin, int64_t end) {
      SparseRow(m, rows.x, {begin, end, y, m.outputs});
    });
  }
  Scratch scratch(ColumnBytes<EightSparse>(rows.batch, rows.inputs, 0));
  const auto x = ColumnsOf<EightSparse>(rows.x, rows.inputs, rows.inputs,
                                        rows.batch, scratch, threads);
  threads(m.outputs, 1, work, [&](int64_t begin, int64_t end) {
    SparseColumns<EightSparse>(m, x, {begin, end, y, m.outputs});
  });
}

}  // namespace

const Kernels& Avx2Kernels() {
  static const Kernels kernels = {"avx2", CodebookProduct, UniformProduct,
                                  SparseProduct};
  return kernels;
}

}  // namespace bandwidth

#endif  // __x86_64__
