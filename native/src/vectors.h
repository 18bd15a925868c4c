// Vectors of the instruction set this file is compiled for, and sine and cosine on them.
//
// sin and cos: Cody-Waite reduction to [-pi/4, pi/4] with pi/2 in three parts whose products with small whole numbers
// are exact, then the polynomials of Cephes. Angles beyond the range of that reduction go through the C library.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC before 13 warns of its own header
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

namespace qpeft::QPEFT_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kMaxRadix = 4;  // 16 vectors of a group and the coefficients fit into 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kMaxRadix = 3;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kMaxRadix = 4;
#else
constexpr int kVectorBytes = 16;
constexpr int kMaxRadix = 3;
#endif

template <class R>
struct Lanes {};
template <>
struct Lanes<float> {
  using Integer = int32_t;
  static constexpr float kLimit = 8192.0f, kMagic = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kHalfPi1 = 1.5703125f, kHalfPi2 = 4.837512969970703125e-4f, kHalfPi3 = 7.54978995489188e-8f;
};
template <>
struct Lanes<double> {
  using Integer = int64_t;
  static constexpr double kLimit = 1e5, kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kHalfPi1 = 1.57079625129699707031e0, kHalfPi2 = 7.54978941586159635336e-8,
                          kHalfPi3 = 5.39030285815811823594e-15;
};

template <class R>
using Vector __attribute__((vector_size(kVectorBytes))) = R;
template <class R>
using Mask __attribute__((vector_size(kVectorBytes))) = typename Lanes<R>::Integer;
template <class R>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(R));

template <class R>
inline Vector<R> splat(R value) {
  return value - Vector<R>{};
}

template <class R>
inline bool any(Mask<R> mask) {
#if defined(__AVX512F__)
  const __m512i bits = reinterpret_cast<__m512i>(mask);
  return _mm512_test_epi64_mask(bits, bits) != 0;
#elif defined(__AVX2__)
  const __m256i bits = reinterpret_cast<__m256i>(mask);
  return !_mm256_testz_si256(bits, bits);
#endif
  typename Lanes<R>::Integer result = 0;
  for (int i = 0; i < kLanes<R>; ++i) result |= mask[i];
  return result != 0;
}

template <class R>
inline double sum(Vector<R> v) {
  double result = 0;
  for (int i = 0; i < kLanes<R>; ++i) result += v[i];
  return result;
}

inline void polynomials(Vector<float> z, Vector<float> r, Vector<float> &s, Vector<float> &c) {
  s = ((z * -1.9515295891E-4f + 8.3321608736E-3f) * z + -1.6666654611E-1f) * z * r + r;
  c = ((z * 2.443315711809948E-5f + -1.388731625493765E-3f) * z + 4.166664568298827E-2f) * z * z + (z * -0.5f + 1.0f);
}
inline void polynomials(Vector<double> z, Vector<double> r, Vector<double> &s, Vector<double> &c) {
  s = (((((z * 1.58962301576546568060E-10 + -2.50507477628578072866E-8) * z + 2.75573136213857245213E-6) * z +
         -1.98412698295895385996E-4) * z + 8.33333333332211858878E-3) * z + -1.66666666666666307295E-1) * z * r + r;
  c = (((((z * -1.13585365213876817300E-11 + 2.08757008419747316778E-9) * z + -2.75573141792967388112E-7) * z +
         2.48015872888517045348E-5) * z + -1.38888888888730564116E-3) * z + 4.16666666666665929218E-2) * z * z +
      (z * -0.5 + 1.0);
}

// lanes[k] = from[k * stride] and back, for `columns` neighbouring numbers of each row: a transposition.
template <class R>
inline void load_columns(const R *from, int64_t row, int columns, Vector<R> *lanes) {
  for (int i = 0; i < columns; ++i) {
    R *to = reinterpret_cast<R *>(lanes + i);
    for (int k = 0; k < kLanes<R>; ++k) to[k] = from[k * row + i];
  }
}
template <class R>
inline void store_columns(const Vector<R> *lanes, R *to, int64_t row, int columns) {
  for (int i = 0; i < columns; ++i) {
    const R *from = reinterpret_cast<const R *>(lanes + i);
    for (int k = 0; k < kLanes<R>; ++k) to[k * row + i] = from[k];
  }
}

