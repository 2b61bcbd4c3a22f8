// Winograd F(4x4, 3x3) on 16 images in lanes (Lavin and Gray, arXiv 1509.09308); contract in lanes.h (WinogradArgs).
//
// With images in lanes a transform is plain vector arithmetic, no shuffles. 36 multiplies replace 144 per 4x4 outputs
// of one channel pair; the transforms cost 144 operations per input channel and 100 per output channel, so the gain
// grows with the widths. kWinogradTiles horizontally adjacent tiles share each broadcast weight.
#pragma once
#include "../lanes.h"

namespace hce::kernels {

// B^T d, one dimension: 6 inputs -> 6.
template <class S>
inline void WinogradInput(const typename S::F (&d)[6], typename S::F (&v)[6]) {
  using F = typename S::F;
  const F c2 = S::Set(2.0f), c4 = S::Set(4.0f), c5 = S::Set(5.0f);
  const F t0 = S::FmaNeg(c4, d[2], d[4]), t1 = S::FmaNeg(c4, d[1], d[3]);
  const F t2 = S::Sub(d[4], d[2]), t3 = S::Sub(d[3], d[1]);
  v[0] = S::Fma(c4, d[0], S::FmaNeg(c5, d[2], d[4]));
  v[1] = S::Add(t0, t1);
  v[2] = S::Sub(t0, t1);
  v[3] = S::Fma(c2, t3, t2);
  v[4] = S::FmaNeg(c2, t3, t2);
  v[5] = S::Fma(c4, d[1], S::FmaNeg(c5, d[3], d[5]));
}

// A^T m, one dimension: 6 products -> 4 outputs.
template <class S>
inline void WinogradOutput(const typename S::F (&m)[6], typename S::F (&y)[4]) {
  using F = typename S::F;
  const F s1 = S::Add(m[1], m[2]), d1 = S::Sub(m[1], m[2]);
  const F s2 = S::Add(m[3], m[4]), d2 = S::Sub(m[3], m[4]);
  y[0] = S::Add(m[0], S::Add(s1, s2));
  y[1] = S::Fma(S::Set(2.0f), d2, d1);
  y[2] = S::Fma(S::Set(4.0f), s2, s1);
  y[3] = S::Add(m[5], S::Fma(S::Set(8.0f), d2, d1));
}

template <class S, int T, int O>
inline void WinogradMultiply(const float* v, const float* u, float* m, int channels, int64_t m_tile, int lane) {
  using F = typename S::F;
  F acc[T][O];
  for (int t = 0; t < T; ++t)
    for (int o = 0; o < O; ++o) acc[t][o] = S::Set(0.0f);
  for (int c = 0; c < channels; ++c, u += O) {
    F in[T];
    for (int t = 0; t < T; ++t) in[t] = S::Load(v + (c * T + t) * kTile + lane);
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      const F weight = S::Set(u[o]);
      for (int t = 0; t < T; ++t) acc[t][o] = S::Fma(in[t], weight, acc[t][o]);
    }
  }
  for (int t = 0; t < T; ++t)
    for (int o = 0; o < O; ++o) S::Store(m + t * m_tile + int64_t{o} * 36 * kTile + lane, acc[t][o]);
}

