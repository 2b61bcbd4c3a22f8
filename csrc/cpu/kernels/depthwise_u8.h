// Depthwise convolution of codes on 16 images in lanes; contract in lanes.h (DepthwiseU8Args).
//
// A dot product of four needs four taps of one channel side by side, but a line holds four channels. Four lines of one
// column, one per kernel row, are interleaved byte by byte into quads, once per column and row of outputs; then each column of
// the window is one dot product per channel. The quads of a strip of columns stay in L1. Interleaving leaves the channel in
// the dword of each 128-bit part, so weights, bias and multipliers are 16 bytes repeated, and packing restores a line.
#pragma once
#include "../lanes.h"
#include "conv2d_u8.h"

namespace hce::kernels {

// Requantization of four quads of results and their place as a line of codes. kUsual: as of StoreCodes.
template <class S, bool kUsual = false, bool kY = false, bool kY2 = false, bool kResidual = false>
struct ToQuads {
  static void Store(const ConvU8Args& a, const typename S::I (&acc)[4], typename S::F multiplier, int line, int i, int j, int lane) {
    using I = typename S::I;
    const bool has_residual = kUsual ? kResidual : a.residual.data != nullptr;
    const bool has_y = kUsual ? kY : a.y.data != nullptr, has_y2 = kUsual ? kY2 : a.y2.data != nullptr;
    const int64_t offset = int64_t{line} * kLineBytes + lane * 4;
    typename S::F v[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) v[n] = S::Mul(S::ToFloat(acc[n]), multiplier);
    if (has_residual) {
      I residual[4];
      S::Quads(S::LoadI(a.residual.data + i * a.residual.row + j * a.residual.pixel + offset), S::ZeroI(), S::ZeroI(), S::ZeroI(),
               residual);
      const I zero = S::SetI(a.residual_zero_point);
      const auto factor = S::Set(a.residual_multiplier);
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) v[n] = S::Add(v[n], S::Mul(S::ToFloat(S::SubI(residual[n], zero)), factor));
    }
    if (!kUsual && (!S::kSaturatingPack || !a.fits_int32))
      for (auto& value : v) value = S::Clamp(value, S::Set(a.range.low), S::Set(a.range.high));
    const I rounded[4] = {S::Round(v[0]), S::Round(v[1]), S::Round(v[2]), S::Round(v[3])};
    const I codes = S::PackQuads(rounded, a.range.zero_point, a.range.qmin, a.range.qmax);
    if (has_y) S::StoreI(a.y.data + i * a.y.row + j * a.y.pixel + offset, codes);
    if (has_y2) S::StoreI(a.y2.data + i * a.y2.row + j * a.y2.pixel + offset, RecodedLine<S>(codes, a.recode));
  }
};

// Columns [0, columns) of the input rows of output row i, at x, into quads[set][column][4].
template <class S>
inline void InterleaveRows(const DepthwiseU8Args& a, const uint8_t* x, int rows, int columns, typename S::I* quads) {
  const int64_t step = a.conv.geometry.dilation_h * a.conv.x.row;
  for (int set = 0; set < a.sets; ++set, rows -= 4, x += 4 * step) {
    // Rows behind the window meet weights of 0: the last row again.
    const int64_t r1 = rows > 1 ? step : 0, r2 = rows > 2 ? 2 * step : r1, r3 = rows > 3 ? 3 * step : r2;
    const uint8_t* p = x;
    for (int c = 0; c < columns; ++c, p += a.conv.x.pixel, quads += 4) {
      typename S::I q[4];
      S::Quads(S::LoadI(p), S::LoadI(p + r1), S::LoadI(p + r2), S::LoadI(p + r3), q);
      for (int n = 0; n < 4; ++n) quads[n] = q[n];
    }
  }
}

