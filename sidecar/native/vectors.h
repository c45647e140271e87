// Sixteen numbers at a time: conversions, and the functions that the models need. Not-a-number stays not-a-number throughout.
#pragma once

#include <immintrin.h>

#include <cmath>

#include "tiles.h"

inline __mmask16 first16(long count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }
inline __mmask32 first32(long count) { return count >= 32 ? 0xffffffff : count <= 0 ? 0 : (1u << count) - 1; }

inline __m512 widen(__m256i narrow) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16)); }
inline __m256i narrow(__m512 wide) { return (__m256i)_mm512_cvtneps_pbh(wide); }
inline __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

inline __m512 load16(const bf16* from, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, from)); }

// 2^x, to some 2e-7 of it. Below -126 the result is zero or nearly so.
inline __m512 exp2(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), rest = _mm512_sub_ps(x, whole);
  __m512 sum = _mm512_set1_ps(1.33335581e-3f);  // ln(2)^k / k! for k = 5, 4, … 0
  for (const float each : {9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.0f}) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(each));
  return _mm512_scalef_ps(sum, whole);
}

constexpr float Log2E = 1.44269504f;

inline __m512 silu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exp2(_mm512_mul_ps(x, _mm512_set1_ps(-Log2E)))));
}

// gelu(x) = max(x, 0) - g(|x|) with g(a) = a * (1 - Phi(a)), which sixteen cubic polynomials give to 1e-5.
class Gelu {
 public:
  Gelu() {
    for (int piece = 0; piece < Pieces; piece++) fit(piece);
    for (int power = 0; power < 4; power++) powers_[power] = _mm512_loadu_ps(coefficients_[power]);
  }

  __m512 operator()(__m512 x) const {
    // The operands of min and max are in the order in which not-a-number comes through.
    const __m512 place = _mm512_mul_ps(_mm512_min_ps(_mm512_set1_ps(Largest), _mm512_abs_ps(x)), _mm512_set1_ps(Pieces / Range));
    const __m512i piece = _mm512_cvttps_epi32(place);
    const __m512 rest = _mm512_sub_ps(place, _mm512_cvtepi32_ps(piece));
    __m512 tail = _mm512_permutexvar_ps(piece, powers_[3]);
    for (int power = 2; power >= 0; power--) tail = _mm512_fmadd_ps(tail, rest, _mm512_permutexvar_ps(piece, powers_[power]));
    return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), x), tail);
  }

 private:
  static constexpr int Pieces = 16;
  static constexpr float Range = 5.5f, Largest = 5.4999f;

  // Newton's interpolation at Chebyshev's nodes of a piece, its powers in the place within the piece, 0 to 1.
  void fit(int piece) {
    double nodes[4], differences[4];
    for (int node = 0; node < 4; node++) {
      nodes[node] = 0.5 - 0.5 * std::cos((node + 0.5) * M_PI / 4);
      const double a = (piece + nodes[node]) * Range / Pieces;
      differences[node] = a * 0.5 * std::erfc(a * M_SQRT1_2);
    }
    for (int order = 1; order < 4; order++)
      for (int node = 3; node >= order; node--) differences[node] = (differences[node] - differences[node - 1]) / (nodes[node] - nodes[node - order]);
    double powers[4] = {differences[3], 0, 0, 0};
    for (int node = 2; node >= 0; node--) {
      for (int power = 3; power > 0; power--) powers[power] = powers[power - 1] - nodes[node] * powers[power];
      powers[0] = differences[node] - nodes[node] * powers[0];
    }
    for (int power = 0; power < 4; power++) coefficients_[power][piece] = static_cast<float>(powers[power]);
  }

  float coefficients_[4][Pieces];
  __m512 powers_[4];
};