// T tiles whose first output pixel is (i, j).
template <class S, int T>
inline void WinogradTiles(const WinogradArgs& a, int i, int j, int lane) {
  using F = typename S::F;
  const int c_count = a.channels, o_count = a.out_channels;
  float* v = a.scratch;                                           // [36][C][T][16]
  float* m = a.scratch + int64_t{36} * c_count * T * kTile;        // [T][OC][36][16]
  const int64_t m_tile = int64_t{o_count} * 36 * kTile;
  for (int c = 0; c < c_count; ++c)
    for (int t = 0; t < T; ++t) {
      const uint8_t* x = a.conv.x.data + i * a.conv.x.row + (j + 4 * t) * a.conv.x.pixel + c * kLineBytes + lane * 4;
      F columns[6][6];
      for (int q = 0; q < 6; ++q) {
        F d[6], r[6];
        for (int p = 0; p < 6; ++p) d[p] = S::Load(reinterpret_cast<const float*>(x + p * a.conv.x.row + q * a.conv.x.pixel));
        WinogradInput<S>(d, r);
        for (int p = 0; p < 6; ++p) columns[p][q] = r[p];
      }
      for (int p = 0; p < 6; ++p) {
        F r[6];
        WinogradInput<S>(columns[p], r);
        for (int q = 0; q < 6; ++q) S::Store(v + (((p * 6 + q) * int64_t{c_count} + c) * T + t) * kTile + lane, r[q]);
      }
    }
  for (int f = 0; f < 36; ++f) {
    const float* vf = v + f * int64_t{c_count} * T * kTile;
    const float* uf = a.conv.weight + f * int64_t{c_count} * o_count;
    for (int n = 0; n < a.conv.geometry.block_count; ++n) {
      const ConvBlock& b = a.conv.geometry.blocks[n];
      const float* u = uf + int64_t{b.channel} * c_count;
      float* mf = m + (int64_t{b.channel} * 36 + f) * kTile;
      switch (b.count) {
        case 1: WinogradMultiply<S, T, 1>(vf, u, mf, c_count, m_tile, lane); break;
        case 2: WinogradMultiply<S, T, 2>(vf, u, mf, c_count, m_tile, lane); break;
        case 3: WinogradMultiply<S, T, 3>(vf, u, mf, c_count, m_tile, lane); break;
        case 4: WinogradMultiply<S, T, 4>(vf, u, mf, c_count, m_tile, lane); break;
        case 5: WinogradMultiply<S, T, 5>(vf, u, mf, c_count, m_tile, lane); break;
        case 6: WinogradMultiply<S, T, 6>(vf, u, mf, c_count, m_tile, lane); break;
        case 7: WinogradMultiply<S, T, 7>(vf, u, mf, c_count, m_tile, lane); break;
        default: WinogradMultiply<S, T, 8>(vf, u, mf, c_count, m_tile, lane); break;
      }
    }
  }
  const F low = S::Set(a.conv.low), high = S::Set(a.conv.high);
  for (int t = 0; t < T; ++t)
    for (int o = 0; o < o_count; ++o) {
      const float* mo = m + t * m_tile + int64_t{o} * 36 * kTile + lane;
      F rows[4][6];
      for (int q = 0; q < 6; ++q) {
        F d[6], r[4];
        for (int p = 0; p < 6; ++p) d[p] = S::Load(mo + (p * 6 + q) * kTile);
        WinogradOutput<S>(d, r);
        for (int p = 0; p < 4; ++p) rows[p][q] = r[p];
      }
      const F bias = S::Set(a.conv.bias[o]);
      const int64_t line = o * kLineBytes + lane * 4;
      for (int p = 0; p < 4 && i + p < a.conv.geometry.out_h; ++p) {
        F r[4];
        WinogradOutput<S>(rows[p], r);
        for (int q = 0; q < 4; ++q) {
          const int column = j + 4 * t + q;
          if (column >= a.conv.geometry.out_w) break;
          F y = S::Add(r[q], bias);
          if (a.conv.residual.data)
            y = S::Add(y, S::Load(reinterpret_cast<const float*>(a.conv.residual.data + (i + p) * a.conv.residual.row +
                                                                 column * a.conv.residual.pixel + line)));
          S::Store(reinterpret_cast<float*>(a.conv.y.data + (i + p) * a.conv.y.row + column * a.conv.y.pixel + line),
                   S::Clamp(y, low, high));
        }
      }
    }
}

template <class S>
void WinogradF32(const WinogradArgs& a) {
  for (int lane = 0; lane < kTile; lane += S::kLanes)
    for (int i = 0; i < a.conv.geometry.out_h; i += 4) {
      int j = 0;
      for (; j + 4 < a.conv.geometry.out_w; j += 4 * kWinogradTiles) WinogradTiles<S, kWinogradTiles>(a, i, j, lane);
      for (; j < a.conv.geometry.out_w; j += 4) WinogradTiles<S, 1>(a, i, j, lane);
    }
}

}  // namespace hce::kernels
