// Attention of every token of a text to every token of it.
//
// A head at a time, its keys and values are packed; then for 32 queries at a time all scores are held, the softmax is taken, and the values are summed.
#pragma once

#include "packing.h"

struct Heads {
  long kv, group, width;  // `group` query heads read each of `kv` key and value heads
};

// Rows of heads side by side, `stride` apart.
template <class Number>
struct Matrix {
  Number* first;
  long stride;

  Number* at(long row, long column) const { return first + row * stride + column; }
};

class Attention {
 public:
  // query, key, value: [rows, heads, width], queries scaled; out: [rows, query heads, width]. A text is rows [bounds[i], bounds[i + 1]).
  template <class Device>
  void operator()(const Device& device, Matrix<const bf16> query, Matrix<const bf16> key, Matrix<const bf16> value, const Heads& heads, const int32_t* bounds, long texts,
                  Matrix<bf16> out) {
    for (long text = 0; text < texts; text++) {
      const long first = bounds[text], length = bounds[text + 1] - first;
      for (long head = 0; head < heads.kv; head++) {
        const long column = head * heads.width;
        pack({key.at(first, column), key.stride}, {value.at(first, column), value.stride}, length, heads.width);
        for (long each = head * heads.group; each < (head + 1) * heads.group; each++)
          for (long row = first; row < first + length; row += Rows) {
            const long count = std::min(first + length - row, Rows);
            const bf16* from = query.at(row, each * heads.width);
            const Matrix<bf16> to = {out.at(row, each * heads.width), out.stride};
            count <= Tile ? attend<1>(device, from, query.stride, count, length, heads.width, to) : attend<2>(device, from, query.stride, count, length, heads.width, to);
          }
      }
    }
  }

 private:
  // Keys as columns of a right operand, values as its inner components.
  void pack(Matrix<const bf16> key, Matrix<const bf16> value, long length, long width) {
    const long panels = blocks_of(length, Columns), blocks = blocks_of(width, Depth);
    bf16* keys = keys_.at_least(panels * blocks * RightBlock);
    bf16* values = values_.at_least(panels * blocks * RightBlock);
    for (long panel = 0; panel < panels; panel++)
      pack_right_from_rows(key.at(panel * Columns, 0), key.stride, length - panel * Columns, width, keys + panel * blocks * RightBlock);
    for (long block = 0; block < blocks; block++)
      pack_right_from_columns(value.at(0, block * Columns), value.stride, length, width - block * Columns, values + block * panels * RightBlock);
  }

  template <int tiles, class Device>
  void attend(const Device& device, const bf16* query, long stride, long count, long length, long width, Matrix<bf16> out) {
    const long panels = blocks_of(length, Columns), blocks = blocks_of(width, Depth);
    bf16* queries = queries_.at_least(Rows * blocks * Depth);
    float* scores = scores_.at_least(Rows * panels * Columns);
    bf16* weights = weights_.at_least(Rows * panels * Columns);
    float* sums = sums_.at_least(Rows * Columns);
    float inverse[Rows];
    pack_left<tiles>(query, stride, count, width, queries, blocks);
    for (long panel = 0; panel < panels; panel++)
      device.template product<tiles>(queries, keys_.at_least(0) + panel * blocks * RightBlock, blocks, scores + panel * Columns, panels * Columns, false, [] {});
    for (long row = 0; row < tiles * Tile; row++) inverse[row] = softmax(scores + row * panels * Columns, length, weights + row * Depth, tiles * Tile * Depth);
    for (long block = 0; block < blocks; block++) {
      device.template product<tiles>(weights, values_.at_least(0) + block * panels * RightBlock, panels, sums, Columns, false, [] {});
      const __mmask32 mask = first32(width - block * Columns);
      for (long row = 0; row < count; row++) {
        const __m512 scale = _mm512_set1_ps(inverse[row]), low = _mm512_load_ps(sums + row * Columns), high = _mm512_load_ps(sums + row * Columns + Tile);
        _mm512_mask_storeu_epi16(out.at(row, block * Columns), mask, narrow(_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale)));
      }
    }
  }

  // Weights of a row of scores as a row of a left operand, whose blocks are `step` apart. Returns what they are to be multiplied by.
  static float softmax(float* scores, long length, bf16* weights, long step) {
    const long panels = blocks_of(length, Columns);
    const __m512 nothing = _mm512_set1_ps(-INFINITY);
    for (long column = length & -Tile; column < panels * Columns; column += Tile)
      _mm512_store_ps(scores + column, _mm512_mask_mov_ps(nothing, first16(length - column), _mm512_load_ps(scores + column)));
    __m512 largest = nothing, others = nothing;
    for (long column = 0; column < panels * Columns; column += Columns) {
      largest = _mm512_max_ps(largest, _mm512_load_ps(scores + column));
      others = _mm512_max_ps(others, _mm512_load_ps(scores + column + Tile));
    }
    const __m512 scale = _mm512_set1_ps(Log2E), shift = _mm512_set1_ps(-Log2E * _mm512_reduce_max_ps(_mm512_max_ps(largest, others)));
    __m512 sum = _mm512_setzero_ps(), other_sum = sum;
    for (long column = 0; column < panels * Columns; column += Columns, weights += step) {
      const __m512 low = exp2(_mm512_fmadd_ps(_mm512_load_ps(scores + column), scale, shift));
      const __m512 high = exp2(_mm512_fmadd_ps(_mm512_load_ps(scores + column + Tile), scale, shift));
      sum = _mm512_add_ps(sum, low);
      other_sum = _mm512_add_ps(other_sum, high);
      _mm512_store_si512(weights, narrow(low, high));
    }
    return 1.0f / _mm512_reduce_add_ps(_mm512_add_ps(sum, other_sum));
  }

  Scratch<bf16> keys_, values_, queries_, weights_;
  Scratch<float> scores_, sums_;
};
