// Products for AVX-512 with BW, VL, DQ, VBMI and VNNI.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "activations.h"
#include "avx512_rows.h"
#include "avx512_tables.h"
#include "kernels.h"
#include "lanes.h"
#include "tiles.h"

namespace bandwidth {
namespace {

// Up to so many rows, a register holds inputs of one.
constexpr int64_t kFewRows = 8;
constexpr int64_t kFewCodeWordRows = 4;
constexpr int64_t kFewLevelWordRows = 8;

struct SixteenFloats {
  using Sum = __m512;
  using Unit = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kMostRows = 64;
  static constexpr int kSums = 24;  // registers for them

  static Sum Start(const int32_t*, int) { return _mm512_setzero_ps(); }
  static Unit LoadUnit(const int32_t* p) { return _mm512_load_ps(p); }
  static Unit Broadcast(const int32_t* p) {
    return _mm512_set1_ps(*reinterpret_cast<const float*>(p));
  }
  static Sum MultiplyAdd(Unit weight, Unit x, Sum sum) {
    return _mm512_fmadd_ps(weight, x, sum);
  }
  static void Add(Sum sum, float, float* to) {
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sum));
  }
  static void Store(__m512 weights, float scale, int32_t* to) {
    _mm512_storeu_ps(to,
                     _mm512_mul_ps(weights, _mm512_set1_ps(scale)));
  }
};

// Four bytes of sixteen rows; weights are offset by 128.
struct SixteenBytes {
  using Sum = __m512i;
  using Unit = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kMostRows = 64;
  static constexpr int kSums = 24;

  static Sum Start(const int32_t* start, int v) {
    return Load(start + v * kLanes);
  }
  static Unit LoadUnit(const int32_t* p) { return _mm512_load_si512(p); }
  static Unit Broadcast(const int32_t* p) { return _mm512_set1_epi32(*p); }
  static Sum MultiplyAdd(Unit weight, Unit x, Sum sum) {
    return _mm512_dpbusd_epi32(sum, weight, x);
  }
  static void Add(Sum sum, float scale, float* to) {
    _mm512_storeu_ps(
        to, _mm512_fmadd_ps(_mm512_set1_ps(scale), _mm512_cvtepi32_ps(sum),
                            _mm512_loadu_ps(to)));
  }
  static void Store(__m512i weights, float, int32_t* to) {
    _mm512_storeu_si512(to, weights);
  }
};

// What is to be taken away of each tile for the offset of weights.
template <typename Source>
void SetStart(const Groups& g, Columns<SixteenBytes>* x, Scratch& scratch) {
  using Tile = TileOf<Source>;
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(128));
  x->tiles = g.runs * Tile::OfRun(g);
  int32_t* made =
      scratch.Take<int32_t>(Columns<SixteenBytes>::Padded(x->batch) * x->tiles);
  x->start = made;
  for (int64_t row = 0; row < x->batch; row += SixteenBytes::kMostRows) {
    const int64_t width = x->Width(row);
    const int32_t* in = x->x + row * x->units;
    int64_t block = 0;
    for (int64_t t = 0; t < x->tiles; ++t) {
      const int64_t in_run = g.run_blocks - block % g.run_blocks;
      const int64_t blocks = in_run < Tile::kBlocks ? in_run : Tile::kBlocks;
      for (int64_t v = 0; v < width; v += kLanes) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t u = 0; u < blocks * Tile::kBlockUnits; ++u) {
          sum = _mm512_dpbusd_epi32(sum, offset, Load(in + u * width + v));
        }
        _mm512_storeu_si512(made + v,
                            _mm512_sub_epi32(_mm512_setzero_si512(), sum));
      }
      made += width;
      in += blocks * Tile::kBlockUnits * width;
      block += blocks;
    }
  }
}

int64_t FloatBytes(const Rows& rows) {
  return ArrangedBytes(rows, 1) +
         ColumnBytes<SixteenFloats>(rows.batch, rows.filled, 0);
}

