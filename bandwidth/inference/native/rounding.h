// Activations and codebooks as integers; rounding.py has the equations. Plain
// loops, compiled for each instruction set.

#ifndef BANDWIDTH_INFERENCE_NATIVE_ROUNDING_H_
#define BANDWIDTH_INFERENCE_NATIVE_ROUNDING_H_

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace bandwidth {
namespace {

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

// The largest integer that activations become; 0 where they stay as they are.
inline int Largest(Mode mode) {
  return mode == Mode::kExact ? 0
         : mode == Mode::kInt8 ? kLargest8
                               : kLargest16;
}

inline float Inverse(float most, int largest) {
  return most > 0 ? largest / most : 0.0f;
}

// Rounds a row to integers, filled up with zeros; returns their scale. What is
// not finite has no integer; the scale carries it on.
template <typename T>
inline float RoundRow(const float* x, int64_t inputs, int64_t filled,
                      int largest, T* integers) {
  const float most = Bounded(Largest(x, inputs), largest);
  const float inverse = Inverse(most, largest);
  const float bound = static_cast<float>(largest);
  for (int64_t k = 0; k < inputs; ++k) {
    const float value = Nearest(x[k] * inverse);
    integers[k] = static_cast<T>(static_cast<int32_t>(
        value >= -bound && value <= bound ? value : 0.0f));
  }
  for (int64_t k = inputs; k < filled; ++k) integers[k] = 0;
  return most / largest;
}

// Rounds a book to integers; returns their scale.
template <typename T>
inline float RoundBook(const float* book, int entries, int largest,
                       T* integers) {
  const float most = Bounded(Largest(book, entries), largest);
  const float inverse = Inverse(most, largest);
  for (int e = 0; e < entries; ++e) {
    integers[e] = static_cast<T>(
        static_cast<int32_t>(Nearest(book[e] * inverse)));
  }
  return most / largest;
}

// What rounding makes of numbers, as floats.
inline void RoundFloats(const float* values, int64_t count, int largest,
                        float* rounded) {
  const float most = Bounded(Largest(values, count), largest);
  const float inverse = Inverse(most, largest);
  const float scale = most / largest;
  const float bound = static_cast<float>(largest);
  for (int64_t i = 0; i < count; ++i) {
    const float value = Nearest(values[i] * inverse);
    rounded[i] = (value >= -bound && value <= bound ? value : 0.0f) * scale;
  }
}

}  // namespace
}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_ROUNDING_H_
