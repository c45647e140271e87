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

// Sums of 32 columns on their way to `out`, row by row.
template <class Finish>
class Finishing {
 public:
  Finishing(const Weight& weight, const Finish& become, long rows, const bf16* other, bf16* out) : weight_(weight), become_(become), rows_(rows), other_(other), out_(out) {}

  // What was begun is done.
  void begin(const float* sums, long panel) {
    sums_ = sums;
    column_ = panel * Columns;
    row_ = 0;
    end_ = rows_;
    bias_low_ = _mm512_loadu_ps(weight_.bias + column_);
    bias_high_ = _mm512_loadu_ps(weight_.bias + column_ + Tile);
  }

  void rows(long count) {
    for (const long end = std::min(row_ + count, end_); row_ < end; row_++) finish();
  }

  void rest() { rows(end_); }

 private:
  void finish() {
    const long left = weight_.columns - column_, place = row_ * weight_.columns + column_;
    __m512 other_low = bias_low_, other_high = bias_high_;
    if (Finish::reads_other) {
      other_low = load16(other_ + place, first16(left));
      other_high = load16(other_ + place + Tile, first16(left - Tile));
    }
    const __m512 low = become_(_mm512_add_ps(_mm512_load_ps(sums_ + row_ * Columns), bias_low_), other_low);
    const __m512 high = become_(_mm512_add_ps(_mm512_load_ps(sums_ + row_ * Columns + Tile), bias_high_), other_high);
    _mm512_mask_storeu_epi16(out_ + place, first32(left), narrow(low, high));
  }

  const Weight& weight_;
  const Finish& become_;
  const long rows_;
  const bf16* other_;
  bf16* out_;
  const float* sums_ = nullptr;
  long column_ = 0, row_ = 0, end_ = 0;
  __m512 bias_low_, bias_high_;
};

class Linear {
 public:
  // x: [rows of `stride`, width]; out and other: [rows, columns], of which panels [first, end) are computed.
  template <class Device, class Finish>
  void operator()(const Device& device, const Weight& weight, long first, long end, const bf16* x, long stride, long rows, const Finish& become, const bf16* other, bf16* out) {
    const long together = std::max(WeightBytes / (weight.blocks() * RightBlock * long(sizeof(bf16))), 1l);
    for (long panel = first; panel < end; panel += together)
      for (long row = 0; row < rows; row += Rows) {
        const long count = std::min(rows - row, Rows), last = std::min(panel + together, end);
        Finishing<Finish> finishing(weight, become, count, Finish::reads_other ? other + row * weight.columns : other, out + row * weight.columns);
        count <= Tile ? by_panels<1>(device, weight, x + row * stride, stride, count, panel, last, finishing)
                      : by_panels<2>(device, weight, x + row * stride, stride, count, panel, last, finishing);
      }
  }

 private:
  // Up to 32 rows by some panels. A panel is finished while the next one is computed; sums over a part of the inner components wait for the other parts.
  template <int tiles, class Device, class Finish>
  void by_panels(const Device& device, const Weight& weight, const bf16* x, long stride, long rows, long first, long end, Finishing<Finish>& finishing) {
    const long slots = weight.blocks() <= BlocksAtOnce ? 2 : end - first;
    bf16* left = left_.at_least(Rows * BlocksAtOnce * Depth);
    float* sums = sums_.at_least(slots * Rows * Columns);
    for (long block = 0; block < weight.blocks(); block += BlocksAtOnce) {
      const long blocks = std::min(weight.blocks() - block, BlocksAtOnce), step = blocks_of(Tile * tiles, blocks);
      pack_left<tiles>(x + block * Depth, stride, rows, weight.width - block * Depth, left, blocks);
      for (long panel = first; panel < end; panel++) {
        float* sum = sums + (panel - first) % slots * Rows * Columns;
        device.template product<tiles>(left, weight.panel(panel) + block * RightBlock, blocks, sum, Columns, block > 0, [&] { finishing.rows(step); });
        finishing.rest();
        if (block + blocks == weight.blocks()) finishing.begin(sum, panel);
      }
    }
    finishing.rest();
  }

  Scratch<bf16> left_;
  Scratch<float> sums_;
};
