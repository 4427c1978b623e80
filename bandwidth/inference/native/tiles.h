// Products of many rows: a register holds an input of many rows.
//
// Weights of some outputs and inputs are decoded once, into a buffer that stays
// in the first cache; one of them at a time then meets all rows. A unit is what
// is multiplied at once: a float, or four bytes. Lanes (L) say how. Of sparse
// matrices, a weight meets the column of activations that it reads.

#ifndef BANDWIDTH_INFERENCE_NATIVE_TILES_H_
#define BANDWIDTH_INFERENCE_NATIVE_TILES_H_

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "activations.h"
#include "kernels.h"

namespace bandwidth {
namespace {

constexpr int64_t kPanelRows = 128;

template <typename V, int kMost, int kRegisters>
struct FloatLanes {
  using Sum = typename V::Floats;
  using Unit = Sum;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kMostRows = kMost;
  static constexpr int kSums = kRegisters;  // registers for them

  static Sum Start(const int32_t*, int) { return Sum{}; }
  static Unit LoadUnit(const int32_t* p) {
    return V::Load(reinterpret_cast<const float*>(p));
  }
  static Unit Broadcast(const int32_t* p) {
    return V::Set(*reinterpret_cast<const float*>(p));
  }
  static Sum MultiplyAdd(Unit weight, Unit x, Sum sum) {
    return V::MultiplyAdd(weight, x, sum);
  }
  static void Add(Sum sum, float, float* to) {
    V::Store(to, V::Load(to) + sum);
  }
  static void Store(Unit weights, float scale, int32_t* to) {
    V::Store(reinterpret_cast<float*>(to), weights * V::Set(scale));
  }
};

// Four bytes of each row; weights are offset.
template <typename V>
struct ByteLanes {
  using Sum = typename V::Ints;
  using Unit = Sum;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kMostRows = V::kTileRows;
  static constexpr int kSums = V::kTileSums;

  static Sum Start(const int32_t* start, int v) {
    return V::LoadInts(start + v * kLanes);
  }
  static Unit LoadUnit(const int32_t* p) { return V::LoadInts(p); }
  static Unit Broadcast(const int32_t* p) { return V::SetInts(*p); }
  static Sum MultiplyAdd(Unit weight, Unit x, Sum sum) {
    return V::AddBytes(sum, weight, x);
  }
  static void Add(Sum sum, float scale, float* to) {
    V::Store(to, V::MultiplyAdd(V::Set(scale), V::ToFloats(sum), V::Load(to)));
  }
  static void Store(Unit weights, float, int32_t* to) {
    V::StoreInts(to, weights);
  }
};

// Activations by group of rows, [units, width] each: L::kMostRows are a group,
// fewer the last one, filled up to whole registers with zeros.
template <typename L>
struct Columns {
  const int32_t* x;
  int64_t units;
  int64_t batch;
  const float* scale;    // [batch], or null
  const int32_t* start;  // [tiles, width] as x is, or null: where sums start
  int64_t tiles;

