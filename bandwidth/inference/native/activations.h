// Activations and codebooks as integers (rounding.py has the equations), in the
// order in which kernels meet them. Plain loops, compiled for each instruction
// set.

#pragma once

#include <cfloat>
#include <cstring>
#include <type_traits>

#include "kernels.h"

namespace bandwidth {
namespace {

// Outputs from `begin` to `end`; y of [batch, stride].
struct Range {
  int64_t begin;
  int64_t end;
  float* y;
  int64_t stride;
};

// Rows of numbers, `stride` apart. Integers stand for scale * value.
template <typename T>
struct Arranged {
  const T* x;
  const float* scale;    // [batch], of integers
  const int32_t* sums;   // [batch, runs], of values of 8 bits
  int64_t stride;
  int64_t batch;
};

// Which input of a block is met at a place: `at[i]` for i below `block`; 0: the
// natural order.
struct Order {
  int block;
  uint8_t at[256];
};

constexpr Order kNatural{};

// The largest magnitude, or what is no number if there is one: without their
// signs, floats are ordered like the integers of the same bits, NaN as last.
inline float Largest(const float* values, int64_t count) {
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float result;
  std::memcpy(&result, &most, sizeof(result));
  return result;
}

// What is rounded to the largest integer, if not the largest magnitude: a scale
// below the least normal number would be 0, and its inverse infinite.
inline float Bounded(float most, int largest) {
  const float least = largest * FLT_MIN;
  return most < least ? least : most;
}

// The nearest integer, of halves the even one, of magnitudes below 2^22: the
// sum has no bits for fractions. Unlike a call, it is done for many at once.
inline float Nearest(float value) {
  constexpr float kNoFractions = 12582912.0f;  // 1.5 * 2^23
  return (value + kNoFractions) - kNoFractions;
}

inline float Inverse(float most, int largest) {
  return most > 0 ? largest / most : 0.0f;
}

// Rounds numbers to integers, filled up with zeros; returns their scale. Floats
// become scale times that. What is not finite has no integer; the scale carries
// it on.
template <typename T>
inline float Round(const float* values, int64_t count, int64_t filled,
                   int largest, T* rounded) {
  const float most = Bounded(Largest(values, count), largest);
  const float inverse = Inverse(most, largest);
  const float scale = most / largest;
  const float bound = static_cast<float>(largest);
  for (int64_t k = 0; k < count; ++k) {
    float value = Nearest(values[k] * inverse);
    value = value >= -bound && value <= bound ? value : 0.0f;
    if constexpr (std::is_same_v<T, float>) {
      rounded[k] = value * scale;
    } else {
      rounded[k] = static_cast<T>(static_cast<int32_t>(value));
    }
  }
  for (int64_t k = count; k < filled; ++k) rounded[k] = 0;
  return scale;
}

// Bytes of scratch that the functions below take, of any mode.
inline int64_t ArrangedBytes(const Rows& rows, int64_t runs) {
  return Scratch::Bytes(2 * rows.batch * rows.filled * sizeof(float)) +
         Scratch::Bytes(rows.filled * sizeof(int32_t)) +
         Scratch::Bytes(rows.batch * sizeof(float)) +
         Scratch::Bytes(rows.batch * runs * sizeof(int32_t)) + 4 * 64;
}

template <typename From, typename To>
inline void Reorder(const From* from, int64_t count, const Order& order,
                    To* to) {
  for (int64_t at = 0; at < count; at += order.block) {
    for (int i = 0; i < order.block; ++i) to[at + i] = from[at + order.at[i]];
  }
}

// Rows as they are, or as rounding leaves them where `largest` is not 0.
inline Arranged<float> FloatsOf(const Rows& rows, int largest,
                                const Order& order, Scratch& scratch) {
  const bool natural = !order.block;
  if (!largest && natural && rows.filled == rows.inputs) {
    return {rows.x, nullptr, nullptr, rows.filled, rows.batch};
  }
  float* made = scratch.Take<float>(rows.batch * rows.filled);
  float* row = natural ? nullptr : scratch.Take<float>(rows.filled);
  for (int64_t b = 0; b < rows.batch; ++b) {
    float* own = made + b * rows.filled;
    float* first = natural ? own : row;
    const float* x = rows.x + b * rows.inputs;
    if (largest) {
      Round(x, rows.inputs, rows.filled, largest, first);
    } else {
      std::memcpy(first, x, rows.inputs * sizeof(float));
      std::memset(first + rows.inputs, 0,
                  (rows.filled - rows.inputs) * sizeof(float));
    }
    if (!natural) Reorder(row, rows.filled, order, own);
  }
  return {made, nullptr, nullptr, rows.filled, rows.batch};
}

// Packs integers into words in the order in which kernels that shift codes out
// of words meet them: that of input 16 j + l of a block lies in word l of one
// of its registers.
template <int kBits, typename T>
inline void PackWords(const int32_t* values, int64_t count, T* packed) {
  constexpr int kWithin = 4 / sizeof(T);
  constexpr int kFields = 8 * sizeof(T) / kBits;
  constexpr uint32_t kMask = sizeof(T) == 1 ? 0xff : 0xffff;
  uint32_t* words = reinterpret_cast<uint32_t*>(packed);
  for (int64_t at = 0; at < count; at += kWithin * kFields * kLanes) {
    for (int f = 0; f < kFields; ++f) {
      const int32_t* from = values + at + f * kLanes;
      for (int l = 0; l < kLanes; ++l) {
        uint32_t word = 0;
        for (int w = 0; w < kWithin; ++w) {
          word |= (from[w * kFields * kLanes + l] & kMask)
                  << (8 * sizeof(T) * w);
        }
        words[l] = word;
      }
      words += kLanes;
    }
  }
}

// The order as it is.
template <typename T>
inline void Narrow(const int32_t* values, int64_t count, T* to) {
  for (int64_t k = 0; k < count; ++k) to[k] = static_cast<T>(values[k]);
}

// Rounds rows; `pack(integers, count, to)` brings those of a row in order.
template <typename T, typename Pack>
inline Arranged<T> IntegersOf(const Rows& rows, int64_t runs, Scratch& scratch,
                              const Pack& pack) {
  T* made = scratch.Take<T>(rows.batch * rows.filled);
  float* scale = scratch.Take<float>(rows.batch);
  int32_t* sums = scratch.Take<int32_t>(rows.batch * runs);
  int32_t* integers = scratch.Take<int32_t>(rows.filled);
  const int64_t run = rows.filled / runs;
  for (int64_t b = 0; b < rows.batch; ++b) {
    scale[b] = Round(rows.x + b * rows.inputs, rows.inputs, rows.filled,
                     sizeof(T) == 1 ? kLargest8 : kLargest16, integers);
    for (int64_t r = 0; r < runs; ++r) {
      int32_t sum = 0;
      for (int64_t k = 0; k < run; ++k) sum += integers[r * run + k];
      sums[b * runs + r] = sum;
    }
    pack(integers, rows.filled, made + b * rows.filled);
  }
  return {made, scale, sums, rows.filled, rows.batch};
}

inline int64_t BookBytes(const Codebook& m) {
  const int64_t books = m.outputs / m.groups.group * m.groups.runs;
  return Scratch::Bytes((books << m.bits) * sizeof(float));
}

// Books as rounding leaves them, or as they are where `largest` is 0.
inline const float* BooksOf(const Codebook& m, int largest, Scratch& scratch) {
  if (!largest) return m.book;
  const int64_t books = m.outputs / m.groups.group * m.groups.runs;
  const int64_t entries = int64_t{1} << m.bits;
  float* made = scratch.Take<float>(books * entries);
  for (int64_t i = 0; i < books; ++i) {
    Round(m.book + i * entries, entries, entries, largest, made + i * entries);
  }
  return made;
}

// Rows from `row` on; where there are fewer than kRows, the last one again.
template <int kRows, typename T>
struct Window {
  const T* in[kRows];
  int64_t row[kRows];

