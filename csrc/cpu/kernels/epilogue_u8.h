// Epilogue of quantized convolutions: int32 sums of four output channels of one pixel become one line of codes; and the
// recoding of a line, which other kernels share. Contract in lanes.h (ConvU8Args); every rounding is hce_engine.numerics'.
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

}  // namespace hce::kernels
