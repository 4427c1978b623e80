// Codes to weights, a block at a time, for AVX-512.
//
// A source says where blocks of a matrix are; its table holds what codes of an
// output and a run mean, and hands over the weights of a block, a register at a
// time. A book of 16 floats is one register, and one permutation looks up 16
// weights; it ignores the upper bits of an index, so a shift of the packed
// words is all that unpacking takes. A book of 256 is looked up byte by byte of
// what the codes mean, 64 codes at a time.

#ifndef BANDWIDTH_INFERENCE_NATIVE_AVX512_TABLES_H_
#define BANDWIDTH_INFERENCE_NATIVE_AVX512_TABLES_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "rounding.h"

namespace bandwidth {
namespace {

inline __m512i Load(const void* p) { return _mm512_loadu_si512(p); }

// Bytes of 256 numbers of kBytes each: a look-up for each of the bytes.
template <int kBytes>
class Planes {
 public:
  template <typename T>
  void Set(const T* book) {
    static_assert(sizeof(T) == kBytes);
    alignas(64) uint8_t bytes[kBytes][kLargestBook];
    for (int e = 0; e < kLargestBook; e += 64 / kBytes) {
      const __m512i values = Load(book + e);
      for (int p = 0; p < kBytes; ++p) {
        if constexpr (kBytes == 4) {
          _mm_store_si128(
              reinterpret_cast<__m128i*>(bytes[p] + e),
              _mm512_cvtepi32_epi8(_mm512_srli_epi32(values, 8 * p)));
        } else {
          _mm256_store_si256(
              reinterpret_cast<__m256i*>(bytes[p] + e),
              _mm512_cvtepi16_epi8(_mm512_srli_epi16(values, 8 * p)));
        }
      }
    }
    for (int p = 0; p < kBytes; ++p) {
      for (int q = 0; q < 4; ++q) tables_[p][q] = Load(bytes[p] + 64 * q);
    }
  }

  // Bytes of what 64 codes mean: those of each quarter of the book by a
  // permutation of it.
  void LookUp(__m512i codes, __m512i (&found)[kBytes]) const {
    const __mmask64 upper = _mm512_movepi8_mask(codes);
    const __mmask64 second =
        _mm512_movepi8_mask(_mm512_add_epi8(codes, codes));
    const __mmask64 quarters[3] = {_kandn_mask64(upper, second),
                                   _kandn_mask64(second, upper),
                                   _kand_mask64(upper, second)};
#pragma GCC unroll 4
    for (int p = 0; p < kBytes; ++p) {
      found[p] = _mm512_permutexvar_epi8(codes, tables_[p][0]);
#pragma GCC unroll 3
      for (int q = 0; q < 3; ++q) {
        found[p] = _mm512_mask_permutexvar_epi8(found[p], quarters[q], codes,
                                                tables_[p][q + 1]);
      }
    }
  }

 private:
  __m512i tables_[kBytes][4];
};

// Words of the even bytes of two registers, and of the odd ones.
inline __m512i EvenBytes(__m512i low, __m512i high) {
  return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, low,
                                _mm512_slli_epi16(high, 8));
}
inline __m512i OddBytes(__m512i low, __m512i high) {
  return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_srli_epi16(low, 8),
                                high);
}

// The same of words.
inline __m512i EvenWords(__m512i low, __m512i high) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
}
inline __m512i OddWords(__m512i low, __m512i high) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(low, 16), high);
}

// A book of at most 16 as integers, repeated until they are 16.
struct Rounded {
  __m512i integers;
  float scale;
};

template <int kBits>
inline Rounded RoundSmall(const float* book, int largest) {
  const __m512 values = kBits == 2
                            ? _mm512_broadcast_f32x4(_mm_loadu_ps(book))
                            : _mm512_loadu_ps(book);
  const int32_t bits = _mm512_reduce_max_epi32(_mm512_and_si512(
      _mm512_castps_si512(values), _mm512_set1_epi32(0x7fffffff)));
  float most;
  std::memcpy(&most, &bits, sizeof(most));
  most = Bounded(most, largest);
  const __m512 inverse = _mm512_set1_ps(Inverse(most, largest));
  return {_mm512_cvtps_epi32(_mm512_mul_ps(values, inverse)), most / largest};
}

