// Products of activations and compressed matrices.
//
// Layouts are those of bandwidth/inference/matrices.py. Each instruction set
// has a table of products; the scalar ones are what runs where there is nothing
// better.
//
// What is compiled for an instruction set lies in unnamed namespaces: of a
// function that several files have, the linker keeps any one.

#pragma once

#include <cstdint>

namespace bandwidth {

constexpr int kLanes = 16;
constexpr int kBlockBytes = 4 * kLanes;
constexpr int kLargestBook = 256;

// Modes of arithmetic, as native.py numbers them.
enum class Mode { kExact = 0, kInt16 = 1, kInt8 = 2 };

// Where the numbers of a matrix are that groups of weights share: one for
// output n and run r at (n / group) * runs + r. Runs are whole blocks of
// inputs.
struct Groups {
  int64_t group;       // outputs of a group
  int64_t runs;        // along the inputs
  int64_t run_blocks;  // blocks of a run

  int64_t At(int64_t n, int64_t run) const { return n / group * runs + run; }
  int64_t Blocks() const { return runs * run_blocks; }
};

// Shared weights. A book has 2^bits entries, so that every code has one.
struct Codebook {
  const uint8_t* codes;  // [outputs, runs * run_blocks * kBlockBytes]
  const float* book;     // [groups, runs, 2^bits]
  int bits;              // 2, 4 or 8
  int64_t outputs;
  Groups groups;

  const uint8_t* At(int64_t n, int64_t block) const {
    return codes + (n * groups.Blocks() + block) * kBlockBytes;
  }
};

// Integers of 8 bits, in blocks of 64.
struct Uniform {
  const int8_t* levels;  // [outputs, runs * run_blocks * 64]
  const float* step;     // [groups, runs]
  int64_t outputs;
  Groups groups;

  const uint8_t* At(int64_t n, int64_t block) const {
    return reinterpret_cast<const uint8_t*>(levels) +
           (n * groups.Blocks() + block) * kBlockBytes;
  }
};

// Weights that are not zero.
struct Sparse {
  const int32_t* starts;      // [outputs + 1]
  const uint16_t* columns16;  // [nonzeros], or null
  const int32_t* columns32;   // [nonzeros], or null
  const uint8_t* codes;       // [nonzeros]
  const float* book;          // [kLargestBook]
  int entries;                // that codes mean
  int64_t outputs;
  int64_t nonzeros;
  int32_t inputs;             // at least 1

  int64_t First(int64_t n) const { return Within(starts[n], 0); }
  int64_t Last(int64_t n) const { return Within(starts[n + 1], First(n)); }
  // Columns are data: what they say must not lead out of the activations.
  uint32_t Column(int64_t i) const {
    const uint32_t column =
        columns16 ? columns16[i] : static_cast<uint32_t>(columns32[i]);
    const uint32_t last = static_cast<uint32_t>(inputs) - 1;
    return column < last ? column : last;
  }

 private:
  int64_t Within(int64_t start, int64_t least) const {
    const int64_t most = start < nonzeros ? start : nonzeros;
    return most > least ? most : least;
  }
};

// Rows of activations, one after the other; `filled` is what `inputs` become
// when the last block is filled up with zeros.
struct Rows {
  const float* x;
  int64_t batch;
  int64_t inputs;
  int64_t filled;
};

// What is to be done for outputs from `begin` to `end`.
struct Task {
  void (*run)(const void* self, int64_t begin, int64_t end);
  const void* self;
};

// Divides outputs among threads, in multiples of `unit`; `work` is in weights
// of a codebook of 4 bits that are multiplied by one row.
struct Threads {
  void* pool;
  void (*divide)(void* pool, int64_t outputs, int64_t unit, int64_t work,
                 const Task& task);

  template <typename F>
  void operator()(int64_t outputs, int64_t unit, int64_t work,
                  const F& f) const {
    const Task task{
        [](const void* self, int64_t begin, int64_t end) {
          (*static_cast<const F*>(self))(begin, end);
        },
        &f};
    divide(pool, outputs, unit, work, task);
  }
};

// Memory of this thread that starts where a cache line does, for as long as a
// product takes. It is kept for the next one, unless it is large; there is one
// at a time.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // The next `count` numbers of it, not set to anything.
  template <typename T>
  T* Take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += Bytes(count * sizeof(T));
    return taken;
  }
  static int64_t Bytes(int64_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  uint8_t* next_;
};

// Largest integers. Four products of them fit into 32 bits for 16 bits.
constexpr int kLargest8 = 127;
constexpr int kLargest16 = 32767;
constexpr int kLargestBook16 = 16383;

// What is to be multiplied, how, and where it goes: y[b, n] is the sum of
// x[b, k] W[k, n], y of [batch, outputs].
struct Call {
  Rows rows;
  Mode mode;
  float* y;
  Threads threads;
};

struct Kernels {
  const char* name;
  void (*codebook)(const Codebook&, const Call&);
  void (*uniform)(const Uniform&, const Call&);
  void (*sparse)(const Sparse&, const Call&);
};

const Kernels& ScalarKernels();
#if defined(__x86_64__)
const Kernels& Avx2Kernels();
const Kernels& Avx512Kernels();
#endif

}  // namespace bandwidth
