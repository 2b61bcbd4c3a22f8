// Depthwise float32 convolution on 16 images in lanes; contract in lanes.h (DepthwiseF32Args).
//
// Register block: R x P adjacent output pixels of one channel. Each input of the block is loaded once and used by all the
// taps that reach it, so a 3x3 kernel of stride 1 takes (R + 2)(P + 2) loads for 9 R P multiply-adds. Each accumulator takes
// bias, then the taps in the order kernel_h, kernel_w, as the direct kernel does.
#pragma once
#include "../lanes.h"

namespace hce::kernels {

// One channel of R x P output pixels; x and y point at the channel's line of the first ones. Kernel 3x3, dilation 1.
template <class S, int R, int P, int kStride>
inline void Depthwise3x3Block(const ConvF32Args& a, const uint8_t* x, const float* w, float bias, uint8_t* y,
                              const uint8_t* residual) {
  using F = typename S::F;
  F acc[R][P];
  for (auto& row : acc)
    for (auto& v : row) v = S::Set(bias);
  constexpr int kColumns = (P - 1) * kStride + 3;
#pragma GCC unroll 8
  for (int row = 0; row < (R - 1) * kStride + 3; ++row) {
    F in[kColumns];
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) in[c] = S::Load(reinterpret_cast<const float*>(x + row * a.x.row + c * a.x.pixel));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int kh = row - r * kStride;
      if (kh < 0 || kh > 2) continue;
#pragma GCC unroll 4
      for (int kw = 0; kw < 3; ++kw) {
        const F weight = S::Set(w[3 * kh + kw]);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) acc[r][p] = S::Fma(in[p * kStride + kw], weight, acc[r][p]);
      }
    }
  }
  const F low = S::Set(a.low), high = S::Set(a.high);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      F v = acc[r][p];
      if (residual) v = S::Add(v, S::Load(reinterpret_cast<const float*>(residual + r * a.residual.row + p * a.residual.pixel)));
      S::Store(reinterpret_cast<float*>(y + r * a.y.row + p * a.y.pixel), S::Clamp(v, low, high));
    }
}

// All channels of R x P output pixels, whose lines lie side by side.
template <class S, int R, int P, int kStride>
inline void Depthwise3x3Pixels(const DepthwiseF32Args& a, int i, int j, int lane) {
  const ConvF32Args& conv = a.conv;
  const uint8_t* x = conv.x.data + int64_t{i} * kStride * conv.x.row + int64_t{j} * kStride * conv.x.pixel + lane * 4;
  uint8_t* y = conv.y.data + i * conv.y.row + j * conv.y.pixel + lane * 4;
  const uint8_t* residual =
      conv.residual.data ? conv.residual.data + i * conv.residual.row + j * conv.residual.pixel + lane * 4 : nullptr;
  for (int c = 0; c < a.channels; ++c) {
    const int64_t line = c * kLineBytes;
    Depthwise3x3Block<S, R, P, kStride>(conv, x + line, conv.weight + 9 * int64_t{c}, conv.bias[c], y + line,
                                        residual ? residual + line : nullptr);
  }
}

template <class S, int R, int kStride>
inline void Depthwise3x3Row(const DepthwiseF32Args& a, int i, int lane) {
  const int width = a.conv.geometry.out_w, segments = (width + 3) / 4;
  for (int s = 0; s < segments; ++s) {
    const int j = SegmentStart(s, width, segments);
    switch (SegmentStart(s + 1, width, segments) - j) {
      case 1: Depthwise3x3Pixels<S, R, 1, kStride>(a, i, j, lane); break;
      case 2: Depthwise3x3Pixels<S, R, 2, kStride>(a, i, j, lane); break;
      case 3: Depthwise3x3Pixels<S, R, 3, kStride>(a, i, j, lane); break;
      default: Depthwise3x3Pixels<S, R, 4, kStride>(a, i, j, lane); break;
    }
  }
}

template <class S, int kStride>
void Depthwise3x3(const DepthwiseF32Args& a) {
  // With stride 2, output rows share few input rows.
  constexpr int kMost = kStride == 1 ? S::kDepthwiseRows : 2;
  const int height = a.conv.geometry.out_h, segments = (height + kMost - 1) / kMost;
  for (int lane = 0; lane < kTile; lane += S::kLanes)
    for (int s = 0; s < segments; ++s) {
      const int i = SegmentStart(s, height, segments);
      switch (SegmentStart(s + 1, height, segments) - i) {
        case 1: Depthwise3x3Row<S, 1, kStride>(a, i, lane); break;
        case 2: Depthwise3x3Row<S, 2, kStride>(a, i, lane); break;
        case 3: Depthwise3x3Row<S, kMost < 3 ? 1 : 3, kStride>(a, i, lane); break;
        default: Depthwise3x3Row<S, kMost < 4 ? 1 : 4, kStride>(a, i, lane); break;
      }
    }
}

template <class S>
void DepthwiseF32(const DepthwiseF32Args& a) {
  if (a.conv.geometry.stride_w == 1)
    Depthwise3x3<S, 1>(a);
  else
    Depthwise3x3<S, 2>(a);
}

}  // namespace hce::kernels
