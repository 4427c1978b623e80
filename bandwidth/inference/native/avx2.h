// Registers of AVX2 with FMA, and look-ups of what codes mean.
//
// A book of 16 is looked up by shuffles of bytes, one for each byte of what the
// codes mean; interleaving them gives weights in an order of its own, `kOrder`,
// into which activations are brought once. A block is met in two halves.

#pragma once

#include <immintrin.h>

#include "rows.h"

namespace bandwidth {
namespace {

struct Eight {
  using Floats = __m256;
  using Ints = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kBytes = 32;

  // Up to so many rows, a register holds inputs of one; of bytes always, of
  // which it holds four times as many.
  static constexpr int kFewRows = 4;
  static constexpr int kFewLevelRows = 4;
  static constexpr int kPairedRows = 8;  // from so many on, two outputs at once
  static constexpr int kTileSums = 12;   // registers for sums of many rows
  static constexpr int kTileRows = 16;
  static constexpr int kFloatWork = 2;
  static constexpr bool kLooksUp256 = false;  // integers of 8 bits

  // Sums of a row, so that one addition need not wait for the last.
  static constexpr int FloatChains(int rows) { return rows == 1 ? 4 : 2; }
  static constexpr int WordChains(int rows) { return rows == 1 ? 2 : 1; }
  static constexpr int ByteChains(int rows) { return rows == 1 ? 2 : 1; }
  static constexpr int kLevelChains = 1;
  static constexpr int kLevelBlocks = 1;  // whose sum stays an integer

  static Floats Set(float value) { return _mm256_set1_ps(value); }
  static Floats Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
  static Floats MultiplyAdd(Floats a, Floats b, Floats sum) {
    return _mm256_fmadd_ps(a, b, sum);
  }
  static float Sum(Floats v) {
    const __m128 four =
        _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static Ints LoadInts(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static Ints Add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Floats ToFloats(Ints v) { return _mm256_cvtepi32_ps(v); }
  static Floats LevelFloats(const uint8_t* levels) {
    return ToFloats(_mm256_cvtepi8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(levels))));
  }
  static Ints LevelWords(const uint8_t* levels) {
    return _mm256_cvtepi8_epi16(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
  }
  static Ints MultiplyWords(Ints a, Ints b) { return _mm256_madd_epi16(a, b); }
  static Ints AddWords(Ints sum, Ints a, Ints b) {
    return Add(sum, MultiplyWords(a, b));
  }
  static Floats ToFloats(Floats v) { return v; }
  // Adds what chains of sums of words come to, times a scale.
  template <typename T, int kChains>
  static Floats AddChains(Floats total, float scale, const T (&sums)[kChains]) {
    for (const T& sum : sums) {
      total = MultiplyAdd(Set(scale), ToFloats(sum), total);
    }
    return total;
  }

  // The instruction multiplies unsigned by signed bytes and adds pairs in 16
  // bits: magnitudes, of -128 too, by bytes up to 127 with the sign, which stay
  // below 2^15.
  static constexpr int kOffset = 0;
  static Ints Bytes(Ints weights) { return weights; }
  static Ints AddBytes(Ints sum, Ints weights, Ints x) {
    return AddWords(sum,
                    _mm256_maddubs_epi16(_mm256_abs_epi8(weights),
                                         _mm256_sign_epi8(x, weights)),
                    _mm256_set1_epi16(1));
  }
};

// The order in which bytes and their interleaving give inputs: `kTogether`
// words of each half of a register are in the one that interleaving gives.
template <int kBits, int kTogether>
constexpr Order PlaneOrder() {
  constexpr int kFields = 8 / kBits;
  Order order{};
  for (int at = 0; at < 512 / kBits; ++at) {
    const int i = at / 32, field = kFields * (at % 4) + i % kFields;
    const int word =
        at / (8 * kTogether) * kTogether % 4 + at / 4 % kTogether;
    const int half = 2 * (i / kFields) + at / (4 * kTogether) % 2;
    order.at[at] = kLanes * field + 4 * half + word;
  }
  order.block = 512 / kBits;
  return order;
}

template <int kBits, typename T>
class Lookup<Eight, kBits, T> {
 public:
  static constexpr int kVectors = 16 * sizeof(T) / kBits;
  static constexpr int kSlots = sizeof(T) == 4 ? 16 : 32;
  static constexpr Order kOrder = PlaneOrder<kBits, 4 / sizeof(T)>();

  static void Arrange(const int32_t* values, int64_t count, T* to) {
    if constexpr (kPlanes == 1) return PackWords<kBits>(values, count, to);
    Reorder(values, count, kOrder, to);
  }

