// Kernels in plain C++.

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace bandwidth {
namespace {

inline uint32_t Word(const uint8_t* bytes) {
  uint32_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

void CodebookProduct(const Codebook& m, const Floats& x, const Range& range) {
  const int fields = 32 / m.bits;
  const uint32_t mask = (1u << m.bits) - 1;
  const Groups& g = m.groups;
  const int64_t row_blocks = g.runs * g.run_blocks;
  for (int64_t n = range.begin; n < range.end; ++n) {
    const uint8_t* codes = m.codes + n * row_blocks * kBlockBytes;
    for (int64_t b = 0; b < x.batch; ++b) {
      const float* in = x.x + b * x.stride;
      float sums[kLanes] = {};
      for (int64_t block = 0; block < row_blocks; ++block) {
        const int64_t run = block / g.run_blocks;
        const float* book =
            m.book + (((n / g.group) * g.runs + run) << m.bits);
        const uint8_t* words = codes + block * kBlockBytes;
        const float* part = in + block * fields * kLanes;
        for (int j = 0; j < fields; ++j) {
          for (int l = 0; l < kLanes; ++l) {
            const uint32_t code = (Word(words + 4 * l) >> (m.bits * j)) & mask;
            sums[l] += book[code] * part[j * kLanes + l];
          }
        }
      }
      float total = 0;
      for (float sum : sums) total += sum;
      range.y[b * range.stride + n] = total;
    }
  }
}

void UniformProduct(const Uniform& m, const Floats& x, const Range& range) {
  const Groups& g = m.groups;
  const int64_t width = g.run_blocks * kBlockBytes;
  for (int64_t n = range.begin; n < range.end; ++n) {
    const int8_t* levels = m.levels + n * g.runs * width;
    for (int64_t b = 0; b < x.batch; ++b) {
      float total = 0;
      for (int64_t run = 0; run < g.runs; ++run) {
        const float* in = x.x + b * x.stride + run * width;
        float sums[kLanes] = {};
        for (int64_t k = 0; k < width; ++k) {
          sums[k % kLanes] += levels[run * width + k] * in[k];
        }
        float sum = 0;
        for (float each : sums) sum += each;
        total += sum * m.step[(n / g.group) * g.runs + run];
      }
      range.y[b * range.stride + n] = total;
    }
  }
}

void SparseProduct(const Sparse& m, const Floats& x, const Range& range) {
  for (int64_t n = range.begin; n < range.end; ++n) {
    const int64_t first = std::clamp<int64_t>(m.starts[n], 0, m.nonzeros);
    const int64_t last = std::clamp<int64_t>(m.starts[n + 1], first, m.nonzeros);
    for (int64_t b = 0; b < x.batch; ++b) {
      const float* in = x.x + b * x.stride;
      float total = 0;
      for (int64_t i = first; i < last; ++i) {
        const uint32_t column = m.columns16
                                    ? m.columns16[i]
                                    : static_cast<uint32_t>(m.columns32[i]);
        const uint32_t k = std::min<uint32_t>(column, m.inputs - 1);
        total += m.book[m.codes[i]] * in[k];
      }
      range.y[b * range.stride + n] = total;
    }
  }
}

// T is the type of both factors, Sum that of a run's sum.
template <typename T, typename Sum>
void IntegerCodebook(const Codebook& m, const IntegerBook<T>& book,
                     const Integers<T>& x, const Range& range) {
  constexpr int kElements = kBlockBytes / sizeof(T);
  const int fields = 8 * sizeof(T) / m.bits;
  const int mask = (1 << m.bits) - 1;
  const Groups& g = m.groups;
  for (int64_t n = range.begin; n < range.end; ++n) {
    const uint8_t* codes = m.codes + n * g.runs * g.run_blocks * kBlockBytes;
    for (int64_t b = 0; b < x.batch; ++b) {
      float total = 0;
      for (int64_t run = 0; run < g.runs; ++run) {
        const int64_t shared = (n / g.group) * g.runs + run;
        const T* values = book.book + (shared << m.bits);
        Sum sum = 0;
        for (int64_t r = 0; r < g.run_blocks; ++r) {
          const int64_t block = run * g.run_blocks + r;
          const uint8_t* words = codes + block * kBlockBytes;
          const T* in = x.x + b * x.stride + block * fields * kElements;
          for (int i = 0; i < kElements; ++i) {
            const uint32_t word =
                Word(words + (i * sizeof(T)) / 4 * 4) >>
                (8 * ((i * sizeof(T)) % 4));
            for (int f = 0; f < fields; ++f) {
              const int code = (word >> (m.bits * f)) & mask;
              sum += static_cast<Sum>(values[code]) * in[f * kElements + i];
            }
          }
        }
        total += static_cast<float>(sum) * book.scale[shared];
      }
      range.y[b * range.stride + n] = total * x.scale[b];
    }
  }
}

template <typename T, typename Sum>
void IntegerUniform(const Uniform& m, const Integers<T>& x,
                    const Range& range) {
  const Groups& g = m.groups;
  const int64_t width = g.run_blocks * kBlockBytes;
  for (int64_t n = range.begin; n < range.end; ++n) {
    const int8_t* levels = m.levels + n * g.runs * width;
    for (int64_t b = 0; b < x.batch; ++b) {
      float total = 0;
      for (int64_t run = 0; run < g.runs; ++run) {
        const T* in = x.x + b * x.stride + run * width;
        Sum sum = 0;
        for (int64_t k = 0; k < width; ++k) {
          sum += static_cast<Sum>(levels[run * width + k]) * in[k];
        }
        total += static_cast<float>(sum) *
                 m.step[(n / g.group) * g.runs + run];
      }
      range.y[b * range.stride + n] = total * x.scale[b];
    }
  }
}

}  // namespace

const Kernels& ScalarKernels() {
  static const Kernels kernels = {
      "scalar",
      8,
      8,
      CodebookProduct,
      UniformProduct,
      SparseProduct,
      IntegerCodebook<int16_t, int64_t>,
      IntegerUniform<int16_t, int64_t>,
      IntegerCodebook<int8_t, int32_t>,
      IntegerUniform<int8_t, int32_t>,
  };
  return kernels;
}

}  // namespace bandwidth
