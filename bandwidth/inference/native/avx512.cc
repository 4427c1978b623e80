// Products for AVX-512 with BW, VL, DQ, VBMI and VNNI.
//
// A book of 16 is one register, and one permutation looks up what a register
// holds of weights; it ignores the upper bits of an index, so a shift of the
// packed words is all that unpacking takes. A book of 256 is looked up byte by
// byte of what the codes mean, 64 codes at a time.

#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "products.h"
#include "rows.h"

namespace bandwidth {
namespace {

struct Sixteen {
  using Floats = __m512;
  using Ints = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kBytes = 64;

  // As of Eight.
  static constexpr int kFewRows = 8;
  static constexpr int kFewLevelRows = 8;
  static constexpr int kPairedRows = 4;
  static constexpr int kTileSums = 24;
  static constexpr int kTileRows = 64;
  static constexpr int kFloatWork = 1;
  static constexpr bool kLooksUp256 = true;

  static constexpr int FloatChains(int rows) {
    return rows <= 2 ? 4 : rows == 4 ? 2 : 1;
  }
  static constexpr int WordChains(int) { return 2; }
  static constexpr int ByteChains(int rows) { return rows <= 2 ? 4 : 2; }
  static constexpr int kLevelChains = 2;
  // 2 * 2^15 * 2^7 a product of pairs: 127 of them fit into 32 bits.
  static constexpr int kLevelBlocks = 32;

  static Floats Set(float value) { return _mm512_set1_ps(value); }
  static Floats Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
  static Floats MultiplyAdd(Floats a, Floats b, Floats sum) {
    return _mm512_fmadd_ps(a, b, sum);
  }
  static float Sum(Floats v) { return _mm512_reduce_add_ps(v); }

  static Ints LoadInts(const void* p) { return _mm512_loadu_si512(p); }
  static Ints Add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static int32_t Sum(Ints v) { return _mm512_reduce_add_epi32(v); }
  static Floats ToFloats(Ints v) { return _mm512_cvtepi32_ps(v); }
  static Floats LevelFloats(const uint8_t* levels) {
    return ToFloats(_mm512_cvtepi8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels))));
  }
  static Ints LevelWords(const uint8_t* levels) {
    return _mm512_cvtepi8_epi16(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(levels)));
  }
  static Ints MultiplyWords(Ints a, Ints b) { return _mm512_madd_epi16(a, b); }
  static Ints AddWords(Ints sum, Ints a, Ints b) {
    return _mm512_dpwssd_epi32(sum, a, b);
  }
  static Floats AddChains(Floats total, float scale, const Floats (&sums)[2]) {
    return MultiplyAdd(Set(scale), sums[0] + sums[1], total);
  }
  static Floats AddChains(Floats total, float scale, const Ints (&sums)[2]) {
    total = MultiplyAdd(Set(scale), ToFloats(sums[0]), total);
    return MultiplyAdd(Set(scale), ToFloats(sums[1]), total);
  }

  // Weights as bytes are offset: the instruction that adds four products
  // multiplies unsigned by signed ones.
  static constexpr int kOffset = 128;
  static Ints Offset() { return _mm512_set1_epi8(static_cast<char>(kOffset)); }
  static Ints Bytes(Ints levels) { return _mm512_xor_si512(levels, Offset()); }
  static Ints AddBytes(Ints sum, Ints weights, Ints x) {
    return _mm512_dpbusd_epi32(sum, weights, x);
  }
  static Ints MultiplyAdd(Floats weights, Floats x, Ints sum) {
    return AddBytes(sum, _mm512_castps_si512(weights), _mm512_castps_si512(x));
  }
  static void Store(void* p, Ints v) { _mm512_storeu_si512(p, v); }
  static Ints Subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
  // The first of a register, of which all others are zero.
  static Ints First(int32_t value) {
    return _mm512_zextsi128_si512(_mm_cvtsi32_si128(value));
  }
  static Floats First(float value) {
    return _mm512_zextps128_ps512(_mm_set_ss(value));
  }
};

