// What blocks of a matrix mean, and products of a few rows: a register holds
// inputs of one output, and what a look-up finds is multiplied with each of the
// rows at once.
//
// Registers (V) are those of an instruction set, which has its ways to look up
// codes. A table holds what codes of an output and a run mean, and hands over
// the weights of a block, a register at a time.

#pragma once

#include <algorithm>
#include <type_traits>

#include "activations.h"

namespace bandwidth {
namespace {

// A book in registers. `Block(codes, each)` calls `each(j, weights)` with
// register j of what a block of codes means; of words `each(j, first, second)`,
// with two registers between which inputs are divided. `Set(book)` takes the
// 2^kBits entries of a book and returns the scale of what they become. `kSlots`
// of them are kept for runs to come; none where setting one costs nothing.
template <typename V, int kBits, typename T>
class Lookup;

template <typename Registers, int kBits, typename T>
class BookTable {
 public:
  using V = Registers;
  using Matrix = Codebook;
  using Found = Lookup<V, kBits, T>;
  static constexpr bool kOfBytes = sizeof(T) == 1;
  static constexpr bool kScaled = sizeof(T) < sizeof(float);
  static constexpr int kVectors = Found::kVectors;

  float scale = 1;  // of integers

  void Set(const Codebook& m, int64_t n, int64_t run) {
    const float* book = m.book + (m.groups.At(n, run) << kBits);
    slot_ = kSlots ? run % kBooks : 0;
    Made& made = made_[slot_];
    if (kSlots == 0 || made.book != book) {
      made.book = book;
      made.scale = made.lookup.Set(book);
    }
    scale = made.scale;
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    made_[slot_].lookup.Block(codes, each);
  }

 private:
  struct Made {
    const float* book = nullptr;
    float scale;
    Found lookup;
  };

  static constexpr int kSlots = Found::kSlots;
  static constexpr int kBooks = kSlots ? kSlots : 1;
  Made made_[kBooks];
  int slot_;
};

// Weights are what `Block` gives times `scale`.
template <typename Registers, typename T>
struct LevelTable {
  using V = Registers;
  using Matrix = Uniform;
  static constexpr bool kOfBytes = sizeof(T) == 1;
  static constexpr bool kScaled = true;
  static constexpr int kVectors = kBlockBytes * sizeof(T) / V::kBytes;
  float scale;

  void Set(const Uniform& m, int64_t n, int64_t run) {
    scale = m.step[m.groups.At(n, run)];
  }

