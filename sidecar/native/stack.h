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

// Rows above which the memory for them is not kept: threads are many, and such texts are few.
constexpr long KeptRows = 4096;

class Stack {
 public:
  // x: [rows, heads * width], changed in place; a text is rows [bounds[i], bounds[i + 1]), and rows behind the last are of no text.
  template <class Device>
  void operator()(const Device& device, const Layer* layers, long count, const Heads& heads, const Gelu& gelu, bf16* x, long rows, const int32_t* bounds, long texts) {
    for (long each = 0; each < count; each++) compute(device, layers[each], heads, gelu, x, rows, bounds, texts);
    if (rows > KeptRows)
      for (auto* scratch : {&inner_, &attended_, &summed_}) scratch->give_back();
  }

 private:
  template <class Device>
  void compute(const Device& device, const Layer& layer, const Heads& heads, const Gelu& gelu, bf16* x, long rows, const int32_t* bounds, long texts) {
    const long width = layer.out.columns, width_of_heads = heads.kv * heads.width;
    const auto linear = [&](const Weight& weight, const auto& from, const auto& become, const bf16* other, const auto& to) {
      linear_(device, weight, 0, weight.panels(), from, rows, become, other, to);
    };
    bf16* inner = inner_.at_least(rows * std::max(3 * width_of_heads, layer.down.blocks() * Depth) + Rows * Depth * layer.down.blocks());
    bf16* attended = attended_.at_least(rows * width_of_heads);
    bf16* summed = summed_.at_least(rows * width);
    const auto part = [&](long number) { return Matrix<const bf16>{inner + number * width_of_heads, 3 * width_of_heads}; };
    linear(layer.qkv, FromRows{x, width, width}, Plain(), nullptr, ToRows{inner, 3 * width_of_heads});
    attention_(device, part(0), part(1), part(2), heads, bounds, texts, {attended, width_of_heads});
    std::fill(attended + bounds[texts] * width_of_heads, attended + rows * width_of_heads, 0);
    linear(layer.out, FromRows{attended, width_of_heads, width_of_heads}, Plus(), x, ToRows{summed, width});
    normalise(layer.after_attention, summed, rows, width, x);
    linear(layer.up, FromRows{x, width, width}, WithGelu{gelu}, nullptr, ToPacked{inner, layer.down.blocks()});
    linear(layer.down, FromPacked{inner, layer.down.blocks()}, Plus(), x, ToRows{summed, width});
    normalise(layer.after_mlp, summed, rows, width, x);
  }

  static void normalise(const Norm& norm, const bf16* x, long rows, long width, bf16* out) { layer_norm(x, rows, width, norm.weight, norm.bias, norm.eps, out); }

  Linear linear_;
  Attention attention_;
  Scratch<bf16> inner_, attended_, summed_;
};