template <int kBits, typename T>
class Lookup<Sixteen, kBits, T> {
 public:
  static constexpr int kVectors = 8 * sizeof(T) / kBits;
  static constexpr int kSlots = sizeof(T) == 4 ? 0 : 32;
  static constexpr Order kOrder = kNatural;  // of floats

  static void Arrange(const int32_t* values, int64_t count, T* to) {
    PackWords<kBits>(values, count, to);
  }

  float Set(const float* book) {
    const __m512 values = kBits == 2
                              ? _mm512_broadcast_f32x4(_mm_loadu_ps(book))
                              : _mm512_loadu_ps(book);
    const __m512i as_bits = _mm512_castps_si512(values);
    if constexpr (sizeof(T) == 4) {
      table_ = as_bits;
      return 1;
    }
    constexpr int kLargest = sizeof(T) == 1 ? kLargest8 : kLargestBook16;
    const int32_t bits = _mm512_reduce_max_epi32(
        _mm512_and_si512(as_bits, _mm512_set1_epi32(0x7fffffff)));
    float most;
    std::memcpy(&most, &bits, sizeof(most));
    most = Bounded(most, kLargest);
    const __m512i integers = _mm512_cvtps_epi32(
        _mm512_mul_ps(values, _mm512_set1_ps(Inverse(most, kLargest))));
    table_ = sizeof(T) == 2
                 ? _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(integers))
                 : Sixteen::Bytes(_mm512_broadcast_i32x4(
                       _mm512_cvtepi32_epi8(integers)));
    return most / kLargest;
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
    __m512i words = Sixteen::LoadInts(codes);
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) {
      if constexpr (sizeof(T) == 4) {
        each(j, _mm512_permutexvar_ps(words, _mm512_castsi512_ps(table_)));
        words = _mm512_srli_epi32(words, kBits);
      } else if constexpr (sizeof(T) == 2) {
        const __m512i low = _mm512_permutexvar_epi16(words, table_);
        words = _mm512_srli_epi16(words, kBits);
        each(j / 2, low, _mm512_permutexvar_epi16(words, table_));
        words = _mm512_srli_epi16(words, kBits);
        ++j;
      } else {
        each(j, _mm512_shuffle_epi8(table_, _mm512_and_si512(words, mask)));
        words = _mm512_srli_epi16(words, kBits);
      }
    }
  }

 private:
  __m512i table_;
};

// Bytes of 256 numbers: a look-up for each of the bytes.
template <typename T>
class Lookup<Sixteen, 8, T> {
 public:
  static constexpr int kVectors = sizeof(T);
  static constexpr int kSlots = 1;
  static constexpr Order kOrder = kNatural;

  static void Arrange(const int32_t* values, int64_t count, T* to) {
    PackWords<8>(values, count, to);
  }

  float Set(const float* book) {
    std::conditional_t<kPlanes == 4, int32_t, T> integers[kLargestBook];
    float scale = 1;
    if constexpr (kPlanes == 4) {
      std::memcpy(integers, book, sizeof(integers));
    } else {
      scale = Round(book, kLargestBook, kLargestBook,
                    kPlanes == 1 ? kLargest8 : kLargestBook16, integers);
    }
    for (int p = 0; p < kPlanes; ++p) {
      alignas(64) uint8_t bytes[kLargestBook];
      for (int e = 0; e < kLargestBook; ++e) bytes[e] = integers[e] >> (8 * p);
      for (int q = 0; q < 4; ++q) {
        tables_[p][q] = Sixteen::LoadInts(bytes + 64 * q);
        if (kPlanes == 1) tables_[p][q] = Sixteen::Bytes(tables_[p][q]);
      }
    }
    return scale;
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    const __m512i index = Sixteen::LoadInts(codes);
    if constexpr (kPlanes == 1) {
      const __m512i(&t)[4] = tables_[0];
      each(0, _mm512_mask_blend_epi8(
                  _mm512_movepi8_mask(index),
                  _mm512_permutex2var_epi8(t[0], index, t[1]),
                  _mm512_permutex2var_epi8(t[2], index, t[3])));
    } else {
      __m512i bytes[kPlanes];
      Find(index, bytes);
      const __m512i even = EvenBytes(bytes[0], bytes[1]),
                    odd = OddBytes(bytes[0], bytes[1]);
      if constexpr (kPlanes == 2) {
        each(0, even, odd);
      } else {
        const __m512i high_even = EvenBytes(bytes[2], bytes[3]),
                      high_odd = OddBytes(bytes[2], bytes[3]);
        each(0, EvenWords(even, high_even));
        each(1, EvenWords(odd, high_odd));
        each(2, OddWords(even, high_even));
        each(3, OddWords(odd, high_odd));
      }
    }
  }

