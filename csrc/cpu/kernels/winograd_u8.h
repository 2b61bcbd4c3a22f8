// Exact Winograd F(4, 3) along the rows of codes, on 16 images in lanes; contract in lanes.h (WinogradU8Args), derivation in
// docs/NUMERICS.md.
//
// Four output pixels of a row are a tile. Six products of transformed bytes replace twelve per input channel and kernel row,
// and the sum over kernel rows happens before the way back, so that a product runs over 3 C inputs: long enough that
// writing it to memory and reading it again hardly shows. Strips of up to four tiles go down the map; transformed input rows
// wait in a ring for the kernel rows that still need them.
#pragma once
#include "conv2d_u8.h"

namespace hce::kernels {

// B^T d + offset of T tiles of one row and unit, modulo 256: six lines `step` bytes apart for each tile.
template <class S, int T>
inline void WinogradU8Row(const uint8_t* x, int64_t pixel, int qmax, uint8_t* v, int64_t step) {
  using I = typename S::I;
  const auto codes = [qmax](int n) { return S::SetI(0x01010101 * n * qmax); };  // n * qmax <= 255 in every byte
  const I q2 = codes(2), q3 = codes(3), q5 = codes(5);
  // 4 d without a shift of bytes: d <= 63, so no bit leaves its byte. Bytes of channels that a layer has not may hold more, but
  // they lie above its channels in a lane.
  const auto times4 = [](I d) { return S::template ShiftLeft<2>(d); };
  const I d0 = S::LoadI(x);
  I d1 = S::LoadI(x + pixel), d0x4 = times4(d0), d1x4 = times4(d1);
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t, v += kLineBytes) {
    const uint8_t* p = x + (4 * t + 2) * pixel;
    const I d2 = S::LoadI(p), d3 = S::LoadI(p + pixel), d4 = S::LoadI(p + 2 * pixel), d5 = S::LoadI(p + 3 * pixel);
    const I d2x4 = times4(d2), d3x4 = times4(d3);
    const I even = S::AddBytes(S::SubBytes(d4, d2x4), q5), odd = S::SubBytes(d3, d1x4);
    const I outer = S::AddBytes(S::SubBytes(d4, d2), q3), inner = S::SubBytes(d3, d1);
    const I inner2 = S::AddBytes(inner, inner);
    S::StoreI(v, S::AddBytes(S::AddBytes(S::SubBytes(d0x4, d2x4), outer), q2));
    S::StoreI(v + step, S::AddBytes(S::AddBytes(even, odd), q3));
    S::StoreI(v + 2 * step, S::SubBytes(even, odd));
    S::StoreI(v + 3 * step, S::AddBytes(outer, inner2));
    S::StoreI(v + 4 * step, S::SubBytes(outer, inner2));
    S::StoreI(v + 5 * step, S::AddBytes(S::AddBytes(S::SubBytes(d1x4, d3x4), S::SubBytes(d5, d3)), q5));
    d1 = d5;
    d0x4 = times4(d4);
    d1x4 = times4(d5);
  }
}