#if defined(__AVX512F__)
// Four columns of 16 rows at a time: quarters of registers are rows, then each 4 x 4 block is transposed.
inline void transpose_quarters(__m512 *z) {
  const __m512 a = _mm512_unpacklo_ps(z[0], z[1]), b = _mm512_unpackhi_ps(z[0], z[1]);
  const __m512 c = _mm512_unpacklo_ps(z[2], z[3]), d = _mm512_unpackhi_ps(z[2], z[3]);
  z[0] = _mm512_shuffle_ps(a, c, 0x44);
  z[1] = _mm512_shuffle_ps(a, c, 0xee);
  z[2] = _mm512_shuffle_ps(b, d, 0x44);
  z[3] = _mm512_shuffle_ps(b, d, 0xee);
}
template <>
inline void load_columns<float>(const float *from, int64_t row, int columns, Vector<float> *lanes) {
  int i = 0;
  for (; i + 4 <= columns; i += 4) {
    __m512 z[4];
    for (int j = 0; j < 4; ++j) {  // rows j, j + 4, j + 8, j + 12
      const float *p = from + j * row + i;
      z[j] = _mm512_castps128_ps512(_mm_loadu_ps(p));
      z[j] = _mm512_insertf32x4(z[j], _mm_loadu_ps(p + 4 * row), 1);
      z[j] = _mm512_insertf32x4(z[j], _mm_loadu_ps(p + 8 * row), 2);
      z[j] = _mm512_insertf32x4(z[j], _mm_loadu_ps(p + 12 * row), 3);
    }
    transpose_quarters(z);
    for (int j = 0; j < 4; ++j) lanes[i + j] = reinterpret_cast<Vector<float>>(z[j]);
  }
  for (; i < columns; ++i) {
    float *to = reinterpret_cast<float *>(lanes + i);
    for (int k = 0; k < 16; ++k) to[k] = from[k * row + i];
  }
}
template <>
inline void store_columns<float>(const Vector<float> *lanes, float *to, int64_t row, int columns) {
  int i = 0;
  for (; i + 4 <= columns; i += 4) {
    __m512 z[4];
    for (int j = 0; j < 4; ++j) z[j] = reinterpret_cast<__m512>(lanes[i + j]);
    transpose_quarters(z);
    for (int j = 0; j < 4; ++j) {
      float *p = to + j * row + i;
      _mm_storeu_ps(p, _mm512_castps512_ps128(z[j]));
      _mm_storeu_ps(p + 4 * row, _mm512_extractf32x4_ps(z[j], 1));
      _mm_storeu_ps(p + 8 * row, _mm512_extractf32x4_ps(z[j], 2));
      _mm_storeu_ps(p + 12 * row, _mm512_extractf32x4_ps(z[j], 3));
    }
  }
  for (; i < columns; ++i) {
    const float *from = reinterpret_cast<const float *>(lanes + i);
    for (int k = 0; k < 16; ++k) to[k * row + i] = from[k];
  }
}
#endif

// For |x| <= kLimit; other lanes are raised in `wide`.
template <class R>
inline void sincos(Vector<R> x, Vector<R> &s, Vector<R> &c, Mask<R> &wide) {
  using L = Lanes<R>;
  constexpr R kTwoOverPi = static_cast<R>(0.63661977236758134308);
  const Vector<R> magnitude = x < R{0} ? -x : x;
  wide |= ~(magnitude <= L::kLimit);
  const Vector<R> shifted = x * kTwoOverPi + L::kMagic;
  const Mask<R> quadrant = reinterpret_cast<Mask<R>>(shifted);
  const Vector<R> q = shifted - L::kMagic;
  const Vector<R> r = ((x - q * L::kHalfPi1) - q * L::kHalfPi2) - q * L::kHalfPi3;
  Vector<R> sr, cr;
  polynomials(r * r, r, sr, cr);
  const Mask<R> swap = (quadrant & 1) != 0;
  s = swap ? cr : sr;
  c = swap ? sr : cr;
  s = (quadrant & 2) != 0 ? -s : s;
  c = ((quadrant + 1) & 2) != 0 ? -c : c;
}

template <class R>
inline void sincos_any(Vector<R> x, Vector<R> &s, Vector<R> &c) {
  Mask<R> wide{};
  sincos<R>(x, s, c, wide);
  if (!any<R>(wide)) return;
  for (int i = 0; i < kLanes<R>; ++i) {
    if (!wide[i]) continue;
    s[i] = static_cast<R>(std::sin(static_cast<double>(x[i])));
    c[i] = static_cast<R>(std::cos(static_cast<double>(x[i])));
  }
}

// The power of two at or below each |lane|: exact to multiply with.
template <class R>
inline Vector<R> power_of_two(Vector<R> v) {
  constexpr typename Lanes<R>::Integer kExponent =
      sizeof(R) == 4 ? static_cast<typename Lanes<R>::Integer>(0x7f800000)
                     : static_cast<typename Lanes<R>::Integer>(0x7ff0000000000000);
  return reinterpret_cast<Vector<R>>(reinterpret_cast<Mask<R>>(v) & kExponent);
}

}  // namespace qpeft::QPEFT_ISA
