// Direct convolution of codes on 16 images in lanes; contract in lanes.h (ConvU8Args).
//
// Register block: P adjacent output pixels x O output channels (4 or 8). Per tap and input unit, P loads and O broadcasts feed
// P O four-way dot products, without VNNI by way of int16 sums. Four channels become one 64-byte line of the output: shifted and
// or-ed, they already are the next layer's layout.
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

// How products are summed. kDot: each step to int32. On instruction sets that add two products in int16 also: kSums, int16
// sums that are widened when pair_sums are reached; kOnce, all of a block's products in int16; and where not even two products
// fit, kNibbles, the low and the high four bits of x one after the other, widened after kNibbleSums, or for few products kSplit, each
// step to int32 by way of the low seven bits and the top bit.
enum class Products { kDot, kSplit, kSums, kOnce, kNibbles };
constexpr int kNibbleSums = 8;  // 8 * 2 * 15 * 128 < 2^15
constexpr bool InInt16(Products products) { return products != Products::kDot && products != Products::kSplit; }

// One line of inputs for P pixels times one line of weights for O channels. kNibble: which four bits of x (kNibbles).
template <class S, int P, int O, Products kProducts, int kNibble>
[[gnu::always_inline]] inline void MultiplyLine(const uint8_t* x, int64_t step, const int8_t* w, typename S::I (&acc)[P][O]) {
  typename S::I in[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    in[p] = S::LoadI(x + p * step);
    if constexpr (kProducts == Products::kNibbles) in[p] = S::template Nibbles<kNibble>(in[p]);
  }
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
    const auto weight = S::Broadcast4(w + 4 * o);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      if constexpr (InInt16(kProducts))
        acc[p][o] = S::AddPairs(acc[p][o], in[p], weight);
      else
        acc[p][o] = S::template Dot4<kProducts == Products::kDot>(acc[p][o], in[p], weight);
    }
  }
}

// wide += 16^kNibble * acc, from int16 to int32.
template <class S, int P, int O, int kNibble>
[[gnu::always_inline]] inline void WidenAll(typename S::I (&acc)[P][O], typename S::I (&wide)[P][O]) {
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      wide[p][o] = S::template Widen<kNibble == 0 ? 1 : 16>(wide[p][o], acc[p][o]);
      acc[p][o] = S::ZeroI();
    }
}

// All products of a block: into acc, or where they are widened into wide.
template <class S, int P, int O, Products kProducts, int kNibble>
[[gnu::always_inline]] inline void MultiplyTaps(const ConvU8Args& a, const ConvBlock& b, const uint8_t* x,
                                                typename S::I (&acc)[P][O], typename S::I (&wide)[P][O]) {
  const ConvGeometry& g = a.geometry;
  constexpr bool kWidens = kProducts == Products::kSums || kProducts == Products::kNibbles;
  const Runs runs = RunsOf(g, b, a.x);
  const int64_t step = g.stride_w * a.x.pixel;
  const int8_t* w = a.weight + b.weight;
  const int most = kProducts == Products::kNibbles ? kNibbleSums : a.pair_sums;
  int room = most;
  for (int kh = 0; kh < runs.rows; ++kh, x += runs.row) {
    const uint8_t* run = x;
    for (int n = 0; n < runs.runs; ++n, run += runs.run) {
      const uint8_t *line = run, *end = run + runs.lines * kLineBytes;
      if constexpr (kWidens) {
        while (line < end) {
          const int64_t left = (end - line) / kLineBytes, count = left < room ? left : room;
          for (const uint8_t* until = line + count * kLineBytes; line < until; line += kLineBytes, w += 4 * O)
            MultiplyLine<S, P, O, kProducts, kNibble>(line, step, w, acc);
          room -= static_cast<int>(count);
          if (room > 0) continue;
          room = most;
          WidenAll<S, P, O, kNibble>(acc, wide);
        }
      } else {
        for (; line < end; line += kLineBytes, w += 4 * O) MultiplyLine<S, P, O, kProducts, kNibble>(line, step, w, acc);
      }
    }
  }
  if constexpr (kWidens) WidenAll<S, P, O, kNibble>(acc, wide);
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
  I acc[P][O], wide[P][O];
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
    const I bias = S::SetI(a.bias[b.channel + o]);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      acc[p][o] = InInt16(kProducts) ? S::ZeroI() : bias;
      if constexpr (kProducts == Products::kSums || kProducts == Products::kNibbles) wide[p][o] = bias;
    }
  }
  MultiplyTaps<S, P, O, kProducts, 0>(a, b, x, acc, wide);
  if constexpr (kProducts == Products::kNibbles) MultiplyTaps<S, P, O, kProducts, 1>(a, b, x, acc, wide);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int o = 0; o < O; o += 4) {
      I sums[4];
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) {
        if constexpr (kProducts == Products::kOnce)
          sums[n] = S::template Widen<1>(S::SetI(a.bias[b.channel + o + n]), acc[p][o + n]);
        else
          sums[n] = !InInt16(kProducts) ? acc[p][o + n] : wide[p][o + n];
      }
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
    int64_t steps = 0;
    for (int n = 0; n < a.geometry.block_count; ++n) {
      const int64_t taps = int64_t{a.geometry.kernel_h} * a.geometry.kernel_w * a.geometry.blocks[n].lines;
      steps = taps > steps ? taps : steps;
    }
    if (a.pair_sums >= steps) return ConvU8Kernel<S, Products::kOnce>(a);
    if (a.pair_sums >= kLeastPairSums) return ConvU8Kernel<S, Products::kSums>(a);
    if (a.pair_sums < 1 && steps > 2 * kNibbleSums) return ConvU8Kernel<S, Products::kNibbles>(a);
    if (a.pair_sums < 1) return ConvU8Kernel<S, Products::kSplit>(a);
  }
  ConvU8Kernel<S, Products::kDot>(a);
}

}  // namespace hce::kernels
