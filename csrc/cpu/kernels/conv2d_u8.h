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

// One line of inputs for P pixels times one line of weights for O channels.
template <class S, int P, int O, Products kProducts>
[[gnu::always_inline]] inline void MultiplyLine(const uint8_t* x, int64_t step, const int8_t* w, typename S::I (&acc)[P][O]) {
  typename S::I in[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) in[p] = S::LoadI(x + p * step);
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
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

// What a sum is worth: int16 pairs are added to what was widened before.
template <class S, Products kProducts>
inline typename S::I Widened(typename S::I sum, typename S::I acc) {
  if constexpr (kProducts == Products::kSums)
    return S::Widen(sum, acc);
  else
    return acc;
}

// What becomes of four channels' sums of one pixel.
template <class S, bool kUsual = false, bool kY = false, bool kY2 = false, bool kResidual = false>
struct ToCodes {
  static void Store(const ConvU8Args& a, const typename S::I (&sums)[4], int channel, int i, int j, int lane) {
    StoreCodes<S, kUsual, kY, kY2, kResidual>(a, sums, channel, i, j, lane);
  }
};
template <class S>
struct ToLogits {
  static void Store(const ConvU8Args& a, const typename S::I (&sums)[4], int channel, int, int, int lane) {
    StoreLogitLines<S>(a, sums, channel, lane);
  }
};

// P pixels x O channels, x at the first input line of the first pixel. Not inlined: so the accumulators have the registers
// for themselves, where GCC 12 would spill inputs to keep constants of the epilogue in registers from block to block.
template <class S, Products kProducts, class Out, int P, int O>
[[gnu::noinline]] void ConvU8Block(const ConvU8Args& args, const ConvBlock& b, const uint8_t* x, int i, int j, int lane) {
  using I = typename S::I;
  const ConvU8Args a = args;  // a copy that byte stores cannot alias
  const ConvGeometry& g = a.geometry;
  I acc[P][O], wide[P][O];  // kSums: acc in int16, wide what it was widened to
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
    const I bias = S::SetI(a.bias[b.channel + o]);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) wide[p][o] = bias, acc[p][o] = kProducts == Products::kSums ? S::ZeroI() : bias;
  }
  const int64_t step = g.stride_w * a.x.pixel, tap = g.dilation_w * a.x.pixel, row = g.dilation_h * a.x.row;
  const int8_t* w = a.weight + b.weight;
  int room = a.pair_sums;
  for (int kh = 0; kh < g.kernel_h; ++kh, x += row) {
    const uint8_t* pixel = x;
    for (int kw = 0; kw < g.kernel_w; ++kw, pixel += tap) {
      const uint8_t *line = pixel, *end = pixel + b.lines * kLineBytes;
      if constexpr (kProducts == Products::kSums) {
        while (line < end) {
          const int64_t left = (end - line) / kLineBytes, count = left < room ? left : room;
          for (const uint8_t* until = line + count * kLineBytes; line < until; line += kLineBytes, w += 4 * O)
            MultiplyLine<S, P, O, kProducts>(line, step, w, acc);
          room -= static_cast<int>(count);
          if (room > 0) continue;
          room = a.pair_sums;
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
            for (int o = 0; o < O; ++o) wide[p][o] = S::Widen(wide[p][o], acc[p][o]), acc[p][o] = S::ZeroI();
        }
      } else {
        for (; line < end; line += kLineBytes, w += 4 * O) MultiplyLine<S, P, O, kProducts>(line, step, w, acc);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int o = 0; o < O; o += 4) {
      I sums[4];
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) sums[n] = Widened<S, kProducts>(wide[p][o + n], acc[p][o + n]);
      Out::Store(a, sums, b.channel + o, i, j + p, lane);
    }
}

template <class S, Products kProducts, class Out, int P>
inline void ConvU8Pixels(const ConvU8Args& a, int i, int j, int lane) {
  constexpr int kMost = S::kChannelsU8;
  const ConvGeometry& g = a.geometry;
  const uint8_t* x = a.x.data + int64_t{i} * g.stride_h * a.x.row + int64_t{j} * g.stride_w * a.x.pixel + lane * 4;
  for (int n = 0; n < g.block_count; ++n) {
    const ConvBlock& b = g.blocks[n];
    if (b.count == kMost)
      ConvU8Block<S, kProducts, Out, P, kMost>(a, b, x + b.line * kLineBytes, i, j, lane);
    else
      ConvU8Block<S, kProducts, Out, P, 4>(a, b, x + b.line * kLineBytes, i, j, lane);
  }
}

template <class S, Products kProducts, class Out>
void ConvU8Rows(const ConvU8Args& a) {
  const int segments = (a.geometry.out_w + S::kPixelsU8 - 1) / S::kPixelsU8;
  for (int lane = 0; lane < kTile; lane += S::kLanes)
    for (int i = 0; i < a.geometry.out_h; ++i)
      for (int s = 0; s < segments; ++s) {
        const int j = SegmentStart(s, a.geometry.out_w, segments);
        switch (SegmentStart(s + 1, a.geometry.out_w, segments) - j) {
          case 1: ConvU8Pixels<S, kProducts, Out, 1>(a, i, j, lane); break;
          case 2: ConvU8Pixels<S, kProducts, Out, 2>(a, i, j, lane); break;
          default: ConvU8Pixels<S, kProducts, Out, S::kPixelsU8 < 3 ? 1 : 3>(a, i, j, lane); break;
        }
      }
}

// The epilogue for what a layer has: the usual cases without branches.
template <class S, Products kProducts>
void ConvU8Kernel(const ConvU8Args& a) {
  if (a.logits) return ConvU8Rows<S, kProducts, ToLogits<S>>(a);
  const bool y = a.y.data, y2 = a.y2.data, residual = a.residual.data;
  if (!IsUsual<S>(a)) return ConvU8Rows<S, kProducts, ToCodes<S>>(a);
  if (residual && y2) return ConvU8Rows<S, kProducts, ToCodes<S, true, true, true, true>>(a);
  if (residual) return ConvU8Rows<S, kProducts, ToCodes<S, true, true, false, true>>(a);
  if (!y) return ConvU8Rows<S, kProducts, ToCodes<S, true, false, true>>(a);
  if (y2) return ConvU8Rows<S, kProducts, ToCodes<S, true, true, true>>(a);
  ConvU8Rows<S, kProducts, ToCodes<S, true, true>>(a);
}

// Widening costs two instructions per accumulator; below this many sums it is not worth keeping them in int16.
constexpr int kLeastPairSums = 8;

template <class S>
void ConvU8(const ConvU8Args& a) {
  if constexpr (S::kPairSums) {
    if (a.pair_sums >= kLeastPairSums) return ConvU8Kernel<S, Products::kSums>(a);
    if (a.pair_sums < 1) return ConvU8Kernel<S, Products::kSplit>(a);
  }
  ConvU8Kernel<S, Products::kDot>(a);
}

}  // namespace hce::kernels
