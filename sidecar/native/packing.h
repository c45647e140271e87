// Operands as tiles.h wants them.
#pragma once

#include <algorithm>
#include <new>

#include "vectors.h"

inline long blocks_of(long length, long size) { return (length + size - 1) / size; }

// Memory that a thread keeps from call to call.
template <class T>
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { operator delete(memory_, std::align_val_t(64)); }
  T* at_least(long count) {
    if (count > count_) {
      give_back();
      memory_ = static_cast<T*>(operator new(count * sizeof(T), std::align_val_t(64)));
      count_ = count;
    }
    return memory_;
  }

  void give_back() {
    operator delete(memory_, std::align_val_t(64));
    memory_ = nullptr;
    count_ = 0;
  }

 private:
  T* memory_ = nullptr;
  long count_ = 0;
};

// Some blocks of a left operand from rows of `stride`; what is missing to 16 * tiles rows and to the blocks' width is zero.
template <int tiles>
void pack_left(const bf16* rows, long stride, long count, long width, bf16* packed, long blocks) {
  for (long row = 0; row < Tile * tiles; row++) {
    const bf16* from = rows + row * stride;
    bf16* to = packed + row * Depth;
    for (long block = 0; block < blocks; block++, to += tiles * Tile * Depth)
      _mm512_store_si512(to, row < count ? _mm512_maskz_loadu_epi16(first32(width - block * Depth), from + block * Depth) : _mm512_setzero_si512());
  }
}

// Sixteen rows of sixteen pairs, pairs as rows.
inline void transpose(__m512i rows[16]) {
  __m512i pairs[16];
  for (int row = 0; row < 16; row += 2) {
    pairs[row] = _mm512_unpacklo_epi32(rows[row], rows[row + 1]);
    pairs[row + 1] = _mm512_unpackhi_epi32(rows[row], rows[row + 1]);
  }
  for (int row = 0; row < 16; row += 4)
    for (int half = 0; half < 2; half++) {
      rows[row + 2 * half] = _mm512_unpacklo_epi64(pairs[row + half], pairs[row + 2 + half]);
      rows[row + 2 * half + 1] = _mm512_unpackhi_epi64(pairs[row + half], pairs[row + 2 + half]);
    }
  // Now rows[4 * i + j] holds, in each quarter q, column 4 * q + j of rows 4 * i to 4 * i + 3.
  for (int column = 0; column < 4; column++) {
    const __m512i a = rows[column], b = rows[4 + column], c = rows[8 + column], d = rows[12 + column];
    pairs[column] = _mm512_shuffle_i32x4(a, b, 0x88);
    pairs[4 + column] = _mm512_shuffle_i32x4(a, b, 0xdd);
    pairs[8 + column] = _mm512_shuffle_i32x4(c, d, 0x88);
    pairs[12 + column] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
  for (int column = 0; column < 4; column++) {
    rows[column] = _mm512_shuffle_i32x4(pairs[column], pairs[8 + column], 0x88);
    rows[8 + column] = _mm512_shuffle_i32x4(pairs[column], pairs[8 + column], 0xdd);
    rows[4 + column] = _mm512_shuffle_i32x4(pairs[4 + column], pairs[12 + column], 0x88);
    rows[12 + column] = _mm512_shuffle_i32x4(pairs[4 + column], pairs[12 + column], 0xdd);
  }
}

// A panel of a right operand, 32 columns of it, that are rows of `stride` in memory; columns and components that are missing are zero.
inline void pack_right_from_rows(const bf16* rows, long stride, long count, long width, bf16* packed) {
  for (long block = 0; block < blocks_of(width, Depth); block++)
    for (long half = 0; half < 2; half++) {
      __m512i lines[16];
      for (long row = 0; row < 16; row++) {
        const long column = half * Tile + row;
        lines[row] = column < count ? _mm512_maskz_loadu_epi16(first32(width - block * Depth), rows + column * stride + block * Depth) : _mm512_setzero_si512();
      }
      transpose(lines);
      for (long pair = 0; pair < 16; pair++) _mm512_store_si512(packed + block * RightBlock + half * Tile * Depth + pair * Depth, lines[pair]);
    }
}

// The same from `count` inner components that are rows of `stride` in memory, of which 32 columns are taken, or `width` if there are fewer.
inline void pack_right_from_columns(const bf16* rows, long stride, long count, long width, bf16* packed) {
  alignas(64) static constexpr uint16_t low[32] = {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i first_half = _mm512_load_si512(low), second_half = _mm512_add_epi16(first_half, _mm512_set1_epi16(16));
  const __mmask32 mask = first32(width);
  for (long row = 0; row < blocks_of(count, Depth) * Depth; row += 2) {
    const __m512i even = row < count ? _mm512_maskz_loadu_epi16(mask, rows + row * stride) : _mm512_setzero_si512();
    const __m512i odd = row + 1 < count ? _mm512_maskz_loadu_epi16(mask, rows + (row + 1) * stride) : _mm512_setzero_si512();
    bf16* to = packed + row / Depth * RightBlock + row % Depth / 2 * Depth;
    _mm512_store_si512(to, _mm512_permutex2var_epi16(even, first_half, odd));
    _mm512_store_si512(to + Tile * Depth, _mm512_permutex2var_epi16(even, second_half, odd));
  }
}
