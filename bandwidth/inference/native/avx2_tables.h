// Codes to weights, a block at a time, for AVX2; avx512_tables.h says what a
// source and a table are.
//
// A book of 16 is looked up by shuffles of bytes, one for each byte of what the
// codes mean; interleaving them gives weights in an order of its own, `kOrder`,
// into which activations are brought once. A block is met in two halves.

#ifndef BANDWIDTH_INFERENCE_NATIVE_AVX2_TABLES_H_
#define BANDWIDTH_INFERENCE_NATIVE_AVX2_TABLES_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "activations.h"
#include "kernels.h"
#include "rounding.h"

namespace bandwidth {
namespace {

constexpr int kWide = 8;

inline __m256i Load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// Bytes of at most 16 numbers of kBytes each, in both halves of a register.
template <int kBits, int kBytes>
class Planes {
 public:
  explicit Planes(const __m128i (&planes)[kBytes]) {
    for (int p = 0; p < kBytes; ++p) {
      tables_[p] = _mm256_broadcastsi128_si256(planes[p]);
    }
  }
  Planes() = default;

  // Calls `each(i, bytes)` for every code of a byte of half a block, i counting
  // through the block.
  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    constexpr int kFields = 8 / kBits;
    const __m256i mask = _mm256_set1_epi8((1 << kBits) - 1);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256i words = Load(codes + 32 * h);
#pragma GCC unroll 4
      for (int f = 0; f < kFields; ++f) {
        const __m256i index = _mm256_and_si256(words, mask);
        __m256i found[kBytes];
#pragma GCC unroll 4
        for (int p = 0; p < kBytes; ++p) {
          found[p] = _mm256_shuffle_epi8(tables_[p], index);
        }
        each(h * kFields + f, found);
        words = _mm256_srli_epi16(words, kBits);
      }
    }
  }

 private:
  __m256i tables_[kBytes];
};

// The order in which Planes and interleaving of bytes give inputs: `kTogether`
// words of each half of a register are in the one that interleaving gives.
template <int kBits, int kTogether>
constexpr Order PlaneOrder() {
  constexpr int kFields = 8 / kBits;
  Order order{};
  for (int i = 0; i < 2 * kFields; ++i) {
    for (int word = 0; word < 4; word += kTogether) {
      for (int half = 0; half < 2; ++half) {
        for (int w = word; w < word + kTogether; ++w) {
          for (int byte = 0; byte < 4; ++byte) {
            const int field = kFields * byte + i % kFields;
            const int lane = kWide * (i / kFields) + 4 * half + w;
            order.at[order.block++] = kLanes * field + lane;
          }
        }
      }
    }
  }
  return order;
}

// Four of a book of at most 16, which is repeated until they are 16.
template <int kBits>
inline __m128 Quarter(const float* book, int quarter) {
  return _mm_loadu_ps(book + 4 * quarter % (1 << kBits));
}

template <int kBits>
inline Planes<kBits, 4> FloatPlanes(const float* book) {
  const __m128i by_byte =
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m128i fours[4];
  for (int q = 0; q < 4; ++q) {
    fours[q] = _mm_shuffle_epi8(_mm_castps_si128(Quarter<kBits>(book, q)),
                                by_byte);
  }
  const __m128i low[2] = {_mm_unpacklo_epi32(fours[0], fours[1]),
                          _mm_unpacklo_epi32(fours[2], fours[3])};
  const __m128i high[2] = {_mm_unpackhi_epi32(fours[0], fours[1]),
                           _mm_unpackhi_epi32(fours[2], fours[3])};
  return Planes<kBits, 4>({_mm_unpacklo_epi64(low[0], low[1]),
                           _mm_unpackhi_epi64(low[0], low[1]),
                           _mm_unpacklo_epi64(high[0], high[1]),
                           _mm_unpackhi_epi64(high[0], high[1])});
}

// A book of at most 16 as integers, repeated until they are 16.
struct Rounded {
  __m128i words[2];
  float scale;
};

template <int kBits>
inline Rounded RoundSmall(const float* book, int largest) {
  const float most = Bounded(Largest(book, 1 << kBits), largest);
  const __m128 inverse = _mm_set1_ps(Inverse(most, largest));
  __m128i fours[4];
  for (int q = 0; q < 4; ++q) {
    fours[q] =
        _mm_cvtps_epi32(_mm_mul_ps(Quarter<kBits>(book, q), inverse));
  }
  return {{_mm_packs_epi32(fours[0], fours[1]),
           _mm_packs_epi32(fours[2], fours[3])},
          most / largest};
}

template <int kBits>
class FloatTable {
 public:
  static constexpr Order kOrder = PlaneOrder<kBits, 1>();

  void Set(const float* book, int64_t run) {
    planes_ = recent_.Of(book, run).planes;
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    planes_.Block(codes, [&](int i, const __m256i(&bytes)[4]) {
      const __m256i low[2] = {_mm256_unpacklo_epi8(bytes[0], bytes[1]),
                              _mm256_unpackhi_epi8(bytes[0], bytes[1])};
      const __m256i high[2] = {_mm256_unpacklo_epi8(bytes[2], bytes[3]),
                               _mm256_unpackhi_epi8(bytes[2], bytes[3])};
#pragma GCC unroll 2
      for (int t = 0; t < 2; ++t) {
        each(4 * i + 2 * t, _mm256_castsi256_ps(
                                _mm256_unpacklo_epi16(low[t], high[t])));
        each(4 * i + 2 * t + 1, _mm256_castsi256_ps(
                                    _mm256_unpackhi_epi16(low[t], high[t])));
      }
    });
  }

 private:
  struct Made {
    Planes<kBits, 4> planes;
    void Set(const float* book) { planes = FloatPlanes<kBits>(book); }
  };