  int64_t Width(int64_t row) const {
    const int64_t left = batch - row;
    const int64_t rows = left < L::kMostRows ? left : L::kMostRows;
    return (rows + L::kLanes - 1) / L::kLanes * L::kLanes;
  }
  static int64_t Padded(int64_t batch) {
    return (batch + L::kLanes - 1) / L::kLanes * L::kLanes;
  }
};

template <typename L>
inline int64_t ColumnBytes(int64_t batch, int64_t units, int64_t tiles) {
  return Scratch::Bytes(Columns<L>::Padded(batch) * units * sizeof(int32_t)) +
         Scratch::Bytes(Columns<L>::Padded(batch) * tiles * sizeof(int32_t));
}

// Turns four rows of four units.
inline void Transpose(const int32_t* from, int64_t stride, int32_t* to,
                      int64_t width) {
  __m128 rows[4];
  for (int r = 0; r < 4; ++r) {
    rows[r] = _mm_loadu_ps(reinterpret_cast<const float*>(from + r * stride));
  }
  _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
  for (int u = 0; u < 4; ++u) {
    _mm_storeu_ps(reinterpret_cast<float*>(to + u * width), rows[u]);
  }
}

// Turns rows from `row` on one at a time, and fills up with zeros.
inline void CopyColumns(const int32_t* from, int64_t stride, int64_t row,
                        int64_t rows, int64_t begin, int64_t end,
                        int64_t width, int32_t* to) {
  for (int64_t u = begin; u < end; ++u) {
    for (int64_t r = row; r < rows; ++r) {
      to[u * width + r] = from[r * stride + u];
    }
    for (int64_t r = rows; r < width; ++r) to[u * width + r] = 0;
  }
}

// Turns rows of units, `stride` apart, into columns.
template <typename L>
inline Columns<L> ColumnsOf(const void* rows, int64_t stride, int64_t units,
                            int64_t batch, Scratch& scratch,
                            const Threads& threads) {
  const int32_t* from = static_cast<const int32_t*>(rows);
  int32_t* made = scratch.Take<int32_t>(Columns<L>::Padded(batch) * units);
  const Columns<L> columns{made, units, batch, nullptr, nullptr, 0};
  threads(units, 256, 2 * units * batch, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < batch; row += L::kMostRows) {
      const int64_t width = columns.Width(row);
      const int64_t left = batch - row;
      const int64_t there = left < width ? left : width;
      const int32_t* own = from + row * stride;
      int32_t* to = made + row * units;
      int64_t u = begin;
      for (; u + 4 <= end; u += 4) {
        int64_t r = 0;
        for (; r + 4 <= there; r += 4) {
          Transpose(own + r * stride + u, stride, to + u * width + r, width);
        }
        CopyColumns(own, stride, r, there, u, u + 4, width, to);
      }
      CopyColumns(own, stride, 0, there, u, end, width, to);
    }
  });
  return columns;
}

// y of some outputs from sums by output, [count, width].
inline void WriteColumns(const float* sums, int64_t count, int64_t width,
                         int64_t row, int64_t rows, const float* scale,
                         int64_t n, const Range& range) {
  for (int64_t b = 0; b < rows; ++b) {
    const float factor = scale ? scale[row + b] : 1.0f;
    float* y = range.y + (row + b) * range.stride + n;
    for (int64_t o = 0; o < count; ++o) y[o] = sums[o * width + b] * factor;
  }
}

// Adds the products of kOutputs outputs and kVectors registers of rows.
template <typename L, int kVectors, int kOutputs, int kStride>
inline void Multiply(const int32_t* weights, const int32_t* x, int64_t units,
                     const int32_t* start, const float* scale, float* totals) {
  constexpr int kWidth = kVectors * L::kLanes;
  typename L::Sum sums[kOutputs][kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const auto first = L::Start(start, v);
#pragma GCC unroll 24
    for (int o = 0; o < kOutputs; ++o) sums[o][v] = first;
  }
  for (int64_t u = 0; u < units; ++u) {
    typename L::Unit in[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      in[v] = L::LoadUnit(x + u * kWidth + v * L::kLanes);
    }
#pragma GCC unroll 24
    for (int o = 0; o < kOutputs; ++o) {
      const typename L::Unit weight = L::Broadcast(weights + o * kStride + u);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[o][v] = L::MultiplyAdd(weight, in[v], sums[o][v]);
      }
    }
  }
#pragma GCC unroll 24
  for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      L::Add(sums[o][v], scale[o], totals + o * kWidth + v * L::kLanes);
    }
  }
}

template <typename L, int kVectors, int kStride>
inline void MultiplyTile(const int32_t* weights, int64_t outputs,
                         const int32_t* x, int64_t units, const int32_t* start,
                         const float* scale, float* totals) {
  constexpr int kOutputs = L::kSums / kVectors;
  for (int64_t o = 0; o < outputs; o += kOutputs) {
    Multiply<L, kVectors, kOutputs, kStride>(
        weights + o * kStride, x, units, start, scale + o,
        totals + o * kVectors * L::kLanes);
  }
}