template <typename Source>
void FloatProduct(const Source& source, const Rows& rows, int largest,
                  float* y, Scratch& scratch, const Threads& threads) {
  const int64_t outputs = source.outputs(), batch = rows.batch;
  const int64_t work = outputs * rows.filled * batch;
  constexpr Order kOrder = NaturalOrder();
  const Arranged<float> x = FloatsOf(rows, largest, kOrder, scratch);
  if (batch <= kFewRows) {
    return threads(outputs, 1, work, [&](int64_t begin, int64_t end) {
      const Range range{begin, end, y, outputs};
      ByRows<8>(batch, [&](auto count, int64_t row) {
        FloatRows<count.value>(source, x, row, range);
      });
    });
  }
  const auto columns = ColumnsOf<SixteenFloats>(x.x, x.stride, rows.filled,
                                                batch, scratch, threads);
  threads(outputs, SixteenFloats::kSums, work,
          [&](int64_t begin, int64_t end) {
            TileProduct<SixteenFloats, Source>(source, columns)(
                {begin, end, y, outputs});
          });
}

template <typename Source>
void ByteProduct(const Source& source, const Rows& rows,
                 const Arranged<int8_t>& x, float* y, Scratch& scratch,
                 const Threads& threads) {
  const int64_t outputs = source.outputs(), batch = rows.batch;
  const int64_t work = outputs * rows.filled * batch / 2;
  if (batch <= kFewRows) {
    return threads(outputs, 1, work, [&](int64_t begin, int64_t end) {
      const Range range{begin, end, y, outputs};
      ByRows<8>(batch, [&](auto count, int64_t row) {
        ByteRows<count.value>(source, x, row, range);
      });
    });
  }
  auto columns = ColumnsOf<SixteenBytes>(x.x, x.stride / 4, rows.filled / 4,
                                         batch, scratch, threads);
  columns.scale = x.scale;
  SetStart<Source>(source.groups(), &columns, scratch);
  threads(outputs, SixteenBytes::kSums, work, [&](int64_t begin, int64_t end) {
    TileProduct<SixteenBytes, Source>(source, columns)(
        {begin, end, y, outputs});
  });
}

template <typename Source>
int64_t ByteColumnBytes(const Source& source, const Rows& rows) {
  const Groups& g = source.groups();
  return ColumnBytes<SixteenBytes>(rows.batch, rows.filled / 4,
                                   g.runs * TileOf<Source>::OfRun(g));
}

