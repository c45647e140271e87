// The layers of a BERT: attention and an MLP, each added to what it read and normalised.
#pragma once

#include "attention.h"
#include "linear.h"
#include "norm.h"

struct Norm {
  const float *weight, *bias;
  float eps;
};

struct Layer {
  Weight qkv, out, up, down;
  Norm after_attention, after_mlp;
};

class Stack {
 public:
  // x: [rows, heads * width], changed in place; a text is rows [bounds[i], bounds[i + 1]), and rows behind the last are of no text.
  template <class Device>
  void operator()(const Device& device, const Layer* layers, long count, const Heads& heads, const Gelu& gelu, bf16* x, long rows, const int32_t* bounds, long texts) {
    for (long each = 0; each < count; each++) layer(device, layers[each], heads, gelu, x, rows, bounds, texts);
  }

 private:
  template <class Device>
  void layer(const Device& device, const Layer& layer, const Heads& heads, const Gelu& gelu, bf16* x, long rows, const int32_t* bounds, long texts) {
    const long width = layer.out.columns, inner = layer.up.columns, attended = heads.shared * heads.width;
    bf16* wide = wide_.at_least(rows * std::max(3 * attended, inner));
    bf16* narrow = narrow_.at_least(rows * std::max(attended, width));
    bf16* summed = summed_.at_least(rows * width);
    linear_(device, layer.qkv, x, width, rows, Plain(), nullptr, wide);
    const auto part = [&](long number) { return Matrix<const bf16>{wide + number * attended, 3 * attended}; };
    attention_(device, part(0), part(1), part(2), heads, bounds, texts, {narrow, attended});
    std::fill(narrow + bounds[texts] * attended, narrow + rows * attended, 0);
    linear_(device, layer.out, narrow, attended, rows, Plus(), x, summed);
    normalise(layer.after_attention, summed, rows, width, x);
    linear_(device, layer.up, x, width, rows, WithGelu{gelu}, nullptr, wide);
    linear_(device, layer.down, wide, inner, rows, Plus(), x, summed);
    normalise(layer.after_mlp, summed, rows, width, x);
  }

  static void normalise(const Norm& norm, const bf16* x, long rows, long width, bf16* out) { layer_norm(x, rows, width, norm.weight, norm.bias, norm.eps, out); }

  Linear linear_;
  Attention attention_;
  Scratch<bf16> wide_, narrow_, summed_;
};
