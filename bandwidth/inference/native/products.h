// Products by the registers (V) of an instruction set: which of rows.h and
// tiles.h is faster, and what they are given.

#pragma once

#include "avx2.h"
#include "rows.h"
#include "tiles.h"

namespace bandwidth {
namespace {

// Integers that activations become, by mode; 0 where they stay as they are.
constexpr int kLargestOf[] = {0, kLargest16, kLargest8};

// More rows of words than these are multiplied as floats.
constexpr int64_t kFewCodeRows = 4;

// Divides outputs among threads, each of which goes through all rows, at most
// kMost at once.
template <int kMost, typename Table, typename T>
void DivideRows(const typename Table::Matrix& m, const Arranged<T>& x,
                int64_t work, const Call& call) {
  const int64_t outputs = m.outputs;
  call.threads(outputs, 1, work, [&](int64_t begin, int64_t end) {
    const Range range{begin, end, call.y, outputs};
    ByRows<kMost>(x.batch, [&](auto count, int64_t row) {
      ProductRows<count.value, Table>(m, x, row, range);
    });
  });
}

template <typename Table>
void DivideTiles(const typename Table::Matrix& m, const Columns& x,
                 int64_t work, const Call& call) {
  const int64_t outputs = m.outputs;
  call.threads(
      outputs, Table::V::kTileSums, work, [&](int64_t begin, int64_t end) {
        TileProduct<Table>(m, x)({begin, end, call.y, outputs});
      });
}

template <typename V>
int64_t FloatBytes(const Rows& rows) {
  return ArrangedBytes(rows, 1) + ColumnBytes<V>(rows.batch, rows.filled);
}

template <typename Table>
void FloatProduct(const typename Table::Matrix& m, const Call& call,
                  int largest, const Order& order, Scratch& scratch) {
  using V = typename Table::V;
  const Rows& rows = call.rows;
  const int64_t work =
      V::kFloatWork * m.outputs * rows.filled * rows.batch;
  const Arranged<float> x = FloatsOf(rows, largest, order, scratch);
  if (rows.batch <= V::kFewRows) {
    return DivideRows<V::kFewRows, Table>(m, x, work, call);
  }
  const Columns columns = ColumnsOf<V>(x.x, x.stride, rows.filled, rows.batch,
                                       V::kTileRows, scratch, call.threads);
  DivideTiles<Table>(m, columns, work, call);
}

// Of integers that `arrange(integers, count, to)` brings in order.
template <typename T, typename Table, typename F>
void IntegerProduct(const typename Table::Matrix& m, const Call& call,
                    const F& arrange) {
  using V = typename Table::V;
  constexpr bool kTiles = sizeof(T) == 1 && V::kOffset;
  const Rows& rows = call.rows;
  const Groups& g = m.groups;
  const int64_t work =
      m.outputs * rows.filled * rows.batch / (kTiles ? 2 : 1);
  const int64_t tiles = g.runs * TileOf<Table>::OfRun(g);
  const bool few = !kTiles || rows.batch <= V::kFewRows;
  Scratch scratch(
      ArrangedBytes(rows, g.runs) +
      (few ? 0 : ColumnBytes<V>(rows.batch, rows.filled / 4, tiles)));
  const Arranged<T> x = IntegersOf<T>(rows, g.runs, scratch, arrange);
  if constexpr (kTiles) {
    if (!few) {
      Columns columns =
          ColumnsOf<V>(x.x, x.stride / 4, rows.filled / 4, rows.batch,
                       V::kTileRows, scratch, call.threads);
      columns.scale = x.scale;
      columns.tiles = tiles;
      columns.offsets = OffsetsOf<Table>(g, columns, scratch);
      return DivideTiles<Table>(m, columns, work, call);
    }
  }
  DivideRows<sizeof(T) == 1 ? V::kFewRows : 4, Table>(m, x, work, call);
}

template <typename V, int kBits>
void CodebookBits(const Codebook& m, const Call& call) {
  const bool words = call.mode == Mode::kInt16;
  if constexpr (kBits < 8 || V::kLooksUp256) {
    if (call.mode == Mode::kInt8) {
      return IntegerProduct<int8_t, BookTable<V, kBits, int8_t>>(
          m, call, Lookup<V, kBits, int8_t>::Arrange);
    }
    if (words && call.rows.batch <= kFewCodeRows) {
      return IntegerProduct<int16_t, BookTable<V, kBits, int16_t>>(
          m, call, Lookup<V, kBits, int16_t>::Arrange);
    }
  }
  const int largest = kLargestOf[static_cast<int>(call.mode)];
  Scratch scratch(FloatBytes<V>(call.rows) + BookBytes(m));
  Codebook rounded = m;
  rounded.book = BooksOf(m, words ? kLargestBook16 : largest, scratch);
  FloatProduct<BookTable<V, kBits, float>>(
      rounded, call, largest, Lookup<V, kBits, float>::kOrder, scratch);
}

template <typename V>
void CodebookProduct(const Codebook& m, const Call& call) {
  switch (m.bits) {
    case 2: return CodebookBits<V, 2>(m, call);
    case 4: return CodebookBits<V, 4>(m, call);
    default: return CodebookBits<V, 8>(m, call);
  }
}

template <typename V>
void UniformProduct(const Uniform& m, const Call& call) {
  if (call.mode == Mode::kInt8) {
    return IntegerProduct<int8_t, LevelTable<V, int8_t>>(m, call,
                                                         Narrow<int8_t>);
  }
  if (call.mode == Mode::kInt16 && call.rows.batch <= V::kFewLevelRows) {
    return IntegerProduct<int16_t, LevelTable<V, int16_t>>(m, call,
                                                           Narrow<int16_t>);
  }
  Scratch scratch(FloatBytes<V>(call.rows));
  FloatProduct<LevelTable<V, float>>(
      m, call, kLargestOf[static_cast<int>(call.mode)], kNatural, scratch);
}

template <typename V>
void SparseBatch(const Sparse& m, const Call& call) {
  const Rows& rows = call.rows;
  Scratch scratch(ColumnBytes<V>(rows.batch, rows.inputs));
  const Columns x = ColumnsOf<V>(rows.x, rows.inputs, rows.inputs, rows.batch,
                                 4 * V::kLanes, scratch, call.threads);
  const auto multiply = [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < x.batch; row += x.most) {
      ByNumber<4>(x.Width(row) / V::kLanes, [&](auto vectors) {
        SparseGroup<V, vectors.value>(m, x.x + row * x.units,
                                      {begin, end, call.y, m.outputs}, row,
                                      x.Rows(row));
      });
    }
  };
  call.threads(m.outputs, 1, 4 * m.nonzeros * rows.batch, multiply);
}

template <typename V>
void SparseProduct(const Sparse& m, const Call& call) {
  if (call.rows.batch > Eight::kLanes) return SparseBatch<V>(m, call);
  if (call.rows.batch > 1) return SparseBatch<Eight>(m, call);
  call.threads(m.outputs, 1, 4 * m.nonzeros, [&](int64_t begin, int64_t end) {
    SparseRow(V{}, m, call.rows.x, {begin, end, call.y, m.outputs});
  });
}

template <typename V>
Kernels KernelsOf(const char* name) {
  return {name, CodebookProduct<V>, UniformProduct<V>, SparseProduct<V>};
}

}  // namespace
}  // namespace bandwidth
