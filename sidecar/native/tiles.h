// Products of matrices in bfloat16, accumulated in float32, 16 or 32 rows by 32 columns at a time.
//
// Both operands lie as the kernels read them, in blocks of 32 inner components (`Depth`):
//   left    [blocks][row tiles][16 rows][32]             a row's 32 components are one cache line
//   right   [blocks][2 column tiles][16 pairs][16][2]    two inner components of a column side by side
// Source: Intel, Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter 20 (AMX); "_mm512_dpbf16_ps" for processors without.
#pragma once

#include <immintrin.h>

#include <cstdint>

using bf16 = uint16_t;

constexpr long Rows = 32, Columns = 32, Depth = 32, Tile = 16;
constexpr long RightBlock = Depth * Columns;

// The tile registers, which each thread sets up before it uses them and gives back.
struct Amx {
  __attribute__((target("amx-tile"))) Amx() {
    // Static: the compiler does not know how much of it the instruction reads.
    alignas(64) static const struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    _tile_loadconfig(&shape);
  }
  __attribute__((target("amx-tile"))) ~Amx() { _tile_release(); }

  // out [16 * tiles][32 of `stride`] = left * right, or += with `more`. The vector units have nothing to do: `meanwhile` is called with each block.
  template <int tiles, class Work>
  __attribute__((target("amx-tile,amx-bf16"))) void product(const bf16* left, const bf16* right, long blocks, float* out, long stride, bool more, Work meanwhile) const {
    asm volatile("" ::: "memory");  // the operands are in memory: the loads below do not say that they read it
    const long bytes = stride * sizeof(float);
    float* lower = out + Tile * stride;
    if (more) {
      _tile_loadd(0, out, bytes);
      _tile_loadd(1, out + Tile, bytes);
      if (tiles == 2) {
        _tile_loadd(2, lower, bytes);
        _tile_loadd(3, lower + Tile, bytes);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      if (tiles == 2) {
        _tile_zero(2);
        _tile_zero(3);
      }
    }
    for (long block = 0; block < blocks; block++) {
      _tile_stream_loadd(6, right, 64);
      _tile_loadd(4, left, 64);
      _tile_stream_loadd(7, right + Tile * Depth, 64);
      if (tiles == 2) _tile_loadd(5, left + Tile * Depth, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (tiles == 2) {
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      meanwhile();
      left += tiles * Tile * Depth;
      right += RightBlock;
    }
    _tile_stored(0, out, bytes);
    _tile_stored(1, out + Tile, bytes);
    if (tiles == 2) {
      _tile_stored(2, lower, bytes);
      _tile_stored(3, lower + Tile, bytes);
    }
  }
};

// The same with vectors, which leaves them no time for anything else: eight rows are kept in registers.
struct Avx512 {
  template <int tiles, class Work>
  void product(const bf16* left, const bf16* right, long blocks, float* out, long stride, bool more, Work) const {
    for (long row = 0; row < Tile * tiles; row += 8) eight_rows(left + row * Depth, tiles * Tile * Depth, right, blocks, out + row * stride, stride, more);
  }

 private:
  static void eight_rows(const bf16* left, long left_block, const bf16* right, long blocks, float* out, long stride, bool more) {
    __m512 sums[8][2];
#pragma GCC unroll 8
    for (long row = 0; row < 8; row++)
#pragma GCC unroll 2
      for (long half = 0; half < 2; half++) sums[row][half] = more ? _mm512_loadu_ps(out + row * stride + half * Tile) : _mm512_setzero_ps();
    for (long block = 0; block < blocks; block++, left += left_block, right += RightBlock)
      for (long pair = 0; pair < Depth / 2; pair++) {
        const auto first = (__m512bh)_mm512_load_si512(right + pair * 32), second = (__m512bh)_mm512_load_si512(right + Tile * Depth + pair * 32);
#pragma GCC unroll 8
        for (long row = 0; row < 8; row++) {
          const auto both = (__m512bh)_mm512_set1_epi32(reinterpret_cast<const int32_t*>(left + row * Depth)[pair]);
          sums[row][0] = _mm512_dpbf16_ps(sums[row][0], both, first);
          sums[row][1] = _mm512_dpbf16_ps(sums[row][1], both, second);
        }
      }
#pragma GCC unroll 8
    for (long row = 0; row < 8; row++)
#pragma GCC unroll 2
      for (long half = 0; half < 2; half++) _mm512_storeu_ps(out + row * stride + half * Tile, sums[row][half]);
  }
};
