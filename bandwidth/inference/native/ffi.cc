// What XLA calls: checks of operands, its threads, memory of a thread, and the
// choice of kernels.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace bandwidth {
namespace {

namespace ffi = xla::ffi;

// Outputs are handed out in pieces. The caller takes part, so that the work is
// done even if no thread of the pool is ever free; one that comes when nothing
// is left does not touch the task, which is gone by then.
class Pieces {
 public:
  Pieces(int64_t outputs, int64_t piece, const Task& task)
      : outputs_(outputs), piece_(piece), task_(task) {}

  void Take() {
    for (;;) {
      const int64_t begin = next_.fetch_add(piece_);
      if (begin >= outputs_) return;
      const int64_t end = std::min(begin + piece_, outputs_);
      task_.run(task_.self, begin, end);
      if (done_.fetch_add(end - begin) + (end - begin) == outputs_) {
        std::lock_guard<std::mutex> lock(mutex_);
        all_done_.notify_all();
      }
    }
  }

  void Wait() {
    // Others are at their last piece: to sleep and be woken would take longer.
    for (int i = 0; i < 4096; ++i) {
      if (done_.load(std::memory_order_acquire) == outputs_) return;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [this] { return done_.load() == outputs_; });
  }

 private:
  const int64_t outputs_;
  const int64_t piece_;
  const Task task_;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> done_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
};

// Below this work a second thread costs more than it saves.
constexpr int64_t kWorkOfThread = 1 << 18;
constexpr int64_t kWorkOfPiece = 1 << 17;

void Divide(void* given, int64_t outputs, int64_t unit, int64_t work,
                   const Task& task) {
  auto& pool = *static_cast<xla::ffi::ThreadPool*>(given);
  const int64_t threads = std::min<int64_t>(
      std::max<int64_t>(pool.num_threads(), 1), work / kWorkOfThread);
  if (threads <= 1) return task.run(task.self, 0, outputs);
  const int64_t pieces = std::max<int64_t>(4 * threads, work / kWorkOfPiece);
  const int64_t piece = std::max<int64_t>(outputs / pieces / unit, 1) * unit;
  auto shared = std::make_shared<Pieces>(outputs, piece, task);
  for (int64_t i = 1; i < threads; ++i) {
    pool.Schedule([shared] { shared->Take(); });
  }
  shared->Take();
  shared->Wait();
}

constexpr int64_t kLine = 64;
constexpr int64_t kKept = 1 << 24;
thread_local std::unique_ptr<uint8_t[]> own_memory;
thread_local int64_t own_bytes = 0;

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

using Floats = ffi::Buffer<ffi::F32>;
using Products = ffi::ResultBuffer<ffi::F32>;

// A call for products of x with so many outputs, if they fit.
std::optional<Call> CallOf(const Floats& x, int64_t filled, int64_t outputs,
                           int64_t mode, Products& y, ffi::ThreadPool& pool) {
  const auto xs = x.dimensions(), ys = y->dimensions();
  if (!xs.size() || !ys.size() || xs.back() > filled || ys.back() != outputs ||
      LeadingOf(xs) != LeadingOf(ys) || mode < 0 || mode > 2) {
    return std::nullopt;
  }
  return Call{{x.typed_data(), LeadingOf(xs), xs.back(), filled},
              static_cast<Mode>(mode),
              y->typed_data(),
              {&pool, Divide}};
}

// Groups of so many bytes of each output; of none if these can't be divided.
Groups GroupsOf(int64_t outputs, int64_t groups, int64_t runs, int64_t bytes) {
  if (groups < 1 || outputs % groups || runs < 1 ||
      bytes % (runs * kBlockBytes)) {
    return {0, 0, 0};
  }
  return {outputs / groups, runs, bytes / kBlockBytes / runs};
}

ffi::Error Wrong(const std::string& form) {
  return ffi::Error::InvalidArgument("bandwidth: operands of a " + form +
                                     " product do not fit each other");
}

ffi::Error CodebookProduct(ffi::ThreadPool pool, Floats x,
                           ffi::Buffer<ffi::U8> codes, Floats book, Products y,
                           int64_t bits, int64_t mode) {
  const auto cs = codes.dimensions(), bs = book.dimensions();
  if ((bits != 2 && bits != 4 && bits != 8) || cs.size() != 2 ||
      bs.size() != 3 || bs[2] != 1 << bits) {
    return Wrong("codebook");
  }
  const auto call = CallOf(x, cs[1] * 8 / bits, cs[0], mode, y, pool);
  const Codebook matrix{codes.typed_data(), book.typed_data(),
                        static_cast<int>(bits), cs[0],
                        GroupsOf(cs[0], bs[0], bs[1], cs[1])};
  if (!call || !matrix.groups.runs) return Wrong("codebook");
  Current().load()->codebook(matrix, *call);
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
void MultiplyUniform(const Uniform& m, const Call& call) {
  constexpr float kSmaller = 0x1p-64f, kLarger = 0x1p64f;
  const auto multiply = Current().load()->uniform;
  multiply(m, call);
  if (call.mode != Mode::kExact) return;
  const Rows& rows = call.rows;
  float* y = call.y;
  for (int64_t b = 0; b < rows.batch; ++b, y += m.outputs) {
    if (AllFinite(y, m.outputs)) continue;
    std::vector<float> x(rows.x + b * rows.inputs,
                         rows.x + (b + 1) * rows.inputs);
    for (float& value : x) value *= kSmaller;
    std::vector<float> again(m.outputs);
    multiply(m, {{x.data(), 1, rows.inputs, rows.filled},
                 call.mode,
                 again.data(),
                 call.threads});
    for (int64_t n = 0; n < m.outputs; ++n) {
      if (!std::isfinite(y[n])) y[n] = again[n] * kLarger;
    }
  }
}

ffi::Error UniformProduct(ffi::ThreadPool pool, Floats x,
                          ffi::Buffer<ffi::S8> levels, Floats step, Products y,
                          int64_t mode) {
  const auto ls = levels.dimensions(), ss = step.dimensions();
  if (ls.size() != 2 || ss.size() != 2) return Wrong("uniform");
  const auto call = CallOf(x, ls[1], ls[0], mode, y, pool);
  const Uniform matrix{levels.typed_data(), step.typed_data(), ls[0],
                       GroupsOf(ls[0], ss[0], ss[1], ls[1])};
  if (!call || !matrix.groups.runs) return Wrong("uniform");
  MultiplyUniform(matrix, *call);
  return ffi::Error::Success();
}

ffi::Error SparseProduct(ffi::ThreadPool pool, Floats x,
                         ffi::Buffer<ffi::S32> starts, ffi::AnyBuffer columns,
                         ffi::Buffer<ffi::U8> codes, Floats book, Products y) {
  const auto ss = starts.dimensions(), ks = columns.dimensions(),
             cs = codes.dimensions(), bs = book.dimensions();
  const bool narrow = columns.element_type() == ffi::U16;
  if (ss.size() != 1 || ks.size() != 1 || cs.size() != 1 || bs.size() != 1 ||
      !x.dimensions().size() || ss[0] < 1 || ks[0] != cs[0] || bs[0] < 1 ||
      bs[0] > kLargestBook || (!narrow && columns.element_type() != ffi::S32)) {
    return Wrong("sparse");
  }
  const int64_t inputs = x.dimensions().back();
  const auto call = CallOf(x, inputs, ss[0] - 1, 0, y, pool);
  if (!call || inputs < 1 || inputs > std::numeric_limits<int32_t>::max()) {
    return Wrong("sparse");
  }
  float whole[kLargestBook] = {};
  std::memcpy(whole, book.typed_data(), bs[0] * sizeof(float));
  const Sparse matrix{
      starts.typed_data(),
      narrow ? static_cast<const uint16_t*>(columns.untyped_data()) : nullptr,
      narrow ? nullptr : static_cast<const int32_t*>(columns.untyped_data()),
      codes.typed_data(), whole, static_cast<int>(bs[0]), ss[0] - 1, cs[0],
      static_cast<int32_t>(inputs)};
  Current().load()->sparse(matrix, *call);
  return ffi::Error::Success();
}

auto Given() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>(); }

}  // namespace

