// Where blocks of a matrix are, and what they mean.
//
// The table of a source holds what codes of an output and a run mean, and hands
// over the weights of a block, a register at a time. Registers (V) are those of
// an instruction set, which also has its ways to look codes up.

#ifndef BANDWIDTH_INFERENCE_NATIVE_SOURCES_H_
#define BANDWIDTH_INFERENCE_NATIVE_SOURCES_H_

#include <algorithm>
#include <cstdint>

#include "activations.h"
#include "kernels.h"
#include "rounding.h"

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

}  // namespace
}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_SOURCES_H_
