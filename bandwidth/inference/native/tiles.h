// Products of many rows: a register holds an input of many rows.
//
// Weights of some outputs and inputs are decoded once, into a buffer that stays
// in the first cache; one of them at a time then meets all rows. A unit is what
// is multiplied at once: a float, or four bytes. Of sparse matrices, a weight
// meets the column of activations that it reads.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "activations.h"

namespace bandwidth {
namespace {

constexpr int64_t kPanelRows = 128;

// Activations by group of rows, [units, width] each: `most` rows are a group,
// fewer the last one, filled up to whole registers with zeros.
struct Columns {
  const float* x;  // or four bytes each
  int64_t units;
  int64_t batch;
  int lanes;
  int most;
  const float* scale = nullptr;    // [batch], or null
  const int32_t* offsets = nullptr;  // [tiles, width], of sums of bytes
  int64_t tiles = 0;

  int64_t Rows(int64_t row) const {
    return std::min<int64_t>(batch - row, most);
  }
  int64_t Width(int64_t row) const { return Padded(Rows(row), lanes); }
  static int64_t Padded(int64_t rows, int lanes) {
    return (rows + lanes - 1) / lanes * lanes;
  }
};

template <typename V>
inline int64_t ColumnBytes(int64_t batch, int64_t units, int64_t tiles = 0) {
  const int64_t padded = Columns::Padded(batch, V::kLanes);
  return Scratch::Bytes(padded * units * sizeof(float)) +
         Scratch::Bytes(padded * tiles * sizeof(int32_t));
}

// Turns four rows of four units.
inline void Transpose(const float* from, int64_t stride, float* to,
                      int64_t width) {
  __m128 rows[4];
  for (int r = 0; r < 4; ++r) rows[r] = _mm_loadu_ps(from + r * stride);
  _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
  for (int u = 0; u < 4; ++u) _mm_storeu_ps(to + u * width, rows[u]);
}

// Turns rows of units, `stride` apart, into columns, `most` in a group.
template <typename V>
inline Columns ColumnsOf(const void* rows, int64_t stride, int64_t units,
                         int64_t batch, int most, Scratch& scratch,
                         const Threads& threads) {
  const float* from = static_cast<const float*>(rows);
  float* made = scratch.Take<float>(Columns::Padded(batch, V::kLanes) * units);
  const Columns columns{made, units, batch, V::kLanes, most};
  threads(units, 256, 2 * units * batch, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < batch; row += most) {
      const int64_t width = columns.Width(row), there = columns.Rows(row);
      const float* own = from + row * stride;
      float* to = made + row * units;
      const int64_t turned = there / 4 * 4, fours = end - (end - begin) % 4;
      for (int64_t u = begin; u < fours; u += 4) {
        for (int64_t r = 0; r < turned; r += 4) {
          Transpose(own + r * stride + u, stride, to + u * width + r, width);
        }
      }
      for (int64_t u = turned < width ? begin : fours; u < end; ++u) {
        for (int64_t r = u < fours ? turned : 0; r < width; ++r) {
          to[u * width + r] = r < there ? own[r * stride + u] : 0;
        }
      }
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
template <typename V, bool kOfBytes, int kVectors, int kOutputs, int kStride>
inline void Multiply(const float* weights, const float* x, int64_t units,
                     const int32_t* offsets, const float* scale,
                     float* totals) {
  using Floats = typename V::Floats;
  constexpr int kWidth = kVectors * V::kLanes;
  decltype(Zero<V, kOfBytes>()) sums[kOutputs][kVectors];
  Clear(sums);
  for (int64_t u = 0; u < units; ++u) {
    Floats in[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      in[v] = V::Load(x + u * kWidth + v * V::kLanes);
    }
#pragma GCC unroll 24
    for (int o = 0; o < kOutputs; ++o) {
      const Floats weight = V::Set(weights[o * kStride + u]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[o][v] = V::MultiplyAdd(weight, in[v], sums[o][v]);
      }
    }
  }
#pragma GCC unroll 24
  for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* to = totals + o * kWidth + v * V::kLanes;
      if constexpr (kOfBytes) {
        const typename V::Ints offset = V::LoadInts(offsets + v * V::kLanes);
        const Floats sum = V::ToFloats(V::Subtract(sums[o][v], offset));
        V::Store(to, V::MultiplyAdd(V::Set(scale[o]), sum, V::Load(to)));
      } else {
        V::Store(to, V::Load(to) + sums[o][v]);
      }
    }
  }
}

// What a buffer of decoded weights holds.
template <typename Table>
struct TileOf {
  static constexpr int kBlockUnits = Table::kVectors * Table::V::kLanes;
  static constexpr int kBlocks = kBlockUnits < 128 ? 128 / kBlockUnits : 1;
  static constexpr int kUnits = kBlocks * kBlockUnits;

  static int64_t OfRun(const Groups& g) {
    return (g.run_blocks + kBlocks - 1) / kBlocks;
  }
  static int64_t Blocks(const Groups& g, int64_t tile) {
    return std::min<int64_t>(kBlocks,
                             g.run_blocks - tile % OfRun(g) * kBlocks);
  }
};

// What the offset of weights adds to sums of each tile.
template <typename Table>
const int32_t* OffsetsOf(const Groups& g, const Columns& x, Scratch& scratch) {
  using V = typename Table::V;
  using Tile = TileOf<Table>;
  int32_t* made =
      scratch.Take<int32_t>(Columns::Padded(x.batch, V::kLanes) * x.tiles);
  int32_t* to = made;
  for (int64_t row = 0; row < x.batch; row += x.most) {
    const int64_t width = x.Width(row);
    const float* in = x.x + row * x.units;
    for (int64_t t = 0; t < x.tiles; ++t, to += width) {
      const int64_t units = Tile::Blocks(g, t) * Tile::kBlockUnits;
      for (int64_t v = 0; v < width; v += V::kLanes) {
        typename V::Ints sum{};
        for (int64_t u = 0; u < units; ++u) {
          sum = V::AddBytes(sum, V::Offset(), V::LoadInts(in + u * width + v));
        }
        V::Store(to + v, sum);
      }
      in += units * width;
    }
  }
  return made;
}

template <typename Table>
class TileProduct {
 public:
  using Matrix = typename Table::Matrix;
  TileProduct(const Matrix& m, const Columns& x) : m_(m), x_(x) {}