Scratch::Scratch(int64_t bytes) {
  if (own_bytes < bytes) {
    own_bytes = 0;
    own_memory.reset();
    own_memory.reset(new uint8_t[bytes + kLine]);
    own_bytes = bytes;
  }
  const auto start = reinterpret_cast<uintptr_t>(own_memory.get());
  next_ = reinterpret_cast<uint8_t*>((start + kLine - 1) / kLine * kLine);
}

Scratch::~Scratch() {
  if (own_bytes <= kKept) return;
  own_memory.reset();
  own_bytes = 0;
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    BandwidthCodebook, CodebookProduct,
    Given().Arg<ffi::Buffer<ffi::U8>>().Arg<Floats>().Ret<Floats>()
        .Attr<int64_t>("bits").Attr<int64_t>("mode"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    BandwidthUniform, UniformProduct,
    Given().Arg<ffi::Buffer<ffi::S8>>().Arg<Floats>().Ret<Floats>()
        .Attr<int64_t>("mode"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    BandwidthSparse, SparseProduct,
    Given().Arg<ffi::Buffer<ffi::S32>>().Arg<ffi::AnyBuffer>()
        .Arg<ffi::Buffer<ffi::U8>>().Arg<Floats>().Ret<Floats>());

}  // namespace bandwidth

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