// Products of one frequency: R rows of T tiles x 4 output channels, into m [R * T][4][16]. rows: the R + 2 transformed input
// rows at this frequency.
template <class S, int R, int T>
inline void WinogradU8Products(const uint8_t* const (&rows)[R + 2], const int8_t* u, int units, int pair_sums, int32_t* m) {
  using I = typename S::I;
  I acc[R * T][4], sums[R * T][4];
#pragma GCC unroll 4
  for (int t = 0; t < R * T; ++t)
#pragma GCC unroll 4
    for (int o = 0; o < 4; ++o) acc[t][o] = S::ZeroI(), sums[t][o] = S::ZeroI();
  int room = pair_sums;
#pragma GCC unroll 3
  for (int kh = 0; kh < 3; ++kh) {
    for (int64_t n = 0; n < int64_t{units} * T * kLineBytes; n += T * kLineBytes, u += 16) {
      I in[R * T];
#pragma GCC unroll 4
      for (int t = 0; t < R * T; ++t) in[t] = S::LoadI(rows[t / T + kh] + n + t % T * kLineBytes);
#pragma GCC unroll 4
      for (int o = 0; o < 4; ++o) {
        const auto weight = S::Broadcast4(u + 4 * o);
#pragma GCC unroll 4
        for (int t = 0; t < R * T; ++t) {
          if constexpr (S::kPairSums)
            sums[t][o] = S::AddPairs(sums[t][o], in[t], weight);
          else
            acc[t][o] = S::template Dot4<true>(acc[t][o], in[t], weight);
        }
      }
      if constexpr (S::kPairSums) {
        if (--room > 0) continue;
        room = pair_sums;
#pragma GCC unroll 4
        for (int t = 0; t < R * T; ++t)
#pragma GCC unroll 4
          for (int o = 0; o < 4; ++o) acc[t][o] = S::template Widen<1>(acc[t][o], sums[t][o]), sums[t][o] = S::ZeroI();
      }
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < 4; ++o)
#pragma GCC unroll 4
    for (int t = 0; t < R * T; ++t) {
      if constexpr (S::kPairSums) acc[t][o] = S::template Widen<1>(acc[t][o], sums[t][o]);
      S::StoreI(m + (t * 4 + o) * kTile, acc[t][o]);
    }
}

// The way back of one tile and 4 channels: 24, 12, 6 and 6 times the accumulators of its four pixels, then codes. A
// multiple of 3 * 2^k below 2^24, times the float nearest to its inverse, is rounded to the quotient: docs/NUMERICS.md.
template <class S, bool kUsual, bool kY, bool kY2, bool kResidual>
inline void WinogradU8Outputs(const WinogradU8Args& a, const int32_t* m, int64_t step, int channel, int i, int j, int lane) {
  using I = typename S::I;
  typename S::F sums[4][4];  // [pixel][channel]
#pragma GCC unroll 4
  for (int o = 0; o < 4; ++o, m += kTile) {
    const int32_t* constant = a.constants + 4 * channel + o;
    const I m1 = S::LoadI(m + step), m2 = S::LoadI(m + 2 * step), m3 = S::LoadI(m + 3 * step), m4 = S::LoadI(m + 4 * step);
    const I s1 = S::AddI(m1, m2), d1 = S::SubI(m1, m2), s2 = S::AddI(m3, m4), d2 = S::SubI(m3, m4);
    const I twice = S::SubI(S::LoadI(m), S::AddI(s1, s1)), last = S::AddI(d2, S::LoadI(m + 5 * step));
    const I y[4] = {S::AddI(S::AddI(twice, twice), s2), S::SubI(d2, S::AddI(d1, d1)), S::SubI(s2, s1),
                    S::SubI(S::AddI(last, last), d1)};
    const float inverse[4] = {1.0f / 24, 1.0f / 12, 1.0f / 6, 1.0f / 6};
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q)
      sums[q][o] = S::Mul(S::ToFloat(S::AddI(y[q], S::SetI(constant[4 * q]))), S::Set(inverse[q]));
  }
  const int pixels = a.conv.geometry.out_w - j < 4 ? a.conv.geometry.out_w - j : 4;
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q)
    if (q < pixels)
      StoreSums<S, kUsual, kY, kY2, kResidual>(a.conv, [&](int o) { return sums[q][o]; }, channel, i, j + q, lane);
}

// R output rows of T tiles, the first pixel at (i, j), all channels. v: ring of kRing transformed input rows, each
// [6][units][T] lines, row r in place r % kRing.
template <class S, int R, int T, int kRing, bool kUsual, bool kY, bool kY2, bool kResidual>
inline void WinogradU8Tiles(const WinogradU8Args& a, const uint8_t* v, int32_t* m, int i, int j, int lane) {
  const int64_t step = int64_t{a.units} * T * kLineBytes, m_step = R * T * 4 * kTile;
  const int8_t* u = a.conv.weight;
  for (int channel = 0; channel < a.out_channels; channel += 4) {
    for (int f = 0; f < kFrequencies; ++f, u += 16 * a.entries) {
      const uint8_t* rows[R + 2];
      for (int r = 0; r < R + 2; ++r) rows[r] = v + ((i + r) % kRing * kFrequencies + f) * step + lane * 4;
      WinogradU8Products<S, R, T>(rows, u, a.units, a.pair_sums[f], m + f * m_step + lane);
    }
    for (int t = 0; t < R * T; ++t)
      WinogradU8Outputs<S, kUsual, kY, kY2, kResidual>(a, m + t * 4 * kTile + lane, m_step, channel, i + t / T,
                                                      j + 4 * (t % T), lane);
  }
}

