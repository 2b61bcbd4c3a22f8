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
[[gnu::always_inline]] inline typename S::I RecodedLine(typename S::I line, const Recode& r) {
  if constexpr (S::kSaturatingPack)
    if (r.half) return S::RecodeLine(line, r.half, r.qmax);
  typename S::I codes[4] = {S::template Byte<0>(line), S::template Byte<1>(line), S::template Byte<2>(line),
                            S::template Byte<3>(line)};
  for (auto& code : codes) code = Recoded<S>(code, r);
  return PackFour<S>(codes);
}

// Whether the branches of an epilogue may be taken when it is compiled.
template <class S>
inline bool IsUsual(const ConvU8Args& a) {
  return S::kSaturatingPack && a.fits_int32 && !(a.residual.data && !a.y.data) && !(a.y2.data && !a.recode.half);
}

// Epilogue of four output channels of one pixel, whose f32(acc) are sum(0 .. 3): requantization, residual, clamp, packing, recoded copy.
// kUsual: no branches on what the layer has; the caller knows by IsUsual that it has exactly y, y2 and residual as named.
template <class S, bool kUsual = false, bool kY = false, bool kY2 = false, bool kResidual = false, class Sum>
[[gnu::always_inline]] inline void StoreSums(const ConvU8Args& a, const Sum& sum, int channel, int i, int j, int lane) {
  using I = typename S::I;
  const bool has_residual = kUsual ? kResidual : a.residual.data != nullptr;
  const bool has_y = kUsual ? kY : a.y.data != nullptr, has_y2 = kUsual ? kY2 : a.y2.data != nullptr;
  const int64_t line = (channel / 4) * kLineBytes + lane * 4;
  typename S::F v[4];
#pragma GCC unroll 4
  for (int o = 0; o < 4; ++o) v[o] = S::Mul(sum(o), S::Set(a.multiplier[channel + o]));
  if (has_residual) {
    const I residual = S::LoadI(a.residual.data + i * a.residual.row + j * a.residual.pixel + line);
    I codes[4] = {S::template Byte<0>(residual), S::template Byte<1>(residual), S::template Byte<2>(residual),
                  S::template Byte<3>(residual)};
    if (a.residual_zero_point)
      for (auto& code : codes) code = S::SubI(code, S::SetI(a.residual_zero_point));
    const auto factor = S::Set(a.residual_multiplier);
#pragma GCC unroll 4
    for (int o = 0; o < 4; ++o) v[o] = S::Add(v[o], S::Mul(S::ToFloat(codes[o]), factor));
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
  if (!has_y2) return;
  I recoded;
  if constexpr (kUsual && S::kSaturatingPack)
    recoded = S::RecodeLine(codes, a.recode.half, a.recode.qmax);
  else
    recoded = RecodedLine<S>(codes, a.recode);
  S::StoreI(a.y2.data + i * a.y2.row + j * a.y2.pixel + line, recoded);
}

// The same of int32 sums.
template <class S, bool kUsual = false, bool kY = false, bool kY2 = false, bool kResidual = false>
[[gnu::always_inline]] inline void StoreCodes(const ConvU8Args& a, const typename S::I (&acc)[4], int channel, int i, int j, int lane) {
  StoreSums<S, kUsual, kY, kY2, kResidual>(a, [&](int o) { return S::ToFloat(acc[o]); }, channel, i, j, lane);
}

}  // namespace hce::kernels