// One output pixel of kRows output rows from the quads of its first column.
template <class S, Products kProducts, class Out, int kRows, bool k3>
inline void DepthwisePixel(const DepthwiseU8Args& a, const typename S::I* quads, int columns, const int8_t* weight,
                           typename S::I bias, typename S::F multiplier, int line, int i, int j, int lane) {
  using I = typename S::I;
  const ConvGeometry& g = a.conv.geometry;
  I acc[kRows][4];
  for (auto& row : acc)
    for (auto& v : row) v = kProducts == Products::kSums ? S::ZeroI() : bias;
  const int sets = k3 ? 1 : a.sets, kernel_w = k3 ? 3 : g.kernel_w;
  const int64_t shift = int64_t{sets} * kernel_w * 16;
  for (int set = 0; set < sets; ++set, quads += 4 * columns) {
    const I* q = quads;
#pragma GCC unroll 3
    for (int kw = 0; kw < kernel_w; ++kw, q += k3 ? 4 : 4 * g.dilation_w, weight += 16) {
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) {
        const I w = S::Repeat(weight + r * shift);
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) {
          if constexpr (kProducts == Products::kSums)
            acc[r][n] = S::AddPairs(acc[r][n], q[n], w);
          else
            acc[r][n] = S::template Dot4<kProducts == Products::kDot>(acc[r][n], q[n], w);
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    if constexpr (kProducts == Products::kSums)
      for (auto& v : acc[r]) v = S::template Widen<1>(bias, v);
    Out::Store(a.conv, acc[r], multiplier, line, i + r, j, lane);
  }
}

// Output pixels [j, end) of output rows i .. i + kRows - 1, all lines.
template <class S, Products kProducts, class Out, int kRows, bool k3>
inline void DepthwiseStrip(const DepthwiseU8Args& args, int i, int j, int end, int lane) {
  const DepthwiseU8Args a = args;  // a copy that byte stores cannot alias
  const ConvGeometry& g = a.conv.geometry;
  alignas(64) typename S::I quads[4 * kDepthwiseColumns];  // 16 KiB, a third of L1
  const int columns = (end - 1 - j) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1;
  const uint8_t* x = a.conv.x.data + int64_t{i} * g.stride_h * a.conv.x.row + int64_t{j} * g.stride_w * a.conv.x.pixel + lane * 4;
  const int64_t line_weights = int64_t{a.shifts} * a.sets * g.kernel_w * 16;
  for (int l = 0; l < a.lines; ++l) {
    InterleaveRows<S>(a, x + l * kLineBytes, g.kernel_h + kRows - 1, columns, quads);
    const auto bias = S::Repeat(static_cast<const void*>(a.conv.bias + 4 * l));
    const auto multiplier = S::Repeat(a.conv.multiplier + 4 * l);
    for (int p = j; p < end; ++p)
      DepthwisePixel<S, kProducts, Out, kRows, k3>(a, quads + 4 * (p - j) * g.stride_w, columns, a.conv.weight + l * line_weights, bias,
                                          multiplier, l, i, p, lane);
  }
}

template <class S, Products kProducts, class Out, bool k3>
void DepthwiseRows(const DepthwiseU8Args& a) {
  const ConvGeometry& g = a.conv.geometry;
  const int most = (kDepthwiseColumns / a.sets - (g.kernel_w - 1) * g.dilation_w - 1) / g.stride_w + 1;
  const int strips = (g.out_w + most - 1) / most;
  for (int lane = 0; lane < kTile; lane += S::kLanes)
    for (int i = 0; i < g.out_h; i += a.shifts)
      for (int s = 0; s < strips; ++s) {
        const int j = SegmentStart(s, g.out_w, strips), end = SegmentStart(s + 1, g.out_w, strips);
        if (a.shifts == 2 && i + 1 < g.out_h)
          DepthwiseStrip<S, kProducts, Out, 2, k3>(a, i, j, end, lane);
        else
          DepthwiseStrip<S, kProducts, Out, 1, k3>(a, i, j, end, lane);
      }
}

template <class S, Products kProducts, class Out>
void DepthwiseWindows(const DepthwiseU8Args& a) {
  const ConvGeometry& g = a.conv.geometry;
  if (a.sets == 1 && g.kernel_w == 3 && g.dilation_w == 1)
    DepthwiseRows<S, kProducts, Out, true>(a);
  else
    DepthwiseRows<S, kProducts, Out, false>(a);
}

// The epilogue of MobileNet's layers without branches.
template <class S, Products kProducts>
void DepthwiseKernel(const DepthwiseU8Args& a) {
  if (S::kSaturatingPack && a.conv.fits_int32 && !a.conv.residual.data && !(a.conv.y.data && a.conv.y2.data))
    return a.conv.y.data ? DepthwiseWindows<S, kProducts, ToQuads<S, true, true>>(a)
                         : DepthwiseWindows<S, kProducts, ToQuads<S, true, false, true>>(a);
  DepthwiseWindows<S, kProducts, ToQuads<S>>(a);
}

template <class S>
void DepthwiseU8(const DepthwiseU8Args& a) {
  if constexpr (S::kPairSums) {
    if (a.conv.pair_sums >= a.sets * a.conv.geometry.kernel_w) return DepthwiseKernel<S, Products::kSums>(a);
    if (a.conv.pair_sums < 1) return DepthwiseKernel<S, Products::kSplit>(a);
  }
  DepthwiseKernel<S, Products::kDot>(a);
}

}  // namespace hce::kernels