// A strip of T tiles from column j, down the whole map, R rows at a time.
template <class S, int R, int T, bool kUsual, bool kY, bool kY2, bool kResidual>
void WinogradU8Strip(const WinogradU8Args& a, int j, int lane) {
  constexpr int kRing = R + 2;
  const int64_t row_lines = int64_t{kFrequencies} * a.units * T;
  uint8_t* v = a.scratch;
  int32_t* m = reinterpret_cast<int32_t*>(v + kRing * row_lines * kLineBytes);
  const int out_h = a.conv.geometry.out_h;
  for (int i = 0, ready = 0; i < out_h; i += R) {
    const bool whole = i + R <= out_h;
    for (; ready < i + (whole ? R : 1) + 2; ++ready)
      for (int n = 0; n < a.units; ++n)
        WinogradU8Row<S, T>(a.conv.x.data + ready * a.conv.x.row + j * a.conv.x.pixel + n * kLineBytes + lane * 4,
                            a.conv.x.pixel, a.qmax,
                            v + (ready % kRing * row_lines + int64_t{n} * T) * kLineBytes + lane * 4,
                            int64_t{a.units} * T * kLineBytes);
    if (whole)
      WinogradU8Tiles<S, R, T, kRing, kUsual, kY, kY2, kResidual>(a, v, m, i, j, lane);
    else
      WinogradU8Tiles<S, 1, T, kRing, kUsual, kY, kY2, kResidual>(a, v, m, i, j, lane);
  }
}

template <class S, bool kUsual, bool kY, bool kY2, bool kResidual>
void WinogradU8Map(const WinogradU8Args& args) {
  const WinogradU8Args a = args;  // a copy that byte stores cannot alias
  constexpr int kWidth = S::kTilesU8;  // tiles that accumulate at once
  static_assert(kWidth == 2 || kWidth == kWinogradU8Tiles);
  const int tiles = (a.conv.geometry.out_w + 3) / 4, segments = (tiles + kWidth - 1) / kWidth;
  for (int lane = 0; lane < kTile; lane += S::kLanes)
    for (int s = 0; s < segments; ++s) {
      const int first = SegmentStart(s, tiles, segments), j = 4 * first;
      switch (SegmentStart(s + 1, tiles, segments) - first) {
        case 1: WinogradU8Strip<S, 2, 1, kUsual, kY, kY2, kResidual>(a, j, lane); break;
        case 2: WinogradU8Strip<S, kWidth / 2, 2, kUsual, kY, kY2, kResidual>(a, j, lane); break;
        case 3: WinogradU8Strip<S, 1, kWidth < 3 ? 2 : 3, kUsual, kY, kY2, kResidual>(a, j, lane); break;
        default: WinogradU8Strip<S, 1, kWidth < 4 ? 2 : 4, kUsual, kY, kY2, kResidual>(a, j, lane); break;
      }
    }
}

template <class S>
void WinogradU8(const WinogradU8Args& a) {
  const bool y = a.conv.y.data, y2 = a.conv.y2.data, residual = a.conv.residual.data;
  if (!IsUsual<S>(a.conv)) return WinogradU8Map<S, false, false, false, false>(a);
  if (residual) return y2 ? WinogradU8Map<S, true, true, true, true>(a) : WinogradU8Map<S, true, true, false, true>(a);
  if (!y) return WinogradU8Map<S, true, false, true, false>(a);
  return y2 ? WinogradU8Map<S, true, true, true, false>(a) : WinogradU8Map<S, true, true, false, false>(a);
}

// G g of one block of 4 output channels: w [entries / 4][3 columns][64] -> u [6][entries][16], signed bytes.
template <class S>
void WinogradU8Weights(const int8_t* w, int8_t* u, int64_t entries) {
  using I = typename S::I;
  const int64_t step = 16 * entries;
  for (int64_t n = 0; n < step; n += kLineBytes, w += 3 * kLineBytes, u += kLineBytes)
    for (int lane = 0; lane < kTile; lane += S::kLanes) {
      const int8_t* from = w + 4 * lane;
      int8_t* to = u + 4 * lane;
      const I w0 = S::LoadI(from), w1 = S::LoadI(from + kLineBytes), w2 = S::LoadI(from + 2 * kLineBytes);
      const auto twice = [](I v) { return S::AddBytes(v, v); };
      const I ends = S::AddBytes(w0, w2), w1x2 = twice(w1), w2x2 = twice(w2), far = S::AddBytes(w0, twice(w2x2));
      S::StoreI(to, S::AddBytes(twice(w0), w0));
      S::StoreI(to + step, S::AddBytes(ends, w1));
      S::StoreI(to + 2 * step, S::SubBytes(ends, w1));
      S::StoreI(to + 3 * step, S::AddBytes(far, w1x2));
      S::StoreI(to + 4 * step, S::SubBytes(far, w1x2));
      S::StoreI(to + 5 * step, S::AddBytes(w2x2, w2));
    }
}

}  // namespace hce::kernels