  Recent<Made, 16> recent_;
  Planes<kBits, 4> planes_;
};

template <>
class FloatTable<8> {
 public:
  static constexpr Order kOrder = NaturalOrder();

  void Set(const float* book, int64_t) { book_ = book; }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    const __m256i mask = _mm256_set1_epi32(255);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256i words = Load(codes + 32 * h);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        each(2 * j + h, _mm256_i32gather_ps(
                            book_, _mm256_and_si256(words, mask), 4));
        words = _mm256_srli_epi32(words, 8);
      }
    }
  }

 private:
  const float* book_;
};

template <int kBits>
struct FloatCodes {
  using Table = FloatTable<kBits>;
  static constexpr bool kScaled = false;
  static constexpr int kVectors = 64 / kBits;
  static constexpr int kVectorUnits = kWide;
  const Codebook& m;

  const Groups& groups() const { return m.groups; }
  int64_t outputs() const { return m.outputs; }
  const uint8_t* At(int64_t n, int64_t block) const {
    return m.codes + (n * m.groups.Blocks() + block) * kBlockBytes;
  }
  void Set(Table& table, int64_t n, int64_t run) const {
    table.Set(m.book + (m.groups.At(n, run) << kBits), run);
  }
};

// Weights are what `Block` gives times `scale`.
struct LevelTable {
  float scale;

  static constexpr Order kOrder = NaturalOrder();

  template <typename F>
  void Block(const uint8_t* levels, F&& each) const {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __m128i bytes = _mm_loadl_epi64(
          reinterpret_cast<const __m128i*>(levels + j * kWide));
      each(j, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
    }
  }
};

struct FloatLevels {
  using Table = LevelTable;
  static constexpr bool kScaled = true;
  static constexpr int kVectors = 8;
  static constexpr int kVectorUnits = kWide;
  const Uniform& m;

  const Groups& groups() const { return m.groups; }
  int64_t outputs() const { return m.outputs; }
  const uint8_t* At(int64_t n, int64_t block) const {
    return reinterpret_cast<const uint8_t*>(m.levels) +
           (n * m.groups.Blocks() + block) * kBlockBytes;
  }
  void Set(Table& table, int64_t n, int64_t run) const {
    table.scale = m.step[m.groups.At(n, run)];
  }
};

// Weights as words, two registers at a time.
template <int kBits>
class WordTable {
 public:
  float scale;

  static constexpr Order kOrder = PlaneOrder<kBits, 2>();

  void Set(const float* book, int64_t run) {
    const Made& made = recent_.Of(book, run);
    planes_ = made.planes;
    scale = made.scale;
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    planes_.Block(codes, [&](int i, const __m256i(&bytes)[2]) {
      each(i, _mm256_unpacklo_epi8(bytes[0], bytes[1]),
           _mm256_unpackhi_epi8(bytes[0], bytes[1]));
    });
  }

 private:
  struct Made {
    Planes<kBits, 2> planes;
    float scale;
    void Set(const float* book) {
      const __m128i by_byte =
          _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
      const Rounded rounded = RoundSmall<kBits>(book, kLargestBook16);
      const __m128i low = _mm_shuffle_epi8(rounded.words[0], by_byte);
      const __m128i high = _mm_shuffle_epi8(rounded.words[1], by_byte);
      planes = Planes<kBits, 2>(
          {_mm_unpacklo_epi64(low, high), _mm_unpackhi_epi64(low, high)});
      scale = rounded.scale;
    }
  };

  Recent<Made, 32> recent_;
  Planes<kBits, 2> planes_;
};

template <int kBits>
struct WordCodes : FloatCodes<kBits> {
  using Table = WordTable<kBits>;
  void Set(Table& table, int64_t n, int64_t run) const {
    table.Set(this->m.book + (this->m.groups.At(n, run) << kBits), run);
  }
};

// Weights as bytes: `each(i, weights)` gets half a block of what is at byte
// 32 i of activations as `PackWords` leaves them.
template <int kBits>
class ByteTable {
 public:
  float scale;

  void Set(const float* book, int64_t run) {
    const Made& made = recent_.Of(book, run);
    planes_ = made.planes;
    scale = made.scale;
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    constexpr int kFields = 8 / kBits;
    planes_.Block(codes, [&](int i, const __m256i(&bytes)[1]) {
      each(2 * (i % kFields) + i / kFields, bytes[0]);
    });
  }

 private:
  struct Made {
    Planes<kBits, 1> planes;
    float scale;
    void Set(const float* book) {
      const Rounded rounded = RoundSmall<kBits>(book, kLargest8);
      planes = Planes<kBits, 1>(
          {_mm_packs_epi16(rounded.words[0], rounded.words[1])});
      scale = rounded.scale;
    }
  };

  Recent<Made, 32> recent_;
  Planes<kBits, 1> planes_;
};

template <int kBits>
struct ByteCodes : FloatCodes<kBits> {
  using Table = ByteTable<kBits>;
  static constexpr int kVectors = 16 / kBits;
  void Set(Table& table, int64_t n, int64_t run) const {
    table.Set(this->m.book + (this->m.groups.At(n, run) << kBits), run);
  }
};

struct ByteLevelTable {
  float scale;

  template <typename F>
  void Block(const uint8_t* levels, F&& each) const {
    each(0, Load(levels));
    each(1, Load(levels + 32));
  }
};

struct ByteLevels : FloatLevels {
  using Table = ByteLevelTable;
  static constexpr int kVectors = 2;
  void Set(Table& table, int64_t n, int64_t run) const {
    table.scale = m.step[m.groups.At(n, run)];
  }
};

}  // namespace
}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_AVX2_TABLES_H_