// What a buffer of decoded weights holds.
template <typename Source>
struct TileOf {
  static constexpr int kBlockUnits = Source::kVectors * Source::V::kLanes;
  static constexpr int kBlocks = kBlockUnits < 128 ? 128 / kBlockUnits : 1;
  static constexpr int kUnits = kBlocks * kBlockUnits;

  static int64_t OfRun(const Groups& g) {
    return (g.run_blocks + kBlocks - 1) / kBlocks;
  }
};

// What is to be taken away of each tile for the offset of weights.
template <typename Source, typename L>
void SetStart(const Groups& g, Columns<L>* x, Scratch& scratch) {
  using V = typename Source::V;
  using Tile = TileOf<Source>;
  x->tiles = g.runs * Tile::OfRun(g);
  int32_t* made = scratch.Take<int32_t>(Columns<L>::Padded(x->batch) * x->tiles);
  x->start = made;
  for (int64_t row = 0; row < x->batch; row += L::kMostRows) {
    const int64_t width = x->Width(row);
    const int32_t* in = x->x + row * x->units;
    for (int64_t t = 0; t < x->tiles; ++t) {
      const int64_t done = t % Tile::OfRun(g) * Tile::kBlocks;
      const int64_t blocks =
          std::min<int64_t>(g.run_blocks - done, Tile::kBlocks);
      for (int64_t v = 0; v < width; v += L::kLanes) {
        typename V::Ints sum{};
        for (int64_t u = 0; u < blocks * Tile::kBlockUnits; ++u) {
          sum = V::AddBytes(sum, V::Offset(), V::LoadInts(in + u * width + v));
        }
        V::StoreInts(made + v, V::Minus(sum));
      }
      made += width;
      in += blocks * Tile::kBlockUnits * width;
    }
  }
}

template <typename L, typename Source>
class TileProduct {
 public:
  TileProduct(const Source& source, const Columns<L>& x)
      : source_(source), x_(x) {
    for (float& scale : scale_) scale = 1;
  }

  void operator()(const Range& range) {
    // Outputs that are not there are multiplied too.
    if ((range.end - range.begin) % L::kSums) {
      std::memset(weights_, 0, sizeof(weights_));
    }
    for (int64_t row = 0; row < x_.batch; row += kPanelRows) {
      const int64_t left = x_.batch - row;
      const int64_t rows = left < kPanelRows ? left : kPanelRows;
      for (int64_t n = range.begin; n < range.end; n += L::kSums) {
        const int64_t more = range.end - n;
        Outputs(n, more < L::kSums ? more : L::kSums, row, row + rows, range);
      }
    }
  }

 private:
  using Tile = TileOf<Source>;

  void Outputs(int64_t n, int64_t count, int64_t row, int64_t last,
               const Range& range) {
    const Groups& g = source_.m.groups;
    const int64_t padded = Columns<L>::Padded(last - row);
    std::memset(totals_, 0, L::kSums * padded * sizeof(float));
    int64_t tile = 0;
    for (int64_t run = 0; run < g.runs; ++run) {
      for (int64_t b = 0; b < g.run_blocks; b += Tile::kBlocks, ++tile) {
        const int64_t left = g.run_blocks - b;
        const int64_t blocks = left < Tile::kBlocks ? left : Tile::kBlocks;
        const int64_t block = run * g.run_blocks + b;
        for (int64_t o = 0; o < count; ++o) Decode(n, o, run, block, blocks);
        for (int64_t r = row; r < last; r += L::kMostRows) {
          MultiplyGroup(count, r, r - row, block, blocks, tile);
        }
      }
    }
    for (int64_t r = row; r < last; r += L::kMostRows) {
      const int64_t left = last - r;
      WriteColumns(totals_ + (r - row) * L::kSums, count, x_.Width(r), r,
                   left < L::kMostRows ? left : L::kMostRows, x_.scale, n,
                   range);
    }
  }

