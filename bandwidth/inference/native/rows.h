// What blocks of a matrix mean, and products of a few rows: a register holds
// inputs of one output, and what a look-up finds is multiplied with each of the
// rows at once.
//
// Registers (V) are those of an instruction set, which also has its ways to look
// codes up. The table of a source holds what codes of an output and a run mean,
// and hands over the weights of a block, a register at a time.

#pragma once

#include <algorithm>
#include <cstdint>

#include "activations.h"
#include "kernels.h"

namespace bandwidth {
namespace {

// A book in registers. `Block(codes, each)` calls `each(j, weights)` with
// register j of what a block of codes means; of words `each(j, first, second)`,
// with two registers between which its inputs are divided. A book of floats has
// its 2^kBits entries, one of integers at least 16. `kSlots` of them are kept
// for runs to come; none where setting one costs nothing.
template <typename V, int kBits, typename T>
class Lookup;

template <typename V, int kBits, typename T>
class BookTable {
 public:
  static constexpr bool kScaled = sizeof(T) < sizeof(float);

  float scale;  // of integers

  void Set(const float* book, int64_t run) {
    Made& made = made_[run % kSlots];
    if (made.book != book) {
      made.book = book;
      made.scale = made.lookup.Set(book);
    }
    scale = made.scale;
    if (kSlots > 1) now_ = made.lookup;
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    (kSlots > 1 ? now_ : made_[0].lookup).Block(codes, each);
  }

 private:
  using Found = Lookup<V, kBits, T>;
  static constexpr int kSlots = Found::kSlots;

  struct Made {
    const float* book = nullptr;
    float scale;
    Found lookup;
  };

  Made made_[kSlots];
  Found now_;
};

template <typename Registers, int kBits, typename T>
struct Codes {
  using V = Registers;
  using Table = BookTable<V, kBits, T>;
  static constexpr bool kOfBytes = sizeof(T) == 1;
  static constexpr int kVectors = Lookup<V, kBits, T>::kVectors;
  const Codebook& m;

  void Set(Table& table, int64_t n, int64_t run) const {
    table.Set(m.book + (m.groups.At(n, run) << kBits), run);
  }
};

// Weights are what `Block` gives times `scale`.
template <typename V, typename T>
struct LevelTable {
  static constexpr bool kScaled = true;
  float scale;

  template <typename F>
  void Block(const uint8_t* levels, F&& each) const {
#pragma GCC unroll 8
    for (int j = 0; j < kBlockBytes * int{sizeof(T)} / V::kBytes; ++j) {
      if constexpr (sizeof(T) == 1) {
        each(j, V::Bytes(V::LoadInts(levels + j * V::kBytes)));
      } else {
        each(j, V::LevelFloats(levels + j * V::kLanes));
      }
    }
  }
};

template <typename Registers, typename T>
struct Levels {
  using V = Registers;
  using Table = LevelTable<V, T>;
  static constexpr bool kOfBytes = sizeof(T) == 1;
  static constexpr int kVectors = kBlockBytes * sizeof(T) / V::kBytes;
  const Uniform& m;

