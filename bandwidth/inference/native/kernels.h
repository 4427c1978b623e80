// Products of activations and compressed matrices, for a range of outputs.
//
// Layouts are those of bandwidth/inference/matrices.py. Each instruction set has
// a table of kernels; the scalar ones are what the others are tested against,
// and what runs where there is nothing better.

#ifndef BANDWIDTH_INFERENCE_NATIVE_KERNELS_H_
#define BANDWIDTH_INFERENCE_NATIVE_KERNELS_H_

#include <cstdint>

namespace bandwidth {

constexpr int kLanes = 16;
constexpr int kBlockBytes = 4 * kLanes;
constexpr int kLargestBook = 256;

// Where the numbers of a matrix are that groups of weights share: one for
// output n and run r at (n / group) * runs + r. Runs are whole blocks of inputs.
struct Groups {
  int64_t group;       // outputs of a group
  int64_t runs;        // along the inputs
  int64_t run_blocks;  // blocks of a run
};

// Shared weights. A book has 2^bits entries, so that every code has one.
struct Codebook {
  const uint8_t* codes;  // [outputs, runs * run_blocks * kBlockBytes]
  const float* book;     // [groups, runs, 2^bits]
  int bits;              // 2, 4 or 8
  Groups groups;
};

// Integers of 8 bits, in blocks of 64.
struct Uniform {
  const int8_t* levels;  // [outputs, runs * run_blocks * 64]
  const float* step;     // [groups, runs]
  Groups groups;
};

// Weights that are not zero.
struct Sparse {
  const int32_t* starts;      // [outputs + 1]
  const uint16_t* columns16;  // [nonzeros], or null
  const int32_t* columns32;   // [nonzeros], or null
  const uint8_t* codes;       // [nonzeros]
  const float* book;          // [kLargestBook]
  int entries;                // that codes mean
  int64_t nonzeros;
  int32_t inputs;             // at least 1
};

// Rows of activations, `stride` numbers apart, zeros where a block is filled up.
struct Floats {
  const float* x;
  int64_t stride;
  int64_t batch;
};

// Rows of activations as integers: x = scale * value. The order within a block
// is that in which `order_of` (ffi.cc) says codes are met.
template <typename T>
struct Integers {
  const T* x;
  const float* scale;    // [batch]
  const int32_t* sums;   // [batch, runs], of the values
  int64_t stride;
  int64_t batch;
};

// Codebooks as integers: book = scale * value.
template <typename T>
struct IntegerBook {
  const T* book;         // [groups, runs, 2^bits]
  const float* scale;    // [groups, runs]
};

// y[b, n] of one range of outputs; rows of y are `stride` apart.
struct Range {
  int64_t begin;
  int64_t end;
  float* y;
  int64_t stride;
};

// Largest integers. Four products of them fit into 32 bits for `codebook16`.
constexpr int kLargest8 = 127;
constexpr int kLargest16 = 32767;
constexpr int kLargestBook16 = 16383;

struct Kernels {
  const char* name;
  // Bits of the widest codes that the kernels of integers look up.
  int widest16;
  int widest8;
  void (*codebook)(const Codebook&, const Floats&, const Range&);
  void (*uniform)(const Uniform&, const Floats&, const Range&);
  void (*sparse)(const Sparse&, const Floats&, const Range&);
  void (*codebook16)(const Codebook&, const IntegerBook<int16_t>&,
                     const Integers<int16_t>&, const Range&);
  void (*uniform16)(const Uniform&, const Integers<int16_t>&, const Range&);
  void (*codebook8)(const Codebook&, const IntegerBook<int8_t>&,
                    const Integers<int8_t>&, const Range&);
  void (*uniform8)(const Uniform&, const Integers<int8_t>&, const Range&);
};

const Kernels& ScalarKernels();
#if defined(__x86_64__)
const Kernels& Avx2Kernels();
const Kernels& Avx512Kernels();
#endif

}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_KERNELS_H_
