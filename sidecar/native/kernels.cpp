// The encoder's arithmetic in bfloat16 on the CPU, for processors with instructions for it: AMX, or AVX-512 BF16.
//
// A row of a result depends on no other row and no other text, to the last bit, and no shape is ever prepared or remembered.
//
// In:  rows of activations, weights packed once      Out: rows of activations; 0, or 1 when memory ran out
#if defined(__x86_64__) && defined(__linux__)

#include <sys/syscall.h>
#include <unistd.h>

#include <new>

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Changed with whatever is exported here, so that a library of another day is not called.
EXPORTED long nv_embed_version() { return 1; }

// Asked before anything else of this file runs, and so without the instructions of the others. 0: none will do, 1: AVX-512 BF16, 2: AMX; `most` at most.
EXPORTED int nv_embed_level(int most) {
  constexpr long RequestPermission = 0x1023, TileData = 18;
  __builtin_cpu_init();
  const bool vectors = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("fma");
  if (!vectors || most < 1) return 0;
  const bool tiles = most > 1 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
  return tiles && syscall(SYS_arch_prctl, RequestPermission, TileData) == 0 ? 2 : 1;
}

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")

#include "stack.h"

namespace {

enum class Finish { Plain, Gelu, Silu, Plus, Times };

const Gelu& fitted_gelu() {
  static const Gelu fitted;
  return fitted;
}

template <class Device>
void linear(const Weight& weight, long first, long end, const bf16* x, long stride, long rows, Finish finish, const bf16* other, bf16* out) {
  thread_local Linear product;
  const auto compute = [&](const auto& become) { product(Device(), weight, first, end, FromRows{x, stride, weight.width}, rows, become, other, ToRows{out, weight.columns}); };
  switch (finish) {
    case Finish::Plain: return compute(Plain());
    case Finish::Gelu: return compute(WithGelu{fitted_gelu()});
    case Finish::Silu: return compute(WithSilu());
    case Finish::Plus: return compute(Plus());
    case Finish::Times: return compute(Times());
  }
}

template <class Device>
void attend(Matrix<const bf16> query, Matrix<const bf16> key, Matrix<const bf16> value, const Heads& heads, const int32_t* bounds, long texts, Matrix<bf16> out) {
  thread_local Attention attention;
  attention(Device(), query, key, value, heads, bounds, texts, out);
}

template <class Device>
void stack(const Layer* layers, long count, const Heads& heads, bf16* x, long rows, const int32_t* bounds, long texts) {
  thread_local Stack computed;
  computed(Device(), layers, count, heads, fitted_gelu(), x, rows, bounds, texts);
}

template <class Work>
int guarded(const Work& work) {
  try {
    work();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

EXPORTED long nv_embed_packed_size(long columns, long width) { return blocks_of(columns, Columns) * blocks_of(width, Depth) * RightBlock; }

// Columns that are computed together; a weight's bias is filled up to a multiple of them.
EXPORTED long nv_embed_panel() { return Columns; }

// weight: [columns, width].
EXPORTED void nv_embed_pack(const bf16* weight, long columns, long width, bf16* packed) {
  for (long column = 0; column < columns; column += Columns, packed += blocks_of(width, Depth) * RightBlock)
    pack_right_from_rows(weight + column * width, width, columns - column, width, packed);
}

EXPORTED int nv_embed_linear(int level, const Weight* weight, long first, long end, const bf16* x, long stride, long rows, int finish, const bf16* other, bf16* out) {
  return guarded([&] { (level == 2 ? linear<Amx> : linear<Avx512>)(*weight, first, end, x, stride, rows, static_cast<Finish>(finish), other, out); });
}

EXPORTED int nv_embed_attend(int level, const bf16* query, long query_stride, const bf16* key, long key_stride, const bf16* value, long value_stride, long kv, long group,
                             long width, const int32_t* bounds, long texts, bf16* out, long out_stride) {
  return guarded([&] {
    (level == 2 ? attend<Amx> : attend<Avx512>)({query, query_stride}, {key, key_stride}, {value, value_stride}, {kv, group, width}, bounds, texts, {out, out_stride});
  });
}

EXPORTED int nv_embed_stack(int level, const Layer* layers, long count, long heads, long width, bf16* x, long rows, const int32_t* bounds, long texts) {
  return guarded([&] { (level == 2 ? stack<Amx> : stack<Avx512>)(layers, count, {heads, 1, width}, x, rows, bounds, texts); });
}

EXPORTED void nv_embed_layer_norm(const Norm* norm, const bf16* x, long rows, long width, bf16* out) {
  layer_norm(x, rows, width, norm->weight, norm->bias, norm->eps, out);
}

#else

extern "C" long nv_embed_version() { return 1; }
extern "C" int nv_embed_level(int) { return 0; }

#endif