  void Set(Table& table, int64_t n, int64_t run) const {
    table.scale = m.step[m.groups.At(n, run)];
  }
};

// Rows of kOutputs outputs from n on. Two of them read activations once: many
// rows do not stay in the first cache.
template <int kRows, int kOutputs, typename Source>
[[gnu::always_inline]] inline void FloatOutputs(
    const Source& source, const Window<kRows, float>& rows,
    typename Source::Table (&tables)[kOutputs], int64_t n,
    const Range& range) {
  using V = typename Source::V;
  using Floats = typename V::Floats;
  constexpr int kChains = kOutputs == 1 ? V::FloatChains(kRows) : 1;
  constexpr int kLast = kOutputs - 1;
  const Groups& g = source.m.groups;
  Floats totals[kOutputs][kRows], sums[kOutputs][kRows][kChains];
  Clear(totals);
  Clear(sums);
  int64_t block = 0;
  for (int64_t run = 0; run < g.runs; ++run) {
    for (int o = 0; o < kOutputs; ++o) source.Set(tables[o], n + o, run);
    for (int64_t last = block + g.run_blocks; block < last; ++block) {
      const int64_t at = block * Source::kVectors * V::kLanes;
      Floats first[Source::kVectors];
      if constexpr (kOutputs == 2) {
        tables[0].Block(source.m.At(n, block),
                        [&](int j, Floats weights) { first[j] = weights; });
      }
      tables[kLast].Block(
          source.m.At(n + kLast, block), [&](int j, Floats weights) {
#pragma GCC unroll 8
            for (int b = 0; b < kRows; ++b) {
              const Floats in = V::Load(rows.in[b] + at + j * V::kLanes);
              if constexpr (kOutputs == 2) {
                sums[0][b][0] = V::MultiplyAdd(first[j], in, sums[0][b][0]);
              }
              Floats& sum = sums[kLast][b][j % kChains];
              sum = V::MultiplyAdd(weights, in, sum);
            }
          });
    }
    if constexpr (Source::Table::kScaled) {
      for (int o = 0; o < kOutputs; ++o) {
        const Floats scale = V::Set(tables[o].scale);
        for (int b = 0; b < kRows; ++b) {
          for (Floats& sum : sums[o][b]) {
            totals[o][b] = V::MultiplyAdd(scale, sum, totals[o][b]);
            sum = Floats{};
          }
        }
      }
    }
  }
  for (int o = 0; o < kOutputs; ++o) {
    for (int b = 0; b < kRows; ++b) {
      Floats sum = totals[o][b];
      for (const Floats& each : sums[o][b]) sum += each;
      range.y[rows.row[b] * range.stride + n + o] = V::Sum(sum);
    }
  }
}

template <int kRows, typename Source>
[[gnu::noinline]] void ProductRows(const Source& source, const Arranged<float>& x, int64_t first,
                 const Range& range) {
  const Window<kRows, float> rows(x, first);
  int64_t n = range.begin;
  if constexpr (kRows >= Source::V::kPairedRows) {
    typename Source::Table tables[2];
    for (; n + 2 <= range.end; n += 2) {
      FloatOutputs(source, rows, tables, n, range);
    }
  }
  typename Source::Table table[1];
  for (; n < range.end; ++n) FloatOutputs(source, rows, table, n, range);
}

// Of integers: `add(table, n, run, totals)` adds what a run comes to.
template <int kRows, typename T, typename Source, typename F>
[[gnu::always_inline]] inline void IntegerRows(
    const Source& source, const Window<kRows, T>& rows, const float* scale,
    const Range& range, const F& add) {
  using V = typename Source::V;
  typename Source::Table table;
  for (int64_t n = range.begin; n < range.end; ++n) {
    typename V::Floats totals[kRows];
    Clear(totals);
    for (int64_t run = 0; run < source.m.groups.runs; ++run) {
      source.Set(table, n, run);
      add(table, n, run, totals);
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[rows.row[b] * range.stride + n] =
          V::Sum(totals[b]) * scale[rows.row[b]];
    }
  }
}

template <int kRows, typename V, int kBits>
[[gnu::noinline]] void ProductRows(const Codes<V, kBits, int16_t>& source,
                 const Arranged<int16_t>& x, int64_t first,
                 const Range& range) {
  using Source = Codes<V, kBits, int16_t>;
  using Floats = typename V::Floats;
  using Ints = typename V::Ints;
  constexpr int kChains = V::WordChains(kRows);
  const int64_t blocks = source.m.groups.run_blocks;
  const Window<kRows, int16_t> rows(x, first);
  const auto add = [&](const typename Source::Table& table, int64_t n,
                       int64_t run, Floats(&totals)[kRows]) {
    Floats sums[kRows][kChains];
    Clear(sums);
    const uint8_t* codes = source.m.At(n, run * blocks);
    int64_t at = run * blocks * Source::kVectors * V::kLanes * 2;
    for (int64_t block = 0; block < blocks; ++block) {
      table.Block(codes, [&](int i, Ints low, Ints high) {
#pragma GCC unroll 4
        for (int b = 0; b < kRows; ++b) {
          // Four products of the largest integers fit into 32 bits.
          const int16_t* in = rows.in[b] + at + 4 * V::kLanes * i;
          const Ints sum = V::AddWords(
              V::MultiplyWords(low, V::LoadInts(in)), high,
              V::LoadInts(in + 2 * V::kLanes));
          sums[b][i % kChains] += V::ToFloats(sum);
        }
      });
      codes += kBlockBytes;
      at += Source::kVectors * V::kLanes * 2;
    }
    for (int b = 0; b < kRows; ++b) {
      totals[b] = V::AddChains(totals[b], table.scale, sums[b]);
    }
  };
  IntegerRows(source, rows, x.scale, range, add);
}

template <int kRows, typename V>
[[gnu::noinline]] void ProductRows(const Levels<V, float>& source, const Arranged<int16_t>& x,
                 int64_t first, const Range& range) {
  using Ints = typename V::Ints;
  const int64_t blocks = source.m.groups.run_blocks;
  const Window<kRows, int16_t> rows(x, first);
  const auto add = [&](const LevelTable<V, float>& table, int64_t n,
                       int64_t run, typename V::Floats(&totals)[kRows]) {
    const uint8_t* levels = source.m.At(n, run * blocks);
    int64_t at = run * blocks * kBlockBytes;
    for (int64_t block = 0; block < blocks; block += V::kLevelBlocks) {
      const int64_t last =
          V::kLevelBlocks == 1
              ? block + 1
              : std::min<int64_t>(block + V::kLevelBlocks, blocks);
      Ints sums[kRows][V::kLevelChains];
      Clear(sums);
      for (int64_t i = block; i < last; ++i) {
#pragma GCC unroll 4
        for (int h = 0; h < kBlockBytes / (2 * V::kLanes); ++h) {
          const Ints weights = V::LevelWords(levels + 2 * V::kLanes * h);
#pragma GCC unroll 4
          for (int b = 0; b < kRows; ++b) {
            Ints& sum = sums[b][h % V::kLevelChains];
            sum = V::AddWords(
                sum, weights,
                V::LoadInts(rows.in[b] + at + 2 * V::kLanes * h));
          }
        }
        levels += kBlockBytes;
        at += kBlockBytes;
      }
      for (int b = 0; b < kRows; ++b) {
        for (const Ints& sum : sums[b]) {
          totals[b] =
              V::MultiplyAdd(V::Set(table.scale), V::ToFloats(sum), totals[b]);
        }
      }
    }
  };
  IntegerRows(source, rows, x.scale, range, add);
}

template <int kRows, typename Source>
[[gnu::noinline]] void ProductRows(const Source& source, const Arranged<int8_t>& x,
                 int64_t first, const Range& range) {
  using V = typename Source::V;
  using Ints = typename V::Ints;
  constexpr int kChains = V::ByteChains(kRows);
  // Blocks take turns where they have fewer registers than there are sums.
  constexpr int kTurns =
      kChains > Source::kVectors ? kChains / Source::kVectors : 1;
  const Groups& g = source.m.groups;
  const Window<kRows, int8_t> rows(x, first);
  // What offsets of more inputs add is no float any more; it has to be taken
  // away from integers.
  const bool long_runs =
      V::kOffset && g.run_blocks * Source::kVectors > 16;
  const auto add = [&](const typename Source::Table& table, int64_t n,
                       int64_t run, typename V::Floats(&totals)[kRows]) {
    Ints sums[kRows][kChains];
    Clear(sums);
    // What the offset of weights adds is taken away.
    if constexpr (V::kOffset != 0) {
      for (int b = 0; b < kRows; ++b) {
        sums[b][0] =
            V::First(-V::kOffset * x.sums[rows.row[b] * g.runs + run]);
      }
    }
    const uint8_t* codes = source.m.At(n, run * g.run_blocks);
    int64_t at = run * g.run_blocks * Source::kVectors * V::kBytes;
    const auto add_block = [&](int turn) {
      table.Block(codes, [&](int f, Ints weights) {
#pragma GCC unroll 8
        for (int b = 0; b < kRows; ++b) {
          Ints& sum = sums[b][(turn * Source::kVectors + f) % kChains];
          sum = V::AddBytes(sum, weights,
                            V::LoadInts(rows.in[b] + at + V::kBytes * f));
        }
      });
      codes += kBlockBytes;
      at += V::kBytes * Source::kVectors;
    };
    int64_t block = 0;
    for (; block + kTurns <= g.run_blocks; block += kTurns) {
#pragma GCC unroll 4
      for (int turn = 0; turn < kTurns; ++turn) add_block(turn);
    }
    for (; block < g.run_blocks; ++block) add_block(0);
    for (int b = 0; b < kRows; ++b) {
      Ints sum = sums[b][0];
      for (int i = 1; i < kChains; ++i) sum = V::Add(sum, sums[b][i]);
      if constexpr (V::kOffset != 0) {
        if (long_runs) {
          totals[b] += V::First(V::Sum(sum) * table.scale);
          continue;
        }
      }
      totals[b] =
          V::MultiplyAdd(V::Set(table.scale), V::ToFloats(sum), totals[b]);
    }
  };
  IntegerRows(source, rows, x.scale, range, add);
}

}  // namespace
}  // namespace bandwidth
