// Each row to mean zero and variance one, times a weight, plus a bias.
#pragma once

#include "vectors.h"

inline void layer_norm(const bf16* x, long rows, long width, const float* weight, const float* bias, float eps, bf16* out) {
  for (long row = 0; row < rows; row++, x += width, out += width) {
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (long column = 0; column < width; column += Tile) sum = _mm512_add_ps(sum, load16(x + column, first16(width - column)));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
    for (long column = 0; column < width; column += Tile) {
      const __mmask16 mask = first16(width - column);
      const __m512 off = _mm512_maskz_sub_ps(mask, load16(x + column, mask), mean);
      squares = _mm512_fmadd_ps(off, off, squares);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + eps));
    for (long column = 0; column < width; column += Tile) {
      const __mmask16 mask = first16(width - column);
      const __m512 off = _mm512_mul_ps(_mm512_sub_ps(load16(x + column, mask), mean), scale);
      const __m512 scaled = _mm512_fmadd_ps(off, _mm512_maskz_loadu_ps(mask, weight + column), _mm512_maskz_loadu_ps(mask, bias + column));
      _mm256_mask_storeu_epi16(out + column, mask, narrow(scaled));
    }
  }
}
