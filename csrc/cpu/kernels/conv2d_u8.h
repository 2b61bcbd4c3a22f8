// Direct convolution of codes on 16 images in lanes; contract in lanes.h (ConvU8Args).
//
// Register block: P adjacent output pixels x 4 output channels. Per tap and input unit, P loads and 4 broadcasts feed
// 4 P four-way dot products, without VNNI by way of int16 sums. The 4 channels of a block become one 64-byte line of the output: shifted and or-ed, they
// already are the next layer's layout.
#pragma once
#include "epilogue_u8.h"

namespace hce::kernels {

// Epilogue of a head: float32 logits, two roundings.
template <class S>
inline void StoreLogitLines(const ConvU8Args& a, const typename S::I (&acc)[4], int channel, int lane) {
  for (int o = 0; o < 4; ++o) {
    const auto v = S::Mul(S::ToFloat(acc[o]), S::Set(a.multiplier[channel + o]));
    S::Store(a.logits + (channel + o) * kTile + lane, S::Add(v, S::Set(a.offset[channel + o])));
  }
}

// How products are summed. kSplit and kDot: one step to int32, with and without care for int16 overflow on the way (one
// form on instruction sets that do not pass through int16). kSums: in int16, widened when pair_sums are reached.
enum class Products { kSplit, kDot, kSums };

// One line of inputs for P pixels times one line of weights for 4 channels.
template <class S, int P, Products kProducts>
inline void MultiplyLine(const uint8_t* x, int64_t step, const int8_t* w, typename S::I (&acc)[P][4]) {
  typename S::I in[P];
  for (int p = 0; p < P; ++p) in[p] = S::LoadI(x + p * step);
#pragma GCC unroll 4
  for (int o = 0; o < 4; ++o) {
    const auto weight = S::Broadcast4(w + 4 * o);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      if constexpr (kProducts == Products::kSums)
        acc[p][o] = S::AddPairs(acc[p][o], in[p], weight);
      else
        acc[p][o] = S::template Dot4<kProducts == Products::kDot>(acc[p][o], in[p], weight);
    }
  }
}

template <class S, int P, Products kProducts>
inline void ConvU8Block(const ConvU8Args& a, const ConvBlock& b, int i, int j, int lane) {
  using I = typename S::I;
  const ConvGeometry& g = a.geometry;
  I acc[P][4], sums[P][4];
  for (int o = 0; o < 4; ++o) {
    const I bias = S::SetI(a.bias[b.channel + o]);
    for (int p = 0; p < P; ++p) acc[p][o] = bias, sums[p][o] = S::ZeroI();
  }
  const auto widen = [&] {
    if constexpr (kProducts == Products::kSums)
      for (int o = 0; o < 4; ++o)
        for (int p = 0; p < P; ++p) acc[p][o] = S::Widen(acc[p][o], sums[p][o]), sums[p][o] = S::ZeroI();
  };
  const int64_t step = g.stride_w * a.x.pixel;
  const int8_t* w = a.weight + b.weight;
  int room = a.pair_sums;
  for (int kh = 0; kh < g.kernel_h; ++kh) {
    for (int kw = 0; kw < g.kernel_w; ++kw) {
      const uint8_t* x = a.x.data + (int64_t{i} * g.stride_h + kh * g.dilation_h) * a.x.row +
                         (int64_t{j} * g.stride_w + kw * g.dilation_w) * a.x.pixel + b.line * kLineBytes + lane * 4;
      if constexpr (kProducts == Products::kSums) {
        for (int left = b.lines; left > 0;) {
          const int count = left < room ? left : room;
          for (int u = 0; u < count; ++u, x += kLineBytes, w += 16) MultiplyLine<S, P, kProducts>(x, step, w, sums);
          left -= count;
          room -= count;
          if (room == 0) widen(), room = a.pair_sums;
        }
      } else {
        for (int u = 0; u < b.lines; ++u, x += kLineBytes, w += 16) MultiplyLine<S, P, kProducts>(x, step, w, acc);
      }
    }
  }
  widen();
  if (a.logits) {
    StoreLogitLines<S>(a, acc[0], b.channel, lane);
    return;
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) StoreCodes<S>(a, acc[p], b.channel, i, j + p, lane);
}

template <class S, Products kProducts, int P>
inline void ConvU8Pixels(const ConvU8Args& a, int i, int j, int lane) {
  for (int b = 0; b < a.geometry.block_count; ++b)
    ConvU8Block<S, P, kProducts>(a, a.geometry.blocks[b], i, j, lane);
}

template <class S, Products kProducts>
inline void ConvU8Rows(const ConvU8Args& args) {
  const ConvU8Args a = args;  // a copy that byte stores cannot alias, so fields stay in registers: 20 % on VNNI
  const int segments = (a.geometry.out_w + S::kPixelsU8 - 1) / S::kPixelsU8;
  for (int lane = 0; lane < kTile; lane += S::kLanes)
    for (int i = 0; i < a.geometry.out_h; ++i)
      for (int s = 0; s < segments; ++s) {
        const int j = SegmentStart(s, a.geometry.out_w, segments);
        switch (SegmentStart(s + 1, a.geometry.out_w, segments) - j) {
          case 1: ConvU8Pixels<S, kProducts, 1>(a, i, j, lane); break;
          case 2: ConvU8Pixels<S, kProducts, 2>(a, i, j, lane); break;
          case 3: ConvU8Pixels<S, kProducts, S::kPixelsU8 < 3 ? 1 : 3>(a, i, j, lane); break;
          default: ConvU8Pixels<S, kProducts, S::kPixelsU8 < 4 ? 1 : 4>(a, i, j, lane); break;
        }
      }
}

// Widening costs two instructions per accumulator; below this many sums it is not worth keeping them in int16.
constexpr int kLeastPairSums = 8;

template <class S>
void ConvU8(const ConvU8Args& a) {
  if constexpr (S::kPairSums)
    if (a.pair_sums >= kLeastPairSums) return ConvU8Rows<S, Products::kSums>(a);
  if (a.pair_sums >= 1)
    ConvU8Rows<S, Products::kDot>(a);
  else
    ConvU8Rows<S, Products::kSplit>(a);
}

}  // namespace hce::kernels
