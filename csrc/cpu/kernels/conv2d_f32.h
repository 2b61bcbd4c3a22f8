// Direct float32 convolution on 16 images in lanes; contract in lanes.h (ConvF32Args).
//
// Register block: P adjacent output pixels x O output channels; a weight is broadcast once and used for P pixels. One
// accumulator per output takes bias, then the taps in the order kernel_h, kernel_w, channel, so a result depends on
// nothing but its own image.
#pragma once
#include "../lanes.h"

namespace hce::kernels {

template <class S, int P, int O>
[[gnu::noinline]] void ConvF32Block(const ConvF32Args& a, const ConvBlock& b, int i, int j, int lane) {
  using F = typename S::F;
  const ConvGeometry& g = a.geometry;
  F acc[P][O];  // every loop over it is unrolled, or it would live in memory
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
    const F bias = S::Set(a.bias[b.channel + o]);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) acc[p][o] = bias;
  }
  const int64_t step = g.stride_w * a.x.pixel;
  const float* w = a.weight + b.weight;
  const Runs runs = RunsOf(g, b, a.x);
  const uint8_t* row = a.x.data + int64_t{i} * g.stride_h * a.x.row + int64_t{j} * g.stride_w * a.x.pixel +
                       b.line * kLineBytes + lane * 4;
  for (int kh = 0; kh < runs.rows; ++kh, row += runs.row) {
    const uint8_t* run = row;
    for (int n = 0; n < runs.runs; ++n, run += runs.run) {
      const uint8_t* x = run;
      for (int c = 0; c < runs.lines; ++c, x += kLineBytes, w += O) {
        F in[P];
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) in[p] = S::Load(reinterpret_cast<const float*>(x + p * step));
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) {
          const F weight = S::Set(w[o]);
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p) acc[p][o] = S::Fma(in[p], weight, acc[p][o]);
        }
      }
    }
  }
  // The epilogue's operands are loaded here, not before the loops, where they would take registers of the accumulators.
  __asm__ volatile("" ::: "memory");
  const int64_t line = b.channel * kLineBytes + lane * 4;
  if (a.residual.data) {
    const uint8_t* residual = a.residual.data + i * a.residual.row + j * a.residual.pixel + line;
    const int64_t pixel = a.residual.pixel;
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p, residual += pixel)
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o)
        acc[p][o] = S::Add(acc[p][o], S::Load(reinterpret_cast<const float*>(residual + o * kLineBytes)));
  }
  const F low = S::Set(a.low), high = S::Set(a.high);
  uint8_t* y = a.y.data + i * a.y.row + j * a.y.pixel + line;
  const int64_t pixel = a.y.pixel;
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p, y += pixel)
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) S::Store(reinterpret_cast<float*>(y + o * kLineBytes), S::Clamp(acc[p][o], low, high));
}

template <class S, int P>
inline void ConvF32Pixels(const ConvF32Args& a, int i, int j, int lane) {
  constexpr int kMax = S::kChannelsF32;
  for (int n = 0; n < a.geometry.block_count; ++n) {
    const ConvBlock& b = a.geometry.blocks[n];
    switch (b.count) {
      case 1: ConvF32Block<S, P, 1>(a, b, i, j, lane); break;
      case 2: ConvF32Block<S, P, 2>(a, b, i, j, lane); break;
      case 3: ConvF32Block<S, P, 3>(a, b, i, j, lane); break;
      case 4: ConvF32Block<S, P, 4>(a, b, i, j, lane); break;
      case 5: ConvF32Block<S, P, kMax < 5 ? 1 : 5>(a, b, i, j, lane); break;
      default: ConvF32Block<S, P, kMax < 6 ? 1 : 6>(a, b, i, j, lane); break;
    }
  }
}

template <class S>
void ConvF32(const ConvF32Args& a) {
  const int segments = (a.geometry.out_w + S::kPixelsF32 - 1) / S::kPixelsF32;
  for (int lane = 0; lane < kTile; lane += S::kLanes)
    for (int i = 0; i < a.geometry.out_h; ++i)
      for (int s = 0; s < segments; ++s) {
        const int j = SegmentStart(s, a.geometry.out_w, segments);
        switch (SegmentStart(s + 1, a.geometry.out_w, segments) - j) {
          case 1: ConvF32Pixels<S, 1>(a, i, j, lane); break;
          case 2: ConvF32Pixels<S, 2>(a, i, j, lane); break;
          case 3: ConvF32Pixels<S, S::kPixelsF32 < 3 ? 1 : 3>(a, i, j, lane); break;
          default: ConvF32Pixels<S, S::kPixelsF32 < 4 ? 1 : 4>(a, i, j, lane); break;
        }
      }
}

}  // namespace hce::kernels