  float Set(const float* book) {
    constexpr int kEntries = 1 << kBits;  // repeated until they are 16
    __m128i parts[4];
    float scale = 1;
    if constexpr (kPlanes == 4) {
      for (int q = 0; q < 4; ++q) {
        parts[q] = _mm_castps_si128(_mm_loadu_ps(book + 4 * q % kEntries));
      }
    } else {
      constexpr int kLargest = kPlanes == 1 ? kLargest8 : kLargestBook16;
      const float most = Bounded(Largest(book, kEntries), kLargest);
      const __m128 inverse = _mm_set1_ps(Inverse(most, kLargest));
      for (int q = 0; q < 4; ++q) {
        parts[q] = _mm_cvtps_epi32(
            _mm_mul_ps(_mm_loadu_ps(book + 4 * q % kEntries), inverse));
      }
      parts[0] = _mm_packs_epi32(parts[0], parts[1]);
      parts[1] = _mm_packs_epi32(parts[2], parts[3]);
      if (kPlanes == 1) parts[0] = _mm_packs_epi16(parts[0], parts[1]);
      scale = most / kLargest;
    }
    for (int p = 0; p < (kPlanes > 1 ? kPlanes : 0); ++p) {
      parts[p] = _mm_shuffle_epi8(parts[p], ByByte());
    }
    if constexpr (kPlanes == 1) {
      tables_[0] = _mm256_broadcastsi128_si256(parts[0]);
    } else if constexpr (kPlanes == 2) {
      SetPair(0, parts[0], parts[1]);
    } else {
      SetPair(0, _mm_unpacklo_epi32(parts[0], parts[1]),
              _mm_unpacklo_epi32(parts[2], parts[3]));
      SetPair(2, _mm_unpackhi_epi32(parts[0], parts[1]),
              _mm_unpackhi_epi32(parts[2], parts[3]));
    }
    return scale;
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    constexpr int kFields = 8 / kBits;
    const __m256i mask = _mm256_set1_epi8((1 << kBits) - 1);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256i words = Eight::LoadInts(codes + 32 * h);
#pragma GCC unroll 4
      for (int f = 0; f < kFields; ++f) {
        const __m256i index = _mm256_and_si256(words, mask);
        __m256i found[kPlanes];
#pragma GCC unroll 4
        for (int p = 0; p < kPlanes; ++p) {
          found[p] = _mm256_shuffle_epi8(tables_[p], index);
        }
        if constexpr (kPlanes == 1) {
          each(2 * f + h, found[0]);
        } else {
          Interleave(h * kFields + f, found, each);
        }
        words = _mm256_srli_epi16(words, kBits);
      }
    }
  }

 private:
  static constexpr int kPlanes = sizeof(T);

  // Byte after byte of 16 bytes of numbers.
  static __m128i ByByte() {
    return kPlanes == 4 ? _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13,  //
                                        2, 6, 10, 14, 3, 7, 11, 15)
                        : _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14,  //
                                        1, 3, 5, 7, 9, 11, 13, 15);
  }
  void SetPair(int p, __m128i low, __m128i high) {
    tables_[p] = _mm256_broadcastsi128_si256(_mm_unpacklo_epi64(low, high));
    tables_[p + 1] = _mm256_broadcastsi128_si256(_mm_unpackhi_epi64(low, high));
  }

  template <typename F>
  static void Interleave(int i, const __m256i (&found)[kPlanes], F&& each) {
    const __m256i low[2] = {_mm256_unpacklo_epi8(found[0], found[1]),
                            _mm256_unpackhi_epi8(found[0], found[1])};
    if constexpr (kPlanes == 2) {
      each(i, low[0], low[1]);
    } else {
      const __m256i high[2] = {_mm256_unpacklo_epi8(found[2], found[3]),
                               _mm256_unpackhi_epi8(found[2], found[3])};
#pragma GCC unroll 2
      for (int t = 0; t < 2; ++t) {
        each(4 * i + 2 * t, _mm256_castsi256_ps(
                                _mm256_unpacklo_epi16(low[t], high[t])));
        each(4 * i + 2 * t + 1, _mm256_castsi256_ps(
                                    _mm256_unpackhi_epi16(low[t], high[t])));
      }
    }
  }

  __m256i tables_[kPlanes];
};

template <>
class Lookup<Eight, 8, float> {
 public:
  static constexpr int kVectors = 8;
  static constexpr int kSlots = 0;
  static constexpr Order kOrder = kNatural;

  float Set(const float* book) {
    book_ = book;
    return 1;
  }

  template <typename F>
  void Block(const uint8_t* codes, F&& each) const {
    const __m256i mask = _mm256_set1_epi32(255);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256i words = Eight::LoadInts(codes + 32 * h);
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

inline void SparseRow(Eight, const Sparse& m, const float* x,
                      const Range& range) {
  const __m256i most = _mm256_set1_epi32(m.inputs - 1);
  for (int64_t n = range.begin; n < range.end; ++n) {
    const int64_t last = m.Last(n);
    int64_t i = m.First(n);
    __m256 sums = _mm256_setzero_ps();
    for (; i + 8 <= last; i += 8) {
      const __m256i read =
          m.columns16
              ? _mm256_cvtepu16_epi32(_mm_loadu_si128(
                    reinterpret_cast<const __m128i*>(m.columns16 + i)))
              : Eight::LoadInts(m.columns32 + i);
      const __m256i columns = _mm256_min_epu32(read, most);
      const __m256i codes = _mm256_cvtepu8_epi32(
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(m.codes + i)));
      sums = _mm256_fmadd_ps(_mm256_i32gather_ps(m.book, codes, 4),
                             _mm256_i32gather_ps(x, columns, 4), sums);
    }
    float total = Eight::Sum(sums);
    for (; i < last; ++i) total += m.book[m.codes[i]] * x[m.Column(i)];
    range.y[n] = total;
  }
}

}  // namespace
}  // namespace bandwidth
