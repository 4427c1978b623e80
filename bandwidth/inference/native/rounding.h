// Activations and codebooks as integers; rounding.py has the equations.

#ifndef BANDWIDTH_INFERENCE_NATIVE_ROUNDING_H_
#define BANDWIDTH_INFERENCE_NATIVE_ROUNDING_H_

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace bandwidth {

// Memory that starts where a cache line does.
template <typename T>
class Aligned {
 public:
  explicit Aligned(int64_t count)
      : bytes_(count * sizeof(T) + kAlignment),
        data_(reinterpret_cast<T*>(
            (reinterpret_cast<uintptr_t>(bytes_.data()) + kAlignment - 1) /
            kAlignment * kAlignment)) {
    std::memset(static_cast<void*>(data_), 0, count * sizeof(T));
  }
  T* get() const { return data_; }

 private:
  static constexpr uintptr_t kAlignment = 64;
  std::vector<uint8_t> bytes_;
  T* data_;
};

// Rows of activations, filled up with zeros.
struct Rows {
  const float* x;
  int64_t batch;
  int64_t inputs;
  int64_t filled;
};

// The order in which codes of a block are met by kernels whose numbers have
// `element` bytes: 0 <= result[i] < inputs of a block.
inline std::vector<int> OrderOf(int bits, int element) {
  const int elements = kBlockBytes / element;
  const int fields = 8 * element / bits;
  std::vector<int> order;
  for (int f = 0; f < fields; ++f) {
    for (int i = 0; i < elements; ++i) {
      const int lane = i * element / 4;
      const int within = i * element % 4 / element;
      order.push_back(kLanes * (within * fields + f) + lane);
    }
  }
  return order;
}

template <typename T>
struct Rounded {
  Aligned<T> values;
  Aligned<float> scale;
  Aligned<int32_t> sums;
};

// The largest magnitude, or what is no number if there is one: without their
// signs, floats are ordered like the integers of the same bits, and NaN is last.
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

// The nearest integer, of halves the even one, of magnitudes below 2^22: the sum
// has no bits for fractions. Unlike a call, it is done for many at once.
inline float Nearest(float value) {
  constexpr float kNoFractions = 12582912.0f;  // 1.5 * 2^23
  return (value + kNoFractions) - kNoFractions;
}

// Rounds rows to integers, each with a scale of its own.
template <typename T>
Rounded<T> Round(const Rows& rows, int64_t runs, int largest,
                 const std::vector<int>& order) {
  Rounded<T> made{Aligned<T>(rows.batch * rows.filled),
                  Aligned<float>(rows.batch),
                  Aligned<int32_t>(rows.batch * runs)};
  const int64_t block = order.size();
  const int64_t run = rows.filled / runs;
  std::vector<T> integers(rows.filled);
  for (int64_t b = 0; b < rows.batch; ++b) {
    const float* x = rows.x + b * rows.inputs;
    const float most = Largest(x, rows.inputs);
    made.scale.get()[b] = most / largest;
    const float inverse = most > 0 ? largest / most : 0.0f;
    // What is not finite has no integer; the scale carries it on.
    const float most_of_all = static_cast<float>(largest);
    for (int64_t k = 0; k < rows.inputs; ++k) {
      const float value = Nearest(x[k] * inverse);
      integers[k] = static_cast<T>(static_cast<int32_t>(
          value >= -most_of_all && value <= most_of_all ? value : 0.0f));
    }
    for (int64_t r = 0; r < runs; ++r) {
      int32_t sum = 0;
      for (int64_t k = 0; k < run; ++k) sum += integers[r * run + k];
      made.sums.get()[b * runs + r] = sum;
    }
    T* values = made.values.get() + b * rows.filled;
    for (int64_t at = 0; at < rows.filled; at += block) {
      for (int64_t i = 0; i < block; ++i) {
        values[at + i] = integers[at + order[i]];
      }
    }
  }
  return made;
}

template <typename T>
Integers<T> View(const Rounded<T>& rounded, const Rows& rows) {
  return {rounded.values.get(), rounded.scale.get(), rounded.sums.get(),
          rows.filled, rows.batch};
}

// Codebooks as integers, each with a scale of its own.
template <typename T>
struct RoundedBooks {
  Aligned<T> books;
  Aligned<float> scale;
};

template <typename T>
RoundedBooks<T> RoundBooks(const float* book, int64_t count, int entries,
                           int largest) {
  RoundedBooks<T> made{Aligned<T>(count * entries), Aligned<float>(count)};
  for (int64_t i = 0; i < count; ++i) {
    const float* values = book + i * entries;
    const float most = Largest(values, entries);
    made.scale.get()[i] = most / largest;
    const float inverse = most > 0 ? largest / most : 0.0f;
    for (int e = 0; e < entries; ++e) {
      made.books.get()[i * entries + e] =
          static_cast<T>(Nearest(values[e] * inverse));
    }
  }
  return made;
}

// Rows and codebooks rounded to integers but kept as floats, for kernels that
// look up no integers of such wide codes.
template <typename T>
struct RoundedFloats {
  Aligned<float> x;
  Aligned<float> books;

  RoundedFloats(const Rows& rows, const float* book, int64_t count,
                int entries, int largest, int largest_book)
      : x(rows.batch * rows.filled), books(count * entries) {
    const auto in = Round<T>(rows, 1, largest, {0});
    for (int64_t i = 0; i < rows.batch * rows.filled; ++i) {
      x.get()[i] = in.values.get()[i] * in.scale.get()[i / rows.filled];
    }
    const auto made = RoundBooks<T>(book, count, entries, largest_book);
    for (int64_t i = 0; i < count * entries; ++i) {
      books.get()[i] = made.books.get()[i] * made.scale.get()[i / entries];
    }
  }
};

}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_ROUNDING_H_
