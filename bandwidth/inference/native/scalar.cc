// Products in plain C++.

#include <cstring>

#include "activations.h"

namespace bandwidth {
namespace {

// Weights that T multiplies: floats as they are, with scale 1.
template <typename T>
struct CodeWeights {
  const Codebook& m;
  const T* books;
  const float* scales;

  int fields() const { return 32 / m.bits; }
  const T* Values(int64_t at) const { return books + (at << m.bits); }
  float Scale(int64_t at) const { return scales ? scales[at] : 1; }
  T Weight(const T* values, const uint8_t* block, int j, int l) const {
    uint32_t word;
    std::memcpy(&word, block + 4 * l, sizeof(word));
    return values[word >> (m.bits * j) & ((1u << m.bits) - 1)];
  }
};

struct LevelWeights {
  const Uniform& m;

  int fields() const { return kBlockBytes / kLanes; }
  int Values(int64_t) const { return 0; }
  float Scale(int64_t at) const { return m.step[at]; }
  int8_t Weight(int, const uint8_t* block, int j, int l) const {
    return static_cast<int8_t>(block[j * kLanes + l]);
  }
};

// Sum of weight * x over the inputs of a run.
template <typename Sum, typename Weights, typename T>
Sum SumOfRun(const Weights& weights, int64_t n, int64_t run, const T* x) {
  const Groups& g = weights.m.groups;
  const auto values = weights.Values(g.At(n, run));
  const uint8_t* block = weights.m.At(n, run * g.run_blocks);
  Sum sums[kLanes] = {};
  for (int64_t b = 0; b < g.run_blocks; ++b, block += kBlockBytes) {
    for (int j = 0; j < weights.fields(); ++j, x += kLanes) {
      for (int l = 0; l < kLanes; ++l) {
        sums[l] += static_cast<Sum>(weights.Weight(values, block, j, l)) * x[l];
      }
    }
  }
  Sum total = 0;
  for (Sum sum : sums) total += sum;
  return total;
}

template <typename Sum, typename Weights, typename T>
void Product(const Weights& weights, const Arranged<T>& x, const Call& call) {
  const auto& m = weights.m;
  const int64_t inputs = x.stride / m.groups.runs;
  const auto multiply = [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t b = 0; b < x.batch; ++b) {
        float total = 0;
        for (int64_t run = 0; run < m.groups.runs; ++run) {
          const Sum sum = SumOfRun<Sum>(weights, n, run,
                                        x.x + b * x.stride + run * inputs);
          total += static_cast<float>(sum) * weights.Scale(m.groups.At(n, run));
        }
        call.y[b * m.outputs + n] = total * (x.scale ? x.scale[b] : 1);
      }
    }
  };
  call.threads(m.outputs, 1, 8 * m.outputs * x.stride * x.batch, multiply);
}

template <typename T>
CodeWeights<T> Rounded(const Codebook& m, Scratch& scratch) {
  const int64_t count = m.outputs / m.groups.group * m.groups.runs;
  const int entries = 1 << m.bits;
  T* made = scratch.Take<T>(count * entries);
  float* scales = scratch.Take<float>(count);
  for (int64_t i = 0; i < count; ++i) {
    scales[i] = Round(m.book + i * entries, entries, entries,
                      sizeof(T) == 1 ? kLargest8 : kLargestBook16,
                      made + i * entries);
  }
  return {m, made, scales};
}

// Multiplies by what `weights(T, scratch)` gives.
template <typename F>
void InMode(const F& weights, const Call& call, int64_t runs, int64_t bytes) {
  const Rows& rows = call.rows;
  Scratch scratch(ArrangedBytes(rows, runs) + bytes);
  if (call.mode == Mode::kInt16) {
    const auto x = IntegersOf<int16_t>(rows, runs, scratch, Narrow<int16_t>);
    return Product<int64_t>(weights(int16_t{}, scratch), x, call);
  }
  if (call.mode == Mode::kInt8) {
    const auto x = IntegersOf<int8_t>(rows, runs, scratch, Narrow<int8_t>);
    return Product<int32_t>(weights(int8_t{}, scratch), x, call);
  }
  const auto x = FloatsOf(rows, 0, kNatural, scratch);
  Product<float>(weights(0.0f, scratch), x, call);
}

void CodebookProduct(const Codebook& m, const Call& call) {
  const auto weights = [&](auto zero, Scratch& scratch) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 4) {
      return CodeWeights<T>{m, m.book, nullptr};
    } else {
      return Rounded<T>(m, scratch);
    }
  };
  InMode(weights, call, m.groups.runs, 2 * BookBytes(m) + 2 * 64);
}

void UniformProduct(const Uniform& m, const Call& call) {
  InMode([&](auto, Scratch&) { return LevelWeights{m}; }, call, m.groups.runs,
         0);
}

void SparseProduct(const Sparse& m, const Call& call) {
  const Rows& rows = call.rows;
  const auto multiply = [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t first = m.First(n), last = m.Last(n);
      for (int64_t b = 0; b < rows.batch; ++b) {
        const float* x = rows.x + b * rows.inputs;
        float total = 0;
        for (int64_t i = first; i < last; ++i) {
          total += m.book[m.codes[i]] * x[m.Column(i)];
        }
        call.y[b * m.outputs + n] = total;
      }
    }
  };
  call.threads(m.outputs, 1, 8 * m.nonzeros * rows.batch, multiply);
}

}  // namespace

const Kernels& ScalarKernels() {
  static const Kernels kernels = {"scalar", CodebookProduct, UniformProduct,
                                  SparseProduct};
  return kernels;
}

}  // namespace bandwidth
