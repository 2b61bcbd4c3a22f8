// Float layers on the vectors of fewer images than a register has places; contract in lanes.h (DenseF32Args).
//
// With one image, images in lanes would leave 15 of 16 places empty, and a classifier of 1000 classes takes as long as for 16.
// Here a register holds output channels of one image. Each output is made by the same operations in the same order as in
// ConvF32: bias, then the channels, by one fused multiply-add each.
#pragma once
#include "../lanes.h"

namespace hce::kernels {

// Weights lie where numpy put them.
template <class S>
inline typename S::F LoadAnywhere(const float* p) {
  typename S::F v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// P images times V registers of output channels.
template <class S, int P, int V>
inline void DenseF32Block(const DenseF32Args& a, const float* w, int image, int channel) {
  using F = typename S::F;
  F acc[P][V];
  for (int v = 0; v < V; ++v)
    for (int p = 0; p < P; ++p) acc[p][v] = LoadAnywhere<S>(a.bias + channel + v * S::kLanes);
  const float* x = a.x + image;
  for (int c = 0; c < a.channels; ++c, x += kTile, w += kDenseBlock) {
    F in[P];
    for (int p = 0; p < P; ++p) in[p] = S::Set(x[p]);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const F weight = LoadAnywhere<S>(w + v * S::kLanes);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) acc[p][v] = S::Fma(in[p], weight, acc[p][v]);
    }
  }
  const F low = S::Set(a.low), high = S::Set(a.high);
  alignas(64) float out[S::kLanes];
  for (int p = 0; p < P; ++p)
    for (int v = 0; v < V; ++v) {
      S::Store(out, S::Clamp(acc[p][v], low, high));
      const int first = channel + v * S::kLanes;
      for (int k = 0; k < S::kLanes && first + k < a.out_channels; ++k) a.y[(first + k) * kTile + image + p] = out[k];
    }
}

template <class S>
void DenseF32(const DenseF32Args& a) {
  constexpr int kRegisters = S::kLanes == 4 ? 2 : 4, kImages = S::kLanes == 16 ? 4 : 2;
  for (int64_t n = 0; n < int64_t{a.out_channels} * kTile; n += S::kLanes) S::Store(a.y + n, S::Set(0.0f));
  const float* w = a.weight;
  for (int channel = 0; channel < a.out_channels; channel += kDenseBlock, w += int64_t{a.channels} * kDenseBlock)
    for (int part = 0; part < kDenseBlock; part += kRegisters * S::kLanes) {
      int image = 0;
      for (; image + kImages <= a.images; image += kImages)
        DenseF32Block<S, kImages, kRegisters>(a, w + part, image, channel + part);
      for (; image < a.images; ++image) DenseF32Block<S, 1, kRegisters>(a, w + part, image, channel + part);
    }
}

}  // namespace hce::kernels
