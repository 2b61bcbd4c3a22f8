// Direct convolution of codes on 16 images in lanes; contract in lanes.h (ConvU8Args).
//
// Register block: P adjacent output pixels x 4 output channels. Per tap and input unit, P loads and 4 broadcasts feed
// 4 P four-way dot products, without VNNI by way of int16 sums. The 4 channels of a block become one 64-byte line of the output: shifted and or-ed, they
// already are the next layer's layout.
#pragma once
#include "../lanes.h"

namespace hce::kernels {

template <class S>
inline typename S::I Recoded(typename S::I codes, const Recode& r) {
  auto v = S::MulI(S::SubI(codes, S::SetI(r.zero_point_in)), S::SetI(r.k));
  v = S::AddI(S::template ShiftRightSigned<16>(S::AddI(v, S::SetI(1 << 15))), S::SetI(r.zero_point));
  return S::MinI(S::MaxI(v, S::SetI(r.qmin)), S::SetI(r.qmax));
}

template <class S>
inline typename S::I PackFour(const typename S::I (&c)[4]) {
  return S::OrI(S::OrI(c[0], S::template ShiftLeft<8>(c[1])),
                S::OrI(S::template ShiftLeft<16>(c[2]), S::template ShiftLeft<24>(c[3])));
}

// The recoded form of one line of codes.
template <class S>
inline typename S::I RecodedLine(typename S::I line, const Recode& r) {
  if constexpr (S::kSaturatingPack)
    if (r.zero_point_in == 0 && r.zero_point == 0 && r.qmin == 0 && r.k < (1 << 16)) return S::RecodeLine(line, r.k, r.qmax);
  typename S::I codes[4];
  for (auto& code : codes) {
    code = Recoded<S>(S::AndI(line, S::SetI(0xff)), r);
    line = S::template ShiftRight<8>(line);
  }
  return PackFour<S>(codes);
}

// Epilogue of four output channels of one pixel: requantization, residual, clamp, packing, recoded copy. kUsual: no
// branches on what the layer has; the caller knows that it has exactly y, y2 and residual as named, and fits_int32.
template <class S, bool kUsual = false, bool kY = false, bool kY2 = false, bool kResidual = false>
inline void StoreCodes(const ConvU8Args& a, const typename S::I (&acc)[4], int channel, int i, int j, int lane) {
  using I = typename S::I;
  const bool has_residual = kUsual ? kResidual : a.residual.data != nullptr;
  const bool has_y = kUsual ? kY : a.y.data != nullptr, has_y2 = kUsual ? kY2 : a.y2.data != nullptr;
  const int64_t line = (channel / 4) * kLineBytes + lane * 4;
  typename S::F v[4];
#pragma GCC unroll 4
  for (int o = 0; o < 4; ++o) v[o] = S::Mul(S::ToFloat(acc[o]), S::Set(a.multiplier[channel + o]));
  if (has_residual) {
    I residual = S::LoadI(a.residual.data + i * a.residual.row + j * a.residual.pixel + line);
    const I zero = S::SetI(a.residual_zero_point);
    const auto factor = S::Set(a.residual_multiplier);
#pragma GCC unroll 4
    for (int o = 0; o < 4; ++o) {
      v[o] = S::Add(v[o], S::Mul(S::ToFloat(S::SubI(S::AndI(residual, S::SetI(0xff)), zero)), factor));
      residual = S::template ShiftRight<8>(residual);
    }
  }
  I codes = S::ZeroI();
  bool packed = false;
  if constexpr (S::kSaturatingPack) {
    if (kUsual || a.fits_int32) {
      const I rounded[4] = {S::Round(v[0]), S::Round(v[1]), S::Round(v[2]), S::Round(v[3])};
      codes = S::PackCodes(rounded, a.range.zero_point, a.range.qmin, a.range.qmax);
      packed = true;
    }
  }
  if (!packed) {
    I four[4];
    for (int o = 0; o < 4; ++o)
      four[o] = S::AddI(S::Round(S::Clamp(v[o], S::Set(a.range.low), S::Set(a.range.high))), S::SetI(a.range.zero_point));
    codes = PackFour<S>(four);
  }
  if (has_y) S::StoreI(a.y.data + i * a.y.row + j * a.y.pixel + line, codes);
  if (has_y2) S::StoreI(a.y2.data + i * a.y2.row + j * a.y2.pixel + line, RecodedLine<S>(codes, a.recode));
}

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