  template <typename F>
  void Block(const uint8_t* levels, F&& each) const {
    constexpr int kWords = 2 * V::kLanes;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      if constexpr (sizeof(T) == 4) {
        each(j, V::LevelFloats(levels + j * V::kLanes));
      } else if constexpr (sizeof(T) == 1) {
        each(j, V::Bytes(V::LoadInts(levels + j * V::kBytes)));
      } else if (j % 2 == 0) {
        each(j / 2, V::LevelWords(levels + j * kWords),
             V::LevelWords(levels + (j + 1) * kWords));
      }
    }
  }
};

// Rows of kOutputs outputs from n on. Two of them read activations once: many
// rows do not stay in the first cache.
template <int kRows, int kOutputs, typename Table>
[[gnu::always_inline]] inline void FloatOutputs(
    const typename Table::Matrix& m, const Window<kRows, float>& rows,
    Table (&tables)[kOutputs], int64_t n, const Range& range) {
  using V = typename Table::V;
  using Floats = typename V::Floats;
  constexpr int kChains = kOutputs == 1 ? V::FloatChains(kRows) : 1;
  constexpr int kLast = kOutputs - 1;
  const Groups& g = m.groups;
  Floats totals[kOutputs][kRows], sums[kOutputs][kRows][kChains];
  Clear(totals);
  Clear(sums);
  int64_t block = 0;
  for (int64_t run = 0; run < g.runs; ++run) {
    for (int o = 0; o < kOutputs; ++o) tables[o].Set(m, n + o, run);
    for (int64_t last = block + g.run_blocks; block < last; ++block) {
      const int64_t at = block * Table::kVectors * V::kLanes;
      Floats first[Table::kVectors];
      if constexpr (kOutputs == 2) {
        tables[0].Block(m.At(n, block),
                        [&](int j, Floats weights) { first[j] = weights; });
      }
      tables[kLast].Block(
          m.At(n + kLast, block), [&](int j, Floats weights) {
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
    if constexpr (Table::kScaled) {
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

template <int kRows, typename Table>
[[gnu::noinline]] void ProductRows(const typename Table::Matrix& m,
                                   const Arranged<float>& x, int64_t first,
                                   const Range& range) {
  const Window<kRows, float> rows(x, first);
  int64_t n = range.begin;
  if constexpr (kRows >= Table::V::kPairedRows) {
    Table tables[2];
    for (; n + 2 <= range.end; n += 2) {
      FloatOutputs(m, rows, tables, n, range);
    }
  }
  Table table[1];
  for (; n < range.end; ++n) FloatOutputs(m, rows, table, n, range);
}

// Of integers: `add(table, n, run, totals)` adds what a run comes to.
template <int kRows, typename Table, typename T, typename F>
[[gnu::always_inline]] inline void IntegerRows(
    const typename Table::Matrix& m, const Window<kRows, T>& rows,
    const float* scale, const Range& range, const F& add) {
  using V = typename Table::V;
  Table table;
  for (int64_t n = range.begin; n < range.end; ++n) {
    typename V::Floats totals[kRows];
    Clear(totals);
    for (int64_t run = 0; run < m.groups.runs; ++run) {
      table.Set(m, n, run);
      add(table, n, run, totals);
    }
    for (int b = 0; b < kRows; ++b) {
      range.y[rows.row[b] * range.stride + n] =
          V::Sum(totals[b]) * scale[rows.row[b]];
    }
  }
}

// Sums of levels stay integers for some blocks, those of codes for four
// products: so many of the largest integers fit into 32 bits.
template <int kRows, typename Table>
[[gnu::noinline]] void ProductRows(const typename Table::Matrix& m,
                                   const Arranged<int16_t>& x, int64_t first,
                                   const Range& range) {
  using V = typename Table::V;
  using Ints = typename V::Ints;
  constexpr bool kLevels = std::is_same_v<typename Table::Matrix, Uniform>;
  constexpr int kWords = 2 * V::kLanes;
  constexpr int kChains = kLevels ? V::kLevelChains : V::WordChains(kRows);
  const int64_t blocks = m.groups.run_blocks;
  const Window<kRows, int16_t> rows(x, first);
  const auto add = [&](const Table& table, int64_t n, int64_t run,
                       typename V::Floats(&totals)[kRows]) {
    const uint8_t* codes = m.At(n, run * blocks);
    int64_t at = run * blocks * Table::kVectors * kWords;
    const auto add_blocks = [&](int64_t count) {
      decltype(Zero<V, kLevels>()) sums[kRows][kChains];
      Clear(sums);
      for (int64_t i = 0; i < count; ++i) {
        table.Block(codes, [&](int j, Ints low, Ints high) {
#pragma GCC unroll 4
          for (int b = 0; b < kRows; ++b) {
            const int16_t* in = rows.in[b] + at + 2 * kWords * j;
            const Ints next = V::LoadInts(in + kWords);
            auto& sum = sums[b][kLevels ? 0 : j % kChains];
            if constexpr (kLevels) {
              sum = V::AddWords(sum, low, V::LoadInts(in));
              auto& last = sums[b][kChains - 1];
              last = V::AddWords(last, high, next);
            } else {
              sum += V::ToFloats(V::AddWords(
                  V::MultiplyWords(low, V::LoadInts(in)), high, next));
            }
          }
        });
        codes += kBlockBytes;
        at += Table::kVectors * kWords;
      }
      for (int b = 0; b < kRows; ++b) {
        totals[b] = V::AddChains(totals[b], table.scale, sums[b]);
      }
    };
    constexpr int64_t kMost = V::kLevelBlocks;
    if (!kLevels) return add_blocks(blocks);
    for (int64_t left = blocks; left > 0; left -= kMost) {
      add_blocks(kMost == 1 ? 1 : std::min(left, kMost));
    }
  };
  IntegerRows<kRows, Table>(m, rows, x.scale, range, add);
}

template <int kRows, typename Table>
[[gnu::noinline]] void ProductRows(const typename Table::Matrix& m,
                                   const Arranged<int8_t>& x, int64_t first,
                                   const Range& range) {
  using V = typename Table::V;
  using Ints = typename V::Ints;
  constexpr int kChains = V::ByteChains(kRows);
  // Blocks take turns where they have fewer registers than there are sums.
  constexpr int kTurns =
      kChains > Table::kVectors ? kChains / Table::kVectors : 1;
  const Groups& g = m.groups;
  const Window<kRows, int8_t> rows(x, first);
  // What offsets of more inputs add is no float any more; it has to be taken
  // away from integers.
  const bool long_runs =
      V::kOffset && g.run_blocks * Table::kVectors > 16;
  const auto add = [&](const Table& table, int64_t n,
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
    const uint8_t* codes = m.At(n, run * g.run_blocks);
    int64_t at = run * g.run_blocks * Table::kVectors * V::kBytes;
    const auto add_block = [&](int turn) {
      table.Block(codes, [&](int f, Ints weights) {
#pragma GCC unroll 8
        for (int b = 0; b < kRows; ++b) {
          Ints& sum = sums[b][(turn * Table::kVectors + f) % kChains];
          sum = V::AddBytes(sum, weights,
                            V::LoadInts(rows.in[b] + at + V::kBytes * f));
        }
      });
      codes += kBlockBytes;
      at += V::kBytes * Table::kVectors;
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
  IntegerRows<kRows, Table>(m, rows, x.scale, range, add);
}

}  // namespace
}  // namespace bandwidth
