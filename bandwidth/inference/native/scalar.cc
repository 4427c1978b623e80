// Products in plain C++.

#include <cstring>

#include "activations.h"
#include "kernels.h"

namespace bandwidth {
namespace {

inline uint32_t Word(const uint8_t* bytes) {
  uint32_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

// Sum of book[code] * x over the inputs of a run.
template <typename Sum, typename T>
Sum SumOfRun(const Codebook& m, const uint8_t* words, const T* book,
             const T* x) {
  const int fields = 32 / m.bits;
  const uint32_t mask = (1u << m.bits) - 1;
  Sum sums[kLanes] = {};
  for (int64_t block = 0; block < m.groups.run_blocks; ++block) {
    for (int j = 0; j < fields; ++j) {
      for (int l = 0; l < kLanes; ++l) {
        const uint32_t code = (Word(words + 4 * l) >> (m.bits * j)) & mask;
        sums[l] += static_cast<Sum>(book[code]) * x[j * kLanes + l];
      }
    }
    words += kBlockBytes;
    x += fields * kLanes;
  }
  Sum total = 0;
  for (Sum sum : sums) total += sum;
  return total;
}

template <typename Sum, typename T>
Sum SumOfRun(const Uniform& m, const int8_t* levels, const T* x) {
  Sum sums[kLanes] = {};
  for (int64_t k = 0; k < m.groups.run_blocks * kBlockBytes; ++k) {
    sums[k % kLanes] += static_cast<Sum>(levels[k]) * x[k];
  }
  Sum total = 0;
  for (Sum sum : sums) total += sum;
  return total;
}

// Books and scales of what T multiplies: floats as they are, with scale 1.
template <typename T>
struct Books {
  const T* books;
  const float* scale;
};

template <typename T>
Books<T> RoundedBooks(const Codebook& m, Scratch& scratch) {
  const int64_t count = m.outputs / m.groups.group * m.groups.runs;
  const int largest = sizeof(T) == 1 ? kLargest8 : kLargestBook16;
  T* made = scratch.Take<T>(count << m.bits);
  float* scale = scratch.Take<float>(count);
  for (int64_t i = 0; i < count; ++i) {
    const float* book = m.book + (i << m.bits);
    T* to = made + (i << m.bits);
    scale[i] = m.bits == 2   ? RoundBook<4>(book, largest, to)
               : m.bits == 4 ? RoundBook<16>(book, largest, to)
                             : RoundBook<256>(book, largest, to);
  }
  return {made, scale};
}

int64_t BooksBytes(const Codebook& m) { return 2 * BookBytes(m) + 2 * 64; }

template <typename Sum, typename T>
void CodebookRange(const Codebook& m, const Books<T>& books,
                   const Arranged<T>& x, const Range& range) {
  const Groups& g = m.groups;
  const int64_t inputs = g.run_blocks * kBlockBytes * 8 / m.bits;
  for (int64_t n = range.begin; n < range.end; ++n) {
    for (int64_t b = 0; b < x.batch; ++b) {
      float total = 0;
      for (int64_t run = 0; run < g.runs; ++run) {
        const int64_t at = g.At(n, run);
        const Sum sum = SumOfRun<Sum>(
            m, m.codes + (n * g.runs + run) * g.run_blocks * kBlockBytes,
            books.books + (at << m.bits), x.x + b * x.stride + run * inputs);
        total += static_cast<float>(sum) * (books.scale ? books.scale[at] : 1);
      }
      range.y[b * range.stride + n] = total * (x.scale ? x.scale[b] : 1);
    }
  }
}

template <typename Sum, typename T>
void UniformRange(const Uniform& m, const Arranged<T>& x, const Range& range) {
  const Groups& g = m.groups;
  const int64_t width = g.run_blocks * kBlockBytes;
  for (int64_t n = range.begin; n < range.end; ++n) {
    for (int64_t b = 0; b < x.batch; ++b) {
      float total = 0;
      for (int64_t run = 0; run < g.runs; ++run) {
        const Sum sum =
            SumOfRun<Sum>(m, m.levels + (n * g.runs + run) * width,
                          x.x + b * x.stride + run * width);
        total += static_cast<float>(sum) * m.step[g.At(n, run)];
      }
      range.y[b * range.stride + n] = total * (x.scale ? x.scale[b] : 1);
    }
  }
}

template <typename Sum, typename T>
void DivideCodebook(const Codebook& m, const Books<T>& books,
                    const Arranged<T>& x, float* y, const Threads& threads) {
  threads(m.outputs, 1, 8 * m.outputs * x.stride * x.batch,
          [&](int64_t begin, int64_t end) {
            CodebookRange<Sum>(m, books, x, {begin, end, y, m.outputs});
          });
}

template <typename Sum, typename T>
void DivideUniform(const Uniform& m, const Arranged<T>& x, float* y,
                   const Threads& threads) {
  threads(m.outputs, 1, 8 * m.outputs * x.stride * x.batch,
          [&](int64_t begin, int64_t end) {
            UniformRange<Sum>(m, x, {begin, end, y, m.outputs});
          });
}

void CodebookProduct(const Codebook& m, const Rows& rows, Mode mode, float* y,
                     const Threads& threads) {
  const int64_t runs = m.groups.runs;
  Scratch scratch(ArrangedBytes(rows, runs) + BooksBytes(m));
  if (mode == Mode::kInt16) {
    const auto x = IntegersOfLevels<int16_t>(rows, runs, scratch);
    const auto books = RoundedBooks<int16_t>(m, scratch);
    return DivideCodebook<int64_t>(m, books, x, y, threads);
  }
  if (mode == Mode::kInt8) {
    const auto x = IntegersOfLevels<int8_t>(rows, runs, scratch);
    const auto books = RoundedBooks<int8_t>(m, scratch);
    return DivideCodebook<int32_t>(m, books, x, y, threads);
  }
  const auto x = FloatsOf(rows, 0, NaturalOrder(), scratch);
  DivideCodebook<float>(m, Books<float>{m.book, nullptr}, x, y, threads);
}

void UniformProduct(const Uniform& m, const Rows& rows, Mode mode, float* y,
                    const Threads& threads) {
  const int64_t runs = m.groups.runs;
  Scratch scratch(ArrangedBytes(rows, runs));
  if (mode == Mode::kInt16) {
    const auto x = IntegersOfLevels<int16_t>(rows, runs, scratch);
    return DivideUniform<int64_t>(m, x, y, threads);
  }
  if (mode == Mode::kInt8) {
    const auto x = IntegersOfLevels<int8_t>(rows, runs, scratch);
    return DivideUniform<int32_t>(m, x, y, threads);
  }
  const auto x = FloatsOf(rows, 0, NaturalOrder(), scratch);
  DivideUniform<float>(m, x, y, threads);
}

void SparseProduct(const Sparse& m, const Rows& rows, float* y,
                   const Threads& threads) {
  threads(m.outputs, 1, 8 * m.nonzeros * rows.batch,
          [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
              const int64_t first = m.First(n), last = m.Last(n);
              for (int64_t b = 0; b < rows.batch; ++b) {
                const float* x = rows.x + b * rows.inputs;
                float total = 0;
                for (int64_t i = first; i < last; ++i) {
                  total += m.book[m.codes[i]] * x[m.Column(i)];
                }
                y[b * m.outputs + n] = total;
              }
            }
          });
}

}  // namespace

const Kernels& ScalarKernels() {
  static const Kernels kernels = {"scalar", CodebookProduct, UniformProduct,
                                  SparseProduct};
  return kernels;
}

}  // namespace bandwidth