 private:
  static constexpr int kPlanes = sizeof(T);

  // Bytes of what 64 codes mean: those of each quarter of the book by a
  // permutation of it.
  void Find(__m512i codes, __m512i (&found)[kPlanes]) const {
    const __mmask64 upper = _mm512_movepi8_mask(codes);
    const __mmask64 second =
        _mm512_movepi8_mask(_mm512_add_epi8(codes, codes));
    const __mmask64 quarters[3] = {_kandn_mask64(upper, second),
                                   _kandn_mask64(second, upper),
                                   _kand_mask64(upper, second)};
#pragma GCC unroll 4
    for (int p = 0; p < kPlanes; ++p) {
      found[p] = _mm512_permutexvar_epi8(codes, tables_[p][0]);
#pragma GCC unroll 3
      for (int q = 0; q < 3; ++q) {
        found[p] = _mm512_mask_permutexvar_epi8(found[p], quarters[q], codes,
                                                tables_[p][q + 1]);
      }
    }
  }

  // Words of the even bytes of two registers, and of the odd ones.
  static __m512i EvenBytes(__m512i low, __m512i high) {
    return _mm512_mask_blend_epi8(kOdd, low, _mm512_slli_epi16(high, 8));
  }
  static __m512i OddBytes(__m512i low, __m512i high) {
    return _mm512_mask_blend_epi8(kOdd, _mm512_srli_epi16(low, 8), high);
  }
  // The same of words, as floats.
  static __m512 EvenWords(__m512i low, __m512i high) {
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(
        static_cast<__mmask32>(kOdd), low, _mm512_slli_epi32(high, 16)));
  }
  static __m512 OddWords(__m512i low, __m512i high) {
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(
        static_cast<__mmask32>(kOdd), _mm512_srli_epi32(low, 16), high));
  }
  static constexpr __mmask64 kOdd = 0xaaaaaaaaaaaaaaaa;

  __m512i tables_[kPlanes][4];
};

inline void SparseRow(Sixteen, const Sparse& m, const float* x,
                      const Range& range) {
  const bool small = m.entries <= 32;
  const __m512 low = _mm512_loadu_ps(m.book);
  const __m512 high = _mm512_loadu_ps(m.book + 16);
  const __m512i most = _mm512_set1_epi32(m.inputs - 1);
  for (int64_t n = range.begin; n < range.end; ++n) {
    const int64_t last = m.Last(n);
    __m512 sums = _mm512_setzero_ps();
    for (int64_t i = m.First(n); i < last; i += kLanes) {
      const int64_t left = last - i;
      const __mmask16 mask =
          left >= kLanes ? 0xffff : static_cast<__mmask16>((1 << left) - 1);
      const __m512i codes =
          _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, m.codes + i));
      const __m512 weights =
          small ? _mm512_permutex2var_ps(low, codes, high)
                : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, codes,
                                           m.book, 4);
      // Only columns of `mask` are read, none beyond the inputs; what was not
      // read counts nothing, even if x is infinite.
      const __m512i columns =
          m.columns16
              ? _mm512_cvtepu16_epi32(
                    _mm256_maskz_loadu_epi16(mask, m.columns16 + i))
              : _mm512_maskz_loadu_epi32(mask, m.columns32 + i);
      const __m512 read =
          _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask,
                                   _mm512_min_epu32(columns, most), x, 4);
      sums = _mm512_fmadd_ps(weights, read, sums);
    }
    range.y[n] = _mm512_reduce_add_ps(sums);
  }
}

}  // namespace
const Kernels& Avx512Kernels() {
  static const Kernels kernels = KernelsOf<Sixteen>("avx512");
  return kernels;
}

}  // namespace bandwidth
