// Products by the registers (V) of an instruction set: which of rows.h and
// tiles.h is faster, and what they are given.

#ifndef BANDWIDTH_INFERENCE_NATIVE_PRODUCTS_H_
#define BANDWIDTH_INFERENCE_NATIVE_PRODUCTS_H_

#include <cstdint>

#include "activations.h"
#include "avx2.h"
#include "kernels.h"
#include "rows.h"
#include "sources.h"
#include "tiles.h"

namespace bandwidth {
namespace {

// More rows of words than these are multiplied as floats.
constexpr int64_t kFewCodeRows = 4;

// Divides outputs among threads, each of which goes through all rows, at most
// kMost at once.
template <int kMost, typename Source, typename T>
void DivideRows(const Source& source, const Arranged<T>& x, int64_t work,
                float* y, const Threads& threads) {
  const int64_t outputs = source.m.outputs;
  threads(outputs, 1, work, [&](int64_t begin, int64_t end) {
    const Range range{begin, end, y, outputs};
    ByRows<kMost>(x.batch, [&](auto count, int64_t row) {
      ProductRows<count.value>(source, x, row, range);
    });
  });
}

template <typename Source>
void DivideTiles(const Source& source, const Columns& x, int64_t work, float* y,
                 const Threads& threads) {
  const int64_t outputs = source.m.outputs;
  threads(outputs, Source::V::kTileSums, work, [&](int64_t begin, int64_t end) {
    TileProduct<Source>(source, x)({begin, end, y, outputs});
  });
}

template <typename V>
int64_t FloatBytes(const Rows& rows) {
  return ArrangedBytes(rows, 1) +
         ColumnBytes<V>(rows.batch, rows.filled);
}

template <typename Source>
void FloatProduct(const Source& source, const Rows& rows, int largest,
                  const Order& order, float* y, Scratch& scratch,
                  const Threads& threads) {
  using V = typename Source::V;
  const int64_t batch = rows.batch;
  const int64_t work =
      V::kFloatWork * source.m.outputs * rows.filled * batch;
  const Arranged<float> x = FloatsOf(rows, largest, order, scratch);
  if (batch <= V::kFewRows) {
    return DivideRows<V::kFewRows>(source, x, work, y, threads);
  }
  const Columns columns = ColumnsOf<V>(x.x, x.stride, rows.filled, batch,
                                       V::kTileRows, scratch, threads);
  DivideTiles(source, columns, work, y, threads);
}

// `arrange(integers, count, to)` brings those of a row in order.
template <typename Source, typename F>
void ByteProduct(const Source& source, const Rows& rows, const F& arrange,
                 float* y, const Threads& threads) {
  using V = typename Source::V;
  const Groups& g = source.m.groups;
  const int64_t batch = rows.batch;
  const int64_t work = source.m.outputs * rows.filled * batch;
  const int64_t tiles = g.runs * TileOf<Source>::OfRun(g);
  const bool few = V::kOffset == 0 || batch <= V::kFewRows;
  Scratch scratch(ArrangedBytes(rows, g.runs) +
                  (few ? 0 : ColumnBytes<V>(batch, rows.filled / 4, tiles)));
  const Arranged<int8_t> x = IntegersOf<int8_t>(rows, g.runs, scratch, arrange);
  if constexpr (V::kOffset == 0) {
    DivideRows<V::kFewRows>(source, x, work, y, threads);
  } else {
    if (few) return DivideRows<V::kFewRows>(source, x, work / 2, y, threads);
    Columns columns = ColumnsOf<V>(x.x, x.stride / 4, rows.filled / 4, batch,
                                   V::kTileRows, scratch, threads);
    columns.scale = x.scale;
    columns.tiles = tiles;
    columns.start = StartOf<V, Source>(g, columns, scratch);
    DivideTiles(source, columns, work / 2, y, threads);
  }
}

template <typename Source, typename F>
void WordProduct(const Source& source, const Rows& rows, const F& arrange,
                 float* y, const Threads& threads) {
  Scratch scratch(ArrangedBytes(rows, source.m.groups.runs));
  const Arranged<int16_t> x = IntegersOf<int16_t>(rows, source.m.groups.runs, scratch, arrange);
  DivideRows<4>(source, x, source.m.outputs * rows.filled * rows.batch, y,
                threads);
}

template <typename V, int kBits>
void CodebookBits(const Codebook& m, const Rows& rows, Mode mode, float* y,
                  const Threads& threads) {
  if constexpr (kBits < 8 || V::kLooksUp256) {
    if (mode == Mode::kInt8) {
      const Codes<V, kBits, int8_t> source{m};
      return ByteProduct(source, rows, Lookup<V, kBits, int8_t>::Arrange, y,
                         threads);
    }
    if (mode == Mode::kInt16 && rows.batch <= kFewCodeRows) {
      const Codes<V, kBits, int16_t> source{m};
      return WordProduct(source, rows, Lookup<V, kBits, int16_t>::Arrange, y,
                         threads);
    }
  }
  const int largest = Largest(mode);
  Scratch scratch(FloatBytes<V>(rows) + BookBytes(m));
  Codebook rounded = m;
  rounded.book = BooksOf(
      m, mode == Mode::kInt16 ? kLargestBook16 : largest, scratch);
  static constexpr Order kOrder = Lookup<V, kBits, float>::kOrder;
  FloatProduct(Codes<V, kBits, float>{rounded}, rows, largest, kOrder, y,
               scratch, threads);
}

template <typename V>
void CodebookProduct(const Codebook& m, const Rows& rows, Mode mode, float* y,
                     const Threads& threads) {
  switch (m.bits) {
    case 2: return CodebookBits<V, 2>(m, rows, mode, y, threads);
    case 4: return CodebookBits<V, 4>(m, rows, mode, y, threads);
    default: return CodebookBits<V, 8>(m, rows, mode, y, threads);
  }
}

template <typename V>
void UniformProduct(const Uniform& m, const Rows& rows, Mode mode, float* y,
                    const Threads& threads) {
  const Levels<V, float> source{m};
  if (mode == Mode::kInt8) {
    const Levels<V, int8_t> source{m};
    return ByteProduct(source, rows, Narrow<int8_t>, y, threads);
  }
  if (mode == Mode::kInt16 && rows.batch <= V::kFewLevelRows) {
    return WordProduct(source, rows, Narrow<int16_t>, y, threads);
  }
  Scratch scratch(FloatBytes<V>(rows));
  static constexpr Order kOrder = NaturalOrder();
  FloatProduct(source, rows, Largest(mode), kOrder, y, scratch, threads);
}

template <typename V>
void SparseBatch(const Sparse& m, const Rows& rows, float* y,
                 const Threads& threads) {
  Scratch scratch(ColumnBytes<V>(rows.batch, rows.inputs));
  const Columns x = ColumnsOf<V>(rows.x, rows.inputs, rows.inputs, rows.batch,
                                 4 * V::kLanes, scratch, threads);
  threads(m.outputs, 1, 4 * m.nonzeros * rows.batch,
          [&](int64_t begin, int64_t end) {
            SparseColumns<V>(m, x, {begin, end, y, m.outputs});
          });
}

template <typename V>
void SparseProduct(const Sparse& m, const Rows& rows, float* y,
                   const Threads& threads) {
  if (rows.batch > Eight::kLanes) return SparseBatch<V>(m, rows, y, threads);
  if (rows.batch > 1) return SparseBatch<Eight>(m, rows, y, threads);
  threads(m.outputs, 1, 4 * m.nonzeros, [&](int64_t begin, int64_t end) {
    SparseRow(V{}, m, rows.x, {begin, end, y, m.outputs});
  });
}

template <typename V>
const Kernels& KernelsOf(const char* name) {
  static const Kernels kernels = {name, CodebookProduct<V>, UniformProduct<V>,
                                  SparseProduct<V>};
  return kernels;
}

}  // namespace
}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_PRODUCTS_H_