template <int kBits>
void CodebookBits(const Codebook& m, const Rows& rows, Mode mode, float* y,
                  const Threads& threads) {
  const int64_t runs = m.groups.runs;
  if (mode == Mode::kInt8) {
    const ByteCodes<kBits> source{{m}};
    Scratch scratch(ArrangedBytes(rows, runs) + ByteColumnBytes(source, rows));
    const auto x = IntegersOfCodes<int8_t>(rows, runs, kBits, scratch);
    return ByteProduct(source, rows, x, y, scratch, threads);
  }
  if (mode == Mode::kInt16 && rows.batch <= kFewCodeWordRows) {
    const WordCodes<kBits> source{{m}};
    Scratch scratch(ArrangedBytes(rows, runs));
    const auto x = IntegersOfCodes<int16_t>(rows, runs, kBits, scratch);
    return threads(m.outputs, 1, m.outputs * rows.filled * rows.batch,
                   [&](int64_t begin, int64_t end) {
                     const Range range{begin, end, y, m.outputs};
                     ByRows<4>(rows.batch, [&](auto count, int64_t row) {
                       CodebookWordRows<count.value>(source, x, row, range);
                     });
                   });
  }
  const bool exact = mode == Mode::kExact;
  Scratch scratch(FloatBytes(rows) + BookBytes(m));
  Codebook rounded = m;
  rounded.book = BooksOf(m, exact ? 0 : kLargestBook16, scratch);
  FloatProduct(FloatCodes<kBits>{rounded}, rows, exact ? 0 : kLargest16, y,
               scratch, threads);
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
    const ByteLevels bytes{{m}};
    Scratch scratch(ArrangedBytes(rows, runs) + ByteColumnBytes(bytes, rows));
    const auto x = IntegersOfLevels<int8_t>(rows, runs, scratch);
    return ByteProduct(bytes, rows, x, y, scratch, threads);
  }
  if (mode == Mode::kInt16 && rows.batch <= kFewLevelWordRows) {
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

// Columns of 16 weights, none beyond the inputs; only those of `mask` are read.
inline __m512i SparseInputs(const Sparse& m, int64_t i, __mmask16 mask) {
  const __m512i columns =
      m.columns16
          ? _mm512_cvtepu16_epi32(
                _mm256_maskz_loadu_epi16(mask, m.columns16 + i))
          : _mm512_maskz_loadu_epi32(mask, m.columns32 + i);
  return _mm512_min_epu32(columns, _mm512_set1_epi32(m.inputs - 1));
}

template <int kTables>  // 1: at most 16 entries, 2: at most 32, 0: any number
void SparseRow(const Sparse& m, const float* x, const Range& range) {
  const __m512 low = _mm512_loadu_ps(m.book);
  const __m512 high = _mm512_loadu_ps(m.book + 16);
  for (int64_t n = range.begin; n < range.end; ++n) {
    const int64_t last = m.Last(n);
    __m512 sums = _mm512_setzero_ps();
    for (int64_t i = m.First(n); i < last; i += kLanes) {
      const int64_t left = last - i;
      const __mmask16 mask =
          left >= kLanes ? 0xffff : static_cast<__mmask16>((1 << left) - 1);
      const __m512i codes =
          _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, m.codes + i));
      __m512 weights;
      if constexpr (kTables == 1) {
        weights = _mm512_permutexvar_ps(codes, low);
      } else if constexpr (kTables == 2) {
        weights = _mm512_permutex2var_ps(low, codes, high);
      } else {
        weights = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, codes,
                                           m.book, 4);
      }
      // What no column was read of counts nothing, even if x is infinite.
      const __m512 read =
          _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask,
                                   SparseInputs(m, i, mask), x, 4);
      sums = _mm512_fmadd_ps(weights, read, sums);
    }
    range.y[n] = _mm512_reduce_add_ps(sums);
  }
}

template <typename L>
void SparseBatch(const Sparse& m, const Rows& rows, float* y,
                 const Threads& threads) {
  Scratch scratch(ColumnBytes<L>(rows.batch, rows.inputs, 0));
  const auto x = ColumnsOf<L>(rows.x, rows.inputs, rows.inputs, rows.batch,
                              scratch, threads);
  threads(m.outputs, 1, 4 * m.nonzeros * rows.batch,
          [&](int64_t begin, int64_t end) {
            SparseColumns<L>(m, x, {begin, end, y, m.outputs});
          });
}

void SparseProduct(const Sparse& m, const Rows& rows, float* y,
                   const Threads& threads) {
  if (rows.batch > EightFloats::kLanes) {
    return SparseBatch<SixteenFloats>(m, rows, y, threads);
  }
  if (rows.batch > 1) return SparseBatch<EightFloats>(m, rows, y, threads);
  threads(m.outputs, 1, 4 * m.nonzeros, [&](int64_t begin, int64_t end) {
    const Range range{begin, end, y, m.outputs};
    if (m.entries <= 16) return SparseRow<1>(m, rows.x, range);
    if (m.entries <= 32) return SparseRow<2>(m, rows.x, range);
    SparseRow<0>(m, rows.x, range);
  });
}

}  // namespace

const Kernels& Avx512Kernels() {
  static const Kernels kernels = {"avx512", CodebookProduct, UniformProduct,
                                  SparseProduct};
  return kernels;
}

}  // namespace bandwidth

#endif  // __x86_64__
