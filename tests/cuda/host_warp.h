// The functions of warp.h beside plain loops over the documented fragment layouts. Part of host_kernels.cpp.
#pragma once

namespace {

// C = A (16 x K) B (K x 8), both as floats that the format holds exactly; A row-major, B column-major in memory.
struct MatrixArgs {
  const uint32_t *a, *b;  // TF32: one element per word; 16 bits: two
  float* c;
  int format;  // 0 TF32, 1 binary16, 2 bfloat16, 3 binary16 with fragments from LoadMatrices
};
struct MatrixKernel {
  static constexpr int kThreads = kWarp, kBlocksPerSm = 1;
  template <class Context>
  static void Run(Context& ctx, const MatrixArgs& m) {
    const int g = ctx.Lane() / 4, t = ctx.Lane() % 4;
    float d[4] = {0.5f, 0.5f, 0.5f, 0.5f};
    // With K in words both kinds have rows of 8 words.
    uint32_t a[4] = {m.a[g * 8 + t], m.a[(g + 8) * 8 + t], m.a[g * 8 + t + 4], m.a[(g + 8) * 8 + t + 4]};
    uint32_t b[2] = {m.b[g * 8 + t], m.b[g * 8 + t + 4]};
    if (m.format == 0) MmaTf32(ctx, d, a, b);
    if (m.format == 1) MmaF16(ctx, d, a, b);
    if (m.format == 2) MmaBf16(ctx, d, a, b);
    if (m.format == 3) {
      uint32_t* shared = ctx.template Shared<uint32_t>();  // A, then B transposed: [k][column]
      for (int k = ctx.Lane(); k < 16 * 8; k += kWarp) shared[k] = m.a[k];
      uint16_t* transposed = reinterpret_cast<uint16_t*>(shared + 16 * 8);
      for (int k = ctx.Lane(); k < 16 * 8; k += kWarp)
        transposed[k] = static_cast<uint16_t>(m.b[(k % 8) * 8 + k / 8 / 2] >> (16 * (k / 8 % 2)));
      ctx.SyncWarp();
      uint32_t from_a[4], from_b[4];
      LoadMatrices(ctx, from_a, shared + (ctx.Lane() % 16) * 8 + ctx.Lane() / 16 * 4);
      LoadMatrices<true>(ctx, from_b, transposed + (ctx.Lane() % 16) * 8);
      const uint32_t pair[2] = {from_b[0], from_b[1]};
      MmaF16(ctx, d, from_a, pair);
    }
    const int rows[4] = {g, g, g + 8, g + 8};
    for (int e = 0; e < 4; ++e) m.c[rows[e] * 8 + 2 * t + e % 2] = d[e];
  }
};

struct ShuffleArgs {
  float* out;  // [32][3]
};
struct ShuffleKernel {
  static constexpr int kThreads = kWarp, kBlocksPerSm = 1;
  template <class Context>
  static void Run(Context& ctx, const ShuffleArgs& a) {
    const float v = static_cast<float>(ctx.Lane());
    float* out = a.out + ctx.Lane() * 3;
    out[0] = Shuffle(ctx, v, 5);
    out[1] = ShuffleXor(ctx, v, 9);
    out[2] = static_cast<float>(Ballot(ctx, ctx.Lane() % 3 == 0) >> ctx.Lane() & 1);
  }
};

void Warp() {
  // Small integers over 4: exact in every format, and so are the sums.
  const auto value = [](int k) { return static_cast<float>(k % 13 - 6) / 4; };
  const auto half = [](float v) {  // to binary16, v a multiple of 1/4 below 2
    if (v == 0.0f) return 0u;
    int exponent;
    const float fraction = std::frexp(std::fabs(v), &exponent);
    return (v < 0 ? 0x8000u : 0u) | static_cast<uint32_t>(exponent + 14) << 10 | (static_cast<uint32_t>(fraction * 2048) & 0x3ffu);
  };
  for (int format = 0; format < 4; ++format) {
    current = "matrix product, format " + std::to_string(format);
    const int depth = format == 0 ? 8 : 16;
    const auto encode = [&](float v) { return format == 0 ? Bits(v) | 0x5u : format == 2 ? Bits(v) >> 16 : half(v); };
    std::vector<uint32_t> a(16 * 8, 0), b(8 * 8, 0);
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < depth; ++k) {
        const int per = depth / 8;
        a[i * 8 + k / per] |= encode(value(i * 7 + k * 3)) << (16 * (k % per));
        if (i < 8) b[i * 8 + k / per] |= encode(value(i * 5 + k * 11)) << (16 * (k % per));
      }
    const Buffer c(16 * 8);
    Launch<MatrixKernel>(1, 1, kWarp, 4 * (16 * 8 + 8 * 8), MatrixArgs{a.data(), b.data(), c.data, format}, nullptr);
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 8; ++j) {
        float sum = 0.5f;
        for (int k = 0; k < depth; ++k) sum += value(i * 7 + k * 3) * value(j * 5 + k * 11);
        ExpectBits(c.data[i * 8 + j], sum, std::to_string(i) + "," + std::to_string(j));
      }
  }
  current = "shuffles";
  const Buffer out(32 * 3);
  Launch<ShuffleKernel>(1, 1, kWarp, 0, ShuffleArgs{out.data}, nullptr);
  for (int l = 0; l < 32; ++l) {
    ExpectBits(out.data[l * 3], 5.0f, "shuffle");
    ExpectBits(out.data[l * 3 + 1], static_cast<float>(l ^ 9), "xor");
    ExpectBits(out.data[l * 3 + 2], l % 3 == 0 ? 1.0f : 0.0f, "ballot");
  }
  current = "tf32";
  ExpectBits(FromBits(ToTf32(1.0f + 0x1p-11f)), 1.0f + 0x1p-10f, "half away from zero");
  ExpectBits(FromBits(ToTf32(-1.0f - 0x1p-12f)), -1.0f, "to the nearest");
}

}  // namespace