  void operator()(const Range& range) {
    // Outputs that are not there are multiplied too.
    if ((range.end - range.begin) % kSums) {
      std::memset(weights_, 0, sizeof(weights_));
    }
    for (int64_t row = 0; row < x_.batch; row += kPanelRows) {
      const int64_t last = std::min(row + kPanelRows, x_.batch);
      for (int64_t n = range.begin; n < range.end; n += kSums) {
        Outputs(n, std::min<int64_t>(range.end - n, kSums), row, last, range);
      }
    }
  }

 private:
  using V = typename Table::V;
  using Tile = TileOf<Table>;
  static constexpr int kSums = V::kTileSums;
  static constexpr int kMost = V::kTileRows;

  void Outputs(int64_t n, int64_t count, int64_t row, int64_t last,
               const Range& range) {
    const Groups& g = m_.groups;
    std::memset(totals_, 0,
                kSums * Columns::Padded(last - row, V::kLanes) * sizeof(float));
    int64_t block = 0;
    for (int64_t tile = 0; tile < g.runs * Tile::OfRun(g); ++tile) {
      const int64_t blocks = Tile::Blocks(g, tile);
      for (int64_t o = 0; o < count; ++o) {
        Decode(n, o, tile / Tile::OfRun(g), block, blocks);
      }
      for (int64_t r = row; r < last; r += kMost) {
        MultiplyGroup(count, r, totals_ + (r - row) * kSums, block, blocks,
                      tile);
      }
      block += blocks;
    }
    for (int64_t r = row; r < last; r += kMost) {
      WriteColumns(totals_ + (r - row) * kSums, count, x_.Width(r), r,
                   x_.Rows(r), x_.scale, n, range);
    }
  }

  void Decode(int64_t n, int64_t o, int64_t run, int64_t block,
              int64_t blocks) {
    table_.Set(m_, n + o, run);
    scale_[o] = table_.scale;
    float* to = weights_ + o * Tile::kUnits;
    for (int64_t b = 0; b < blocks; ++b) {
      // The next tile jumps from output to output: too short for the machine to
      // foresee.
      __builtin_prefetch(m_.At(n + o, block + b + Tile::kBlocks));
      table_.Block(m_.At(n + o, block + b), [&](int j, auto weights) {
        if constexpr (Table::kOfBytes) {
          V::Store(to + j * V::kLanes, weights);
        } else {
          V::Store(to + j * V::kLanes, weights * V::Set(scale_[o]));
        }
      });
      to += Tile::kBlockUnits;
    }
  }

  void MultiplyGroup(int64_t count, int64_t row, float* totals, int64_t block,
                     int64_t blocks, int64_t tile) {
    const int64_t width = x_.Width(row);
    const float* in = x_.x + row * x_.units + block * Tile::kBlockUnits * width;
    const int32_t* offsets =
        x_.offsets ? x_.offsets + row * x_.tiles + tile * width : nullptr;
    ByNumber<kMost / V::kLanes>(width / V::kLanes, [&](auto vectors) {
      constexpr int kVectors = vectors.value, kOutputs = kSums / kVectors;
      for (int64_t o = 0; o < count; o += kOutputs) {
        Multiply<V, Table::kOfBytes, kVectors, kOutputs, Tile::kUnits>(
            weights_ + o * Tile::kUnits, in, blocks * Tile::kBlockUnits,
            offsets, scale_ + o, totals + o * width);
      }
    });
  }

  const Matrix& m_;
  const Columns& x_;
  Table table_;
  alignas(64) float weights_[kSums * Tile::kUnits];
  alignas(64) float totals_[kSums * kPanelRows];
  float scale_[kSums] = {};
};

template <typename V, int kVectors>
[[gnu::noinline]] void SparseGroup(const Sparse& m, const float* x,
                                   const Range& range, int64_t row,
                                   int64_t rows) {
  constexpr int64_t kWidth = kVectors * V::kLanes;
  constexpr int64_t kOutputs = 16;
  // Sums of a row, so that one addition need not wait for the last.
  constexpr int kChains = kVectors > 2 ? 1 : 4 / kVectors;
  alignas(64) float sums[kOutputs * kWidth];
  for (int64_t n = range.begin; n < range.end; n += kOutputs) {
    const int64_t count = std::min(range.end - n, kOutputs);
    for (int64_t o = 0; o < count; ++o) {
      typename V::Floats own[kChains][kVectors];
      Clear(own);
      const auto add = [&](int64_t i, int chain) {
        const auto weight = V::Set(m.book[m.codes[i]]);
        const float* in = x + m.Column(i) * kWidth;
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          own[chain][v] = V::MultiplyAdd(weight, V::Load(in + v * V::kLanes),
                                         own[chain][v]);
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
        typename V::Floats sum{};
        for (int c = 0; c < kChains; ++c) sum += own[c][v];
        V::Store(sums + o * kWidth + v * V::kLanes, sum);
      }
    }
    WriteColumns(sums, count, kWidth, row, rows, nullptr, n, range);
  }
}

}  // namespace
}  // namespace bandwidth