  void Decode(int64_t n, int64_t o, int64_t run, int64_t block,
              int64_t blocks) {
    source_.Set(table_, n + o, run);
    if constexpr (Source::Table::kScaled) scale_[o] = table_.scale;
    int32_t* to = weights_ + o * Tile::kUnits;
    for (int64_t b = 0; b < blocks; ++b) {
      // The next tile jumps from output to output: too short for the machine to
      // foresee.
      __builtin_prefetch(source_.m.At(n + o, block + b + Tile::kBlocks));
      table_.Block(source_.m.At(n + o, block + b), [&](int j, auto weights) {
        L::Store(weights, scale_[o], to + j * Source::V::kLanes);
      });
      to += Tile::kBlockUnits;
    }
  }

  void MultiplyGroup(int64_t count, int64_t row, int64_t within, int64_t block,
                     int64_t blocks, int64_t tile) {
    const int64_t width = x_.Width(row);
    const int32_t* in =
        x_.x + row * x_.units + block * Tile::kBlockUnits * width;
    const int32_t* start =
        x_.start ? x_.start + row * x_.tiles + tile * width : nullptr;
    float* totals = totals_ + within * L::kSums;
    const int64_t units = blocks * Tile::kBlockUnits;
    ByNumber<L::kMostRows / L::kLanes>(width / L::kLanes, [&](auto vectors) {
      MultiplyTile<L, vectors.value, Tile::kUnits>(weights_, count, in, units,
                                                   start, scale_, totals);
    });
  }

  const Source& source_;
  const Columns<L>& x_;
  typename Source::Table table_;
  alignas(64) int32_t weights_[L::kSums * Tile::kUnits];
  alignas(64) float totals_[L::kSums * kPanelRows];
  float scale_[L::kSums];
};

template <typename L, int kVectors>
[[gnu::noinline]] void SparseGroup(const Sparse& m, const float* x, const Range& range,
                 int64_t row, int64_t rows) {
  constexpr int64_t kWidth = kVectors * L::kLanes;
  constexpr int64_t kOutputs = 16;
  // Sums of a row, so that one addition need not wait for the last.
  constexpr int kChains = kVectors > 2 ? 1 : 4 / kVectors;
  alignas(64) float sums[kOutputs * kWidth];
  for (int64_t n = range.begin; n < range.end; n += kOutputs) {
    const int64_t left = range.end - n;
    const int64_t count = left < kOutputs ? left : kOutputs;
    for (int64_t o = 0; o < count; ++o) {
      typename L::Sum own[kChains][kVectors];
      for (auto& chain : own) {
        for (auto& sum : chain) sum = L::Start(nullptr, 0);
      }
      const auto add = [&](int64_t i, int chain) {
        const auto weight = L::Broadcast(
            reinterpret_cast<const int32_t*>(m.book + m.codes[i]));
        const int32_t* in = reinterpret_cast<const int32_t*>(
            x + m.Column(i) * kWidth);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          own[chain][v] = L::MultiplyAdd(
              weight, L::LoadUnit(in + v * L::kLanes), own[chain][v]);
        }
      };
      const int64_t last = m.Last(n + o);
      int64_t i = m.First(n + o);
      for (; i + kChains <= last; i += kChains) {
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c) add(i + c, c);
      }
      for (; i < last; ++i) add(i, 0);
      for (int v = 0; v < kVectors; ++v) {
        float* to = sums + o * kWidth + v * L::kLanes;
        std::memset(to, 0, L::kLanes * sizeof(float));
        for (int c = 0; c < kChains; ++c) L::Add(own[c][v], 1.0f, to);
      }
    }
    WriteColumns(sums, count, kWidth, row, rows, nullptr, n, range);
  }
}

template <typename L>
void SparseColumns(const Sparse& m, const Columns<L>& x, const Range& range) {
  for (int64_t row = 0; row < x.batch; row += L::kMostRows) {
    const int64_t left = x.batch - row;
    const int64_t rows = left < L::kMostRows ? left : L::kMostRows;
    const float* in = reinterpret_cast<const float*>(x.x) + row * x.units;
    ByNumber<L::kMostRows / L::kLanes>(
        x.Width(row) / L::kLanes, [&](auto vectors) {
          SparseGroup<L, vectors.value>(m, in, range, row, rows);
        });
  }
}

}  // namespace
}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_TILES_H_