  Window(const Arranged<T>& x, int64_t first) {
    for (int b = 0; b < kRows; ++b) {
      row[b] = first + b < x.batch ? first + b : x.batch - 1;
      in[b] = x.x + row[b] * x.stride;
    }
  }
};

template <typename V, bool kInts>
inline auto Zero() {
  if constexpr (kInts) {
    return typename V::Ints{};
  } else {
    return typename V::Floats{};
  }
}

// Compilers keep what is cleared one by one in registers.
template <typename T>
inline void Clear(T& value) {
  value = T{};
}
template <typename T, int kCount>
inline void Clear(T (&values)[kCount]) {
  for (T& value : values) Clear(value);
}

template <int kValue>
using Number = std::integral_constant<int, kValue>;

// Calls `f(Number<n>)`; where n is above kMost, with that.
template <int kMost, typename F>
inline void ByNumber(int64_t n, const F& f) {
  if constexpr (kMost > 1) {
    if (n < kMost) return ByNumber<kMost - 1>(n, f);
  }
  f(Number<kMost>{});
}

// Calls `f(Number<rows>, first row)` until all rows are done, with 1, 2, 4 or 8
// of them, at most kMost; the last of these may be fewer.
template <int kMost, typename F>
inline void ByRows(int64_t batch, const F& f) {
  for (int64_t row = 0; row < batch;) {
    const int64_t left = batch - row;
    const auto rows = [&](auto count) {
      f(count, row);
      row += count.value;
    };
    if (left == 1) {
      rows(Number<1>{});
    } else if (left == 2) {
      rows(Number<2>{});
    } else if (left <= 4) {
      rows(Number<4>{});
    } else {
      rows(Number<kMost>{});
    }
  }
}

}  // namespace
}  // namespace bandwidth