// What float weights of a codebook are. `each(j, weights)` gets inputs 16 j and
// following of a block.
template <int kBits>
class FloatTable {
 public:
  void Set(const float* book) {
    if constexpr (kBits == 2) {
      table_ = _mm512_broadcast_f32x4(_mm_loadu_ps(book));
    } else {
      table_ = _mm512_loadu_ps(book);
    }
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    __m512i words = Load(codes);
#pragma GCC unroll 16
    for (int j = 0; j < 32 / kBits; ++j) {
      each(j, _mm512_permutexvar_ps(words, table_));
      words = _mm512_srli_epi32(words, kBits);
    }
  }

 private:
  __m512 table_;
};

template <>
class FloatTable<8> {
 public:
  void Set(const float* book) {
    if (book == book_) return;
    book_ = book;
    planes_.Set(book);
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    __m512i bytes[4];
    planes_.LookUp(Load(codes), bytes);
    const __m512i even[2] = {EvenBytes(bytes[0], bytes[1]),
                             EvenBytes(bytes[2], bytes[3])};
    const __m512i odd[2] = {OddBytes(bytes[0], bytes[1]),
                            OddBytes(bytes[2], bytes[3])};
    each(0, _mm512_castsi512_ps(EvenWords(even[0], even[1])));
    each(1, _mm512_castsi512_ps(EvenWords(odd[0], odd[1])));
    each(2, _mm512_castsi512_ps(OddWords(even[0], even[1])));
    each(3, _mm512_castsi512_ps(OddWords(odd[0], odd[1])));
  }

 private:
  const float* book_ = nullptr;
  Planes<4> planes_;
};

template <int kBits>
struct FloatCodes {
  using Table = FloatTable<kBits>;
  static constexpr bool kScaled = false;
  static constexpr int kVectors = 32 / kBits;
  static constexpr int kVectorUnits = 16;
  const Codebook& m;

  const Groups& groups() const { return m.groups; }
  int64_t outputs() const { return m.outputs; }
  const uint8_t* At(int64_t n, int64_t block) const {
    return m.codes + (n * m.groups.Blocks() + block) * kBlockBytes;
  }
  void Set(Table& table, int64_t n, int64_t run) const {
    table.Set(m.book + (m.groups.At(n, run) << kBits));
  }
};

// Weights are what `Block` gives times `scale`.
struct LevelTable {
  float scale;

  template <typename F>
  void Block(const uint8_t* levels, F&& each) const {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m128i bytes = _mm_loadu_si128(
          reinterpret_cast<const __m128i*>(levels + j * kLanes));
      each(j, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
    }
  }
};

struct FloatLevels {
  using Table = LevelTable;
  static constexpr bool kScaled = true;
  static constexpr int kVectors = 4;
  static constexpr int kVectorUnits = 16;
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

// Weights as words: `each(i, first, second)` gets two registers, of which every
// code of a block is in one.
template <int kBits>
class WordTable {
 public:
  float scale;

  void Set(const float* book, int64_t run) {
    const Made& made = recent_.Of(book, run);
    table_ = made.table;
    scale = made.scale;
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    __m512i words = Load(codes);
#pragma GCC unroll 4
    for (int i = 0; i < 8 / kBits; ++i) {
      const __m512i first = _mm512_permutexvar_epi16(words, table_);
      words = _mm512_srli_epi16(words, kBits);
      each(i, first, _mm512_permutexvar_epi16(words, table_));
      words = _mm512_srli_epi16(words, kBits);
    }
  }

