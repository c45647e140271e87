// x * weight^T + bias, and what follows it in the models, on the way from the sums to memory.
#pragma once

#include "packing.h"

// A part of a weight that stays in a core's second cache while all rows go by it, and so many of the inner components that 32 rows stay in the first.
constexpr long WeightBytes = 1 << 20, BlocksAtOnce = 16;

struct Weight {
  const bf16* packed;
  const float* bias;  // [columns], filled up to 32 * panels
  long width, columns;

  long blocks() const { return blocks_of(width, Depth); }
  long panels() const { return blocks_of(columns, Columns); }
  const bf16* panel(long number) const { return packed + number * blocks() * RightBlock; }
};

// What becomes of a sum; `other` is the same place of another matrix, if it `reads_other`.
struct Plain {
  static constexpr bool reads_other = false;
  __m512 operator()(__m512 sum, __m512) const { return sum; }
};
struct WithGelu {
  static constexpr bool reads_other = false;
  __m512 operator()(__m512 sum, __m512) const { return gelu(sum); }
  const Gelu& gelu;
};
struct WithSilu {
  static constexpr bool reads_other = false;
  __m512 operator()(__m512 sum, __m512) const { return silu(sum); }
};
struct Plus {
  static constexpr bool reads_other = true;
  __m512 operator()(__m512 sum, __m512 other) const { return _mm512_add_ps(sum, other); }
};
struct Times {
  static constexpr bool reads_other = true;
  __m512 operator()(__m512 sum, __m512 other) const { return _mm512_mul_ps(sum, other); }
};

// The left operand of a product: rows, which are packed 32 at a time,
struct FromRows {
  const bf16* rows;
  long stride, width;

  // Some blocks of up to 32 rows.
  template <int tiles>
  const bf16* left(long row, long count, long block, long blocks, bf16* packed) const {
    pack_left<tiles>(rows + row * stride + block * Depth, stride, count, width - block * Depth, packed, blocks);
    return packed;
  }
};

// or what a product before it has written as such.
struct FromPacked {
  const bf16* packed;
  long blocks;

  template <int tiles>
  const bf16* left(long row, long, long block, long, bf16*) const {
    return packed + row * blocks * Depth + block * tiles * Tile * Depth;
  }
};

// The result of a product: rows,
struct ToRows {
  bf16* rows;
  long columns;

  bf16* at(long row, long, long offset, long panel) const { return rows + (row + offset) * columns + panel * Columns; }
  __mmask32 mask(long panel) const { return first32(columns - panel * Columns); }
};

// or a left operand, whose blocks are this product's panels; columns that are missing to the last of them are what zero becomes, which has to be zero.
struct ToPacked {
  bf16* packed;
  long blocks;

  bf16* at(long row, long tiles, long offset, long panel) const { return packed + row * blocks * Depth + panel * tiles * Tile * Depth + offset * Depth; }
  __mmask32 mask(long) const { return ~__mmask32(0); }
};

// Sums of up to 32 rows by 32 columns on their way to the result, row by row.
template <class Finish, class To>
class Finishing {
 public:
  Finishing(const Weight& weight, const Finish& become, long row, long count, const bf16* other, const To& to)
      : weight_(weight), become_(become), row_(row), count_(count), tiles_(blocks_of(count, Tile)), other_(other), to_(to) {}

  // What was begun is done.
  void begin(const float* sums, long panel) {
    sums_ = sums;
    panel_ = panel;
    done_ = 0;
    begun_ = count_;
    bias_low_ = _mm512_loadu_ps(weight_.bias + panel * Columns);
    bias_high_ = _mm512_loadu_ps(weight_.bias + panel * Columns + Tile);
  }

  void rows(long count) {
    for (const long end = std::min(done_ + count, begun_); done_ < end; done_++) finish();
  }

  void rest() { rows(begun_); }

 private:
  void finish() {
    __m512 other_low = bias_low_, other_high = bias_high_;
    if (Finish::reads_other) {
      const long column = panel_ * Columns;
      const bf16* other = other_ + (row_ + done_) * weight_.columns + column;
      other_low = load16(other, first16(weight_.columns - column));
      other_high = load16(other + Tile, first16(weight_.columns - column - Tile));
    }
    const __m512 low = become_(_mm512_add_ps(_mm512_load_ps(sums_ + done_ * Columns), bias_low_), other_low);
    const __m512 high = become_(_mm512_add_ps(_mm512_load_ps(sums_ + done_ * Columns + Tile), bias_high_), other_high);
    _mm512_mask_storeu_epi16(to_.at(row_, tiles_, done_, panel_), to_.mask(panel_), narrow(low, high));
  }

  const Weight& weight_;
  const Finish& become_;
  const long row_, count_, tiles_;
  const bf16* other_;
  const To& to_;
  const float* sums_ = nullptr;
  long panel_ = 0, done_ = 0, begun_ = 0;
  __m512 bias_low_, bias_high_;
};

class Linear {
 public:
  // Panels [first, end) of the product; other: [rows, columns].
  template <class Device, class From, class Finish, class To>
  void operator()(const Device& device, const Weight& weight, long first, long end, const From& from, long rows, const Finish& become, const bf16* other, const To& to) {
    const long bytes = (end - first) * weight.blocks() * RightBlock * long(sizeof(bf16));
    const long together = std::max(blocks_of(end - first, blocks_of(bytes, WeightBytes)), 1l);  // all parts are of about one size
    for (long panel = first; panel < end; panel += together)
      for (long row = 0; row < rows; row += Rows) {
        const long count = std::min(rows - row, Rows), last = std::min(panel + together, end);
        Finishing<Finish, To> finishing(weight, become, row, count, other, to);
        count <= Tile ? by_panels<1>(device, weight, from, row, count, panel, last, finishing) : by_panels<2>(device, weight, from, row, count, panel, last, finishing);
      }
  }

 private:
  // Up to 32 rows by some panels. A panel is finished while the next one is computed; sums over a part of the inner components wait for the other parts.
  template <int tiles, class Device, class From, class Finish, class To>
  void by_panels(const Device& device, const Weight& weight, const From& from, long row, long count, long first, long end, Finishing<Finish, To>& finishing) {
    const long slots = weight.blocks() <= BlocksAtOnce ? 2 : end - first;
    bf16* packed = packed_.at_least(Rows * BlocksAtOnce * Depth);
    float* sums = sums_.at_least(slots * Rows * Columns);
    for (long block = 0; block < weight.blocks(); block += BlocksAtOnce) {
      const long blocks = std::min(weight.blocks() - block, BlocksAtOnce), step = blocks_of(Tile * tiles, blocks);
      const bf16* left = from.template left<tiles>(row, count, block, blocks, packed);
      for (long panel = first; panel < end; panel++) {
        float* sum = sums + (panel - first) % slots * Rows * Columns;
        device.template product<tiles>(left, weight.panel(panel) + block * RightBlock, blocks, sum, Columns, block > 0, [&] { finishing.rows(step); });
        finishing.rest();
        if (block + blocks == weight.blocks()) finishing.begin(sum, panel);
      }
    }
    finishing.rest();
  }

  Scratch<bf16> packed_;
  Scratch<float> sums_;
};
