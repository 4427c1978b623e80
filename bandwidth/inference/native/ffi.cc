// What XLA calls: checks of operands, and the choice of kernels.

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace bandwidth {
namespace {

namespace ffi = xla::ffi;

const Kernels* Named(const std::string& name) {
  if (name == "scalar") return &ScalarKernels();
#if defined(__x86_64__)
  if (name == "avx2" && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma")) {
    return &Avx2Kernels();
  }
  if (name == "avx512" && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vbmi") &&
      __builtin_cpu_supports("avx512vnni")) {
    return &Avx512Kernels();
  }
#endif
  return nullptr;
}

const Kernels* Best() {
  for (const char* name : {"avx512", "avx2"}) {
    if (const Kernels* kernels = Named(name)) return kernels;
  }
  return &ScalarKernels();
}

std::atomic<const Kernels*>& Current() {
  static std::atomic<const Kernels*> current{Best()};
  return current;
}

template <typename Dimensions>
int64_t LeadingOf(const Dimensions& dimensions) {
  int64_t batch = 1;
  for (size_t i = 0; i + 1 < dimensions.size(); ++i) batch *= dimensions[i];
  return batch;
}

ffi::Error Wrong(const std::string& what) {
  return ffi::Error::InvalidArgument("bandwidth: " + what);
}

using Activations = ffi::Buffer<ffi::F32>;
using Products = ffi::ResultBuffer<ffi::F32>;

bool IsMode(int64_t mode) { return 0 <= mode && mode <= 2; }

ffi::Error CodebookProduct(ffi::ThreadPool pool, Activations x,
                           ffi::Buffer<ffi::U8> codes,
                           ffi::Buffer<ffi::F32> book, Products y,
                           int64_t bits, int64_t mode) {
  const auto xs = x.dimensions(), cs = codes.dimensions(),
             bs = book.dimensions(), ys = y->dimensions();
  if (bits != 2 && bits != 4 && bits != 8) return Wrong("bits");
  if (!IsMode(mode)) return Wrong("mode");
  if (xs.size() < 1 || cs.size() != 2 || bs.size() != 3 || ys.size() < 1) {
    return Wrong("axes of operands");
  }
  const Rows rows{x.typed_data(), LeadingOf(xs),
                  static_cast<int64_t>(xs.back()),
                  cs[1] / kBlockBytes * (8 * kBlockBytes / bits)};
  const int64_t outputs = cs[0], runs = bs[1], blocks = cs[1] / kBlockBytes;
  if (cs[1] % kBlockBytes || rows.filled < rows.inputs || bs[2] != 1 << bits ||
      static_cast<int64_t>(ys.back()) != outputs ||
      LeadingOf(ys) != rows.batch || bs[0] < 1 || outputs % bs[0] ||
      runs < 1 || blocks % runs) {
    return Wrong("shapes of a codebook matrix do not fit");
  }
  const Codebook matrix{codes.typed_data(), book.typed_data(),
                        static_cast<int>(bits), outputs,
                        {outputs / bs[0], runs, blocks / runs}};
  Current().load()->codebook(matrix, rows, static_cast<Mode>(mode),
                             y->typed_data(), {&pool, Divide});
  return ffi::Error::Success();
}

bool AllFinite(const float* values, int64_t count) {
  uint32_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    wrong |= (bits & 0x7f800000) == 0x7f800000;
  }
  return !wrong;
}

// Sums of activations times levels may be too large for floats where products,
// that is steps times these sums, are not: such rows are multiplied once more,
// so much smaller that they are not, either.
void MultiplyUniform(const Uniform& m, const Rows& rows, Mode mode, float* y,
                     const Threads& threads) {
  constexpr float kSmaller = 0x1p-64f, kLarger = 0x1p64f;
  const auto multiply = Current().load()->uniform;
  multiply(m, rows, mode, y, threads);
  if (mode != Mode::kExact) return;
  for (int64_t b = 0; b < rows.batch; ++b, y += m.outputs) {
    if (AllFinite(y, m.outputs)) continue;
    std::vector<float> x(rows.x + b * rows.inputs,
                         rows.x + (b + 1) * rows.inputs);
    for (float& value : x) value *= kSmaller;
    std::vector<float> again(m.outputs);
    multiply(m, {x.data(), 1, rows.inputs, rows.filled}, mode, again.data(),
             threads);
    for (int64_t n = 0; n < m.outputs; ++n) {
      if (!std::isfinite(y[n])) y[n] = again[n] * kLarger;
    }
  }
}

ffi::Error UniformProduct(ffi::ThreadPool pool, Activations x,
                          ffi::Buffer<ffi::S8> levels,
                          ffi::Buffer<ffi::F32> step, Products y,
                          int64_t mode) {
  const auto xs = x.dimensions(), ls = levels.dimensions(),
             ss = step.dimensions(), ys = y->dimensions();
  if (!IsMode(mode)) return Wrong("mode");
  if (xs.size() < 1 || ls.size() != 2 || ss.size() != 2 || ys.size() < 1) {
    return Wrong("axes of operands");
  }
  const Rows rows{x.typed_data(), LeadingOf(xs),
                  static_cast<int64_t>(xs.back()), ls[1]};
  const int64_t outputs = ls[0], runs = ss[1], blocks = ls[1] / kBlockBytes;
  if (ls[1] % kBlockBytes || rows.filled < rows.inputs ||
      static_cast<int64_t>(ys.back()) != outputs ||
      LeadingOf(ys) != rows.batch || ss[0] < 1 || outputs % ss[0] ||
      runs < 1 || blocks % runs) {
    return Wrong("shapes of a uniform matrix do not fit");
  }
  const Uniform matrix{levels.typed_data(), step.typed_data(), outputs,
                       {outputs / ss[0], runs, blocks / runs}};
  MultiplyUniform(matrix, rows, static_cast<Mode>(mode), y->typed_data(),
                  {&pool, Divide});
  return ffi::Error::Success();
}

ffi::Error SparseProduct(ffi::ThreadPool pool, Activations x,
                         ffi::Buffer<ffi::S32> starts, ffi::AnyBuffer columns,
                         ffi::Buffer<ffi::U8> codes,
                         ffi::Buffer<ffi::F32> book, Products y) {
  const auto xs = x.dimensions(), ss = starts.dimensions(),
             ks = columns.dimensions(), cs = codes.dimensions(),
             bs = book.dimensions(), ys = y->dimensions();
  if (xs.size() < 1 || ss.size() != 1 || ks.size() != 1 || cs.size() != 1 ||
      bs.size() != 1 || ys.size() < 1) {
    return Wrong("axes of operands");
  }
  const bool narrow = columns.element_type() == ffi::U16;
  if (!narrow && columns.element_type() != ffi::S32) return Wrong("columns");
  const int64_t outputs = ss[0] - 1, batch = LeadingOf(xs), inputs = xs.back();
  if (outputs < 0 || ks[0] != cs[0] || bs[0] > kLargestBook || bs[0] < 1 ||
      inputs < 1 || inputs > std::numeric_limits<int32_t>::max() ||
      static_cast<int64_t>(ys.back()) != outputs || LeadingOf(ys) != batch) {
    return Wrong("shapes of a sparse matrix do not fit");
  }
  float whole[kLargestBook] = {};
  std::memcpy(whole, book.typed_data(), bs[0] * sizeof(float));
  const Sparse matrix{
      starts.typed_data(),
      narrow ? static_cast<const uint16_t*>(columns.untyped_data()) : nullptr,
      narrow ? nullptr : static_cast<const int32_t*>(columns.untyped_data()),
      codes.typed_data(), whole, static_cast<int>(bs[0]), outputs, cs[0],
      static_cast<int32_t>(inputs)};
  Current().load()->sparse(matrix, {x.typed_data(), batch, inputs, inputs},
                           y->typed_data(), {&pool, Divide});
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bandwidth

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    BandwidthCodebook, bandwidth::CodebookProduct,
    xla::ffi::Ffi::Bind()
        .Ctx<xla::ffi::ThreadPool>()
        .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
        .Arg<xla::ffi::Buffer<xla::ffi::U8>>()
        .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
        .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
        .Attr<int64_t>("bits")
        .Attr<int64_t>("mode"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    BandwidthUniform, bandwidth::UniformProduct,
    xla::ffi::Ffi::Bind()
        .Ctx<xla::ffi::ThreadPool>()
        .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
        .Arg<xla::ffi::Buffer<xla::ffi::S8>>()
        .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
        .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
        .Attr<int64_t>("mode"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    BandwidthSparse, bandwidth::SparseProduct,
    xla::ffi::Ffi::Bind()
        .Ctx<xla::ffi::ThreadPool>()
        .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
        .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::Buffer<xla::ffi::U8>>()
        .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
        .Ret<xla::ffi::Buffer<xla::ffi::F32>>());

// Chooses kernels by name; returns the name of what is in use then: another one
// where this machine lacks the instructions.
extern "C" const char* BandwidthUse(const char* name) {
  if (const bandwidth::Kernels* kernels = bandwidth::Named(name)) {
    bandwidth::Current() = kernels;
  } else if (std::strcmp(name, "best") == 0) {
    bandwidth::Current() = bandwidth::Best();
  }
  return bandwidth::Current().load()->name;
}