 private:
  struct Made {
    __m512i table;
    float scale;
    void Set(const float* book) {
      const Rounded rounded = RoundSmall<kBits>(book, kLargestBook16);
      table = _mm512_broadcast_i64x4(
          _mm512_cvtepi32_epi16(rounded.integers));
      scale = rounded.scale;
    }
  };

  Recent<Made, 32> recent_;
  __m512i table_;
};

template <>
class WordTable<8> {
 public:
  float scale;

  void Set(const float* book, int64_t) {
    if (book == book_) return;
    book_ = book;
    alignas(64) int16_t words[kLargestBook];
    scale = RoundBook<kLargestBook>(book, kLargestBook16, words);
    planes_.Set(words);
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    __m512i bytes[2];
    planes_.LookUp(Load(codes), bytes);
    each(0, EvenBytes(bytes[0], bytes[1]), OddBytes(bytes[0], bytes[1]));
  }

 private:
  const float* book_ = nullptr;
  Planes<2> planes_;
};

template <int kBits>
struct WordCodes : FloatCodes<kBits> {
  using Table = WordTable<kBits>;
  void Set(Table& table, int64_t n, int64_t run) const {
    table.Set(this->m.book + (this->m.groups.At(n, run) << kBits), run);
  }
};

// Weights as bytes, offset by 128: the instruction that adds four products
// multiplies unsigned by signed ones.
inline __m512i Offset(__m512i bytes) {
  return _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(128)));
}

template <int kBits>
class ByteTable {
 public:
  float scale;

  void Set(const float* book, int64_t run) {
    const Made& made = recent_.Of(book, run);
    table_ = made.table;
    scale = made.scale;
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
    __m512i words = Load(codes);
#pragma GCC unroll 4
    for (int f = 0; f < 8 / kBits; ++f) {
      each(f, _mm512_shuffle_epi8(table_, _mm512_and_si512(words, mask)));
      words = _mm512_srli_epi16(words, kBits);
    }
  }

 private:
  struct Made {
    __m512i table;
    float scale;
    void Set(const float* book) {
      const Rounded rounded = RoundSmall<kBits>(book, kLargest8);
      table = Offset(
          _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(rounded.integers)));
      scale = rounded.scale;
    }
  };

  Recent<Made, 32> recent_;
  __m512i table_;
};

template <>
class ByteTable<8> {
 public:
  float scale;

  void Set(const float* book, int64_t) {
    if (book == book_) return;
    book_ = book;
    alignas(64) int8_t bytes[kLargestBook];
    scale = RoundBook<kLargestBook>(book, kLargest8, bytes);
    for (int i = 0; i < 4; ++i) tables_[i] = Offset(Load(bytes + 64 * i));
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    const __m512i words = Load(codes);
    const __m512i low = _mm512_permutex2var_epi8(tables_[0], words, tables_[1]);
    const __m512i high =
        _mm512_permutex2var_epi8(tables_[2], words, tables_[3]);
    each(0, _mm512_mask_blend_epi8(_mm512_movepi8_mask(words), low, high));
  }

 private:
  const float* book_ = nullptr;
  __m512i tables_[4];
};

template <int kBits>
struct ByteCodes : FloatCodes<kBits> {
  using Table = ByteTable<kBits>;
  static constexpr bool kScaled = true;
  static constexpr int kVectors = 8 / kBits;
  void Set(Table& table, int64_t n, int64_t run) const {
    table.Set(this->m.book + (this->m.groups.At(n, run) << kBits), run);
  }
};

struct ByteLevelTable {
  float scale;

  template <typename F>
  void Block(const uint8_t* levels, F&& each) const {
    each(0, Offset(Load(levels)));
  }
};

struct ByteLevels : FloatLevels {
  using Table = ByteLevelTable;
  static constexpr int kVectors = 1;
  void Set(Table& table, int64_t n, int64_t run) const {
    table.scale = m.step[m.groups.At(n, run)];
  }
};

}  // namespace
}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_AVX512_TABLES_H_
