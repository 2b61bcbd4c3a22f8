// Winograd F(4x4, 3x3) on 16 images in lanes (Lavin and Gray, arXiv 1509.09308); contract in lanes.h (WinogradArgs).
//
// With images in lanes a transform is plain vector arithmetic, no shuffles. 36 multiplies replace 144 per 4x4 outputs
// of one channel pair. The products run at the peak of the multipliers whatever cache their operands come from, so
// what is left is the transforms, and there the lines that they move between the caches more than their arithmetic:
//   - two tiles go through all stages together, so that a weight is loaded for two products and adjacent tiles share
//     the vertical transforms of two columns;
//   - transformed inputs V lie in the second-level cache in chunks of 8 channels and are read once per block of
//     output channels; the products M of one block stay in the first level. With a single block each chunk is
//     multiplied while it is there too;
//   - a frequency starts an odd number of lines after the one before it: the stores of a transform, one per
//     frequency, would otherwise fall into a few sets of the cache.
// An output is computed by the same operations in the same order wherever its tile lies and whatever shares the pass.
#pragma once
#include "../lanes.h"

namespace hce::kernels {

// Floats from one frequency to the next in V and in M, for T tiles.
template <class S, int T>
constexpr int WinogradInputStep() {
  return (kWinogradChunk * T | 1) * S::kLanes;
}
template <class S, int T>
constexpr int WinogradProductStep() {
  return (S::kChannelsWinograd * T | 1) * S::kLanes;
}

// Rows 0 and 5, 1 and 2 or 3 and 4 of B^T d for pair 0, 1 or 2, which share their sums; d(k) is input k.
constexpr int kWinogradRows[3][2] = {{0, 5}, {1, 2}, {3, 4}};
template <class S, int kPair, class Input>
[[gnu::always_inline]] inline void WinogradInput(Input d, typename S::F& low, typename S::F& high) {
  const auto c2 = S::Set(2.0f), c4 = S::Set(4.0f), c5 = S::Set(5.0f);
  if constexpr (kPair == 0) {
    low = S::Fma(c4, d(0), S::FmaNeg(c5, d(2), d(4)));
    high = S::Fma(c4, d(1), S::FmaNeg(c5, d(3), d(5)));
  } else if constexpr (kPair == 1) {
    const auto even = S::FmaNeg(c4, d(2), d(4)), odd = S::FmaNeg(c4, d(1), d(3));
    low = S::Add(even, odd);
    high = S::Sub(even, odd);
  } else {
    const auto even = S::Sub(d(4), d(2)), odd = S::Sub(d(3), d(1));
    low = S::Fma(c2, odd, even);
    high = S::FmaNeg(c2, odd, even);
  }
}

// A^T m, one dimension: 6 products -> 4 outputs; m(k) is product k.
template <class S, class Product>
[[gnu::always_inline]] inline void WinogradOutput(Product m, typename S::F& y0, typename S::F& y1, typename S::F& y2,
                                                  typename S::F& y3) {
  const auto m1 = m(1), m2 = m(2), m3 = m(3), m4 = m(4);
  const auto s1 = S::Add(m1, m2), d1 = S::Sub(m1, m2), s2 = S::Add(m3, m4), d2 = S::Sub(m3, m4);
  y0 = S::Add(m(0), S::Add(s1, s2));
  y1 = S::Fma(S::Set(2.0f), d2, d1);
  y2 = S::Fma(S::Set(4.0f), s2, s1);
  y3 = S::Add(m(5), S::Fma(S::Set(8.0f), d2, d1));
}

// Two rows of B^T d B of kTiles adjacent tiles: their vertical transforms in 6 columns, two of which the next tile
// takes over, then each row horizontally. All six rows at once would need 36 registers.
template <class S, int kPair, int kTiles, int kStep>
[[gnu::always_inline]] inline void WinogradInputRows(const uint8_t* x, int64_t row, int64_t pixel, float* v) {
  typename S::F d[2][6];
#pragma GCC unroll 2
  for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 6
    for (int q = 0; q < 6; ++q) {
      if (t > 0 && q < 2) {
        d[0][q] = d[0][q + 4];
        d[1][q] = d[1][q + 4];
      } else {
        const uint8_t* p = x + (4 * t + q) * pixel;
        const auto input = [&](int k) { return S::Load(reinterpret_cast<const float*>(p + k * row)); };
        WinogradInput<S, kPair>(input, d[0][q], d[1][q]);
      }
    }
#pragma GCC unroll 2
    for (int side = 0; side < 2; ++side) {
      typename S::F r[6];
      const auto input = [&](int k) { return d[side][k]; };
      WinogradInput<S, 0>(input, r[0], r[5]);
      WinogradInput<S, 1>(input, r[1], r[2]);
      WinogradInput<S, 2>(input, r[3], r[4]);
#pragma GCC unroll 6
      for (int q = 0; q < 6; ++q) S::Store(v + (kWinogradRows[kPair][side] * 6 + q) * kStep + t * S::kLanes, r[q]);
    }
  }
}

// B^T d B of kTiles adjacent tiles for one channel. This one and WinogradOutputTile are functions of their own, and
// frequencies a constant apart, so that the compiler keeps their pointers in registers.
template <class S, int kTiles, int kStep>
[[gnu::noinline]] void WinogradInputTiles(const uint8_t* x, int64_t row, int64_t pixel, float* v) {
  WinogradInputRows<S, 1, kTiles, kStep>(x, row, pixel, v);
  WinogradInputRows<S, 2, kTiles, kStep>(x, row, pixel, v);
  WinogradInputRows<S, 0, kTiles, kStep>(x, row, pixel, v);
}

// What the products of one block are made of: v [chunk][36][channel of the chunk][T], u [36][C][O], m [36][O][T],
// steps between frequencies. m is added to unless `first`.
struct WinogradOperands {
  const float* v;
  const float* u;
  int64_t u_step;
  float* m;
  int channels, chunk;  // of V here; channels per chunk
  bool first;
};

// m[f][o][t] (+)= sum over channels of v[f][c][t] * u[f][c][o], in the order of the channels.
template <class S, int T, int O>
void WinogradMultiply(WinogradOperands a) {
  using F = typename S::F;
  constexpr int kStep = WinogradInputStep<S, T>();
  for (int f = 0; f < 36; ++f, a.v += kStep, a.u += a.u_step, a.m += WinogradProductStep<S, T>()) {
    F acc[O * T];  // unrolled everywhere, or the compiler keeps it in memory
#pragma GCC unroll 16
    for (int k = 0; k < O * T; ++k) acc[k] = a.first ? S::Set(0.0f) : S::Load(a.m + k * S::kLanes);
    const float *u = a.u, *chunk = a.v;
    for (int c = 0; c < a.channels; c += a.chunk, chunk += 36 * kStep) {
      const float *v = chunk, *end = v + (a.channels - c < a.chunk ? a.channels - c : a.chunk) * T * S::kLanes;
      for (; v < end; v += T * S::kLanes, u += O) {
        F in[T];
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) in[t] = S::Load(v + t * S::kLanes);
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) {
          const F weight = S::Set(u[o]);
#pragma GCC unroll 2
          for (int t = 0; t < T; ++t) acc[o * T + t] = S::Fma(in[t], weight, acc[o * T + t]);
        }
      }
    }
#pragma GCC unroll 16
    for (int k = 0; k < O * T; ++k) S::Store(a.m + k * S::kLanes, acc[k]);
  }
}

template <class S, int T>
void WinogradMultiplyBlock(int count, const WinogradOperands& a) {
  constexpr int kMax = S::kChannelsWinograd;
  switch (count) {
    case 1: WinogradMultiply<S, T, 1>(a); break;
    case 2: WinogradMultiply<S, T, 2>(a); break;
    case 3: WinogradMultiply<S, T, 3>(a); break;
    case 4: WinogradMultiply<S, T, 4>(a); break;
    case 5: WinogradMultiply<S, T, kMax < 5 ? 1 : 5>(a); break;
    case 6: WinogradMultiply<S, T, kMax < 6 ? 1 : 6>(a); break;
    case 7: WinogradMultiply<S, T, kMax < 7 ? 1 : 7>(a); break;
    default: WinogradMultiply<S, T, kMax < 8 ? 1 : 8>(a); break;
  }
}

// A^T M A, bias, residual and clamp of one tile and channel; rows and columns: how much of the tile lies inside the
// map, which is all of it if kWhole.
template <class S, int kStep, bool kWhole>
[[gnu::noinline]] void WinogradOutputTile(const float* m, float bias, float low, float high, ConstView residual, View y,
                                          int rows, int columns) {
  using F = typename S::F;
  F r[4][6];
#pragma GCC unroll 6
  for (int q = 0; q < 6; ++q)
    WinogradOutput<S>([&](int k) { return S::Load(m + (k * 6 + q) * kStep); }, r[0][q], r[1][q], r[2][q], r[3][q]);
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
    if (!kWhole && p >= rows) break;
    F out[4];
    WinogradOutput<S>([&](int k) { return r[p][k]; }, out[0], out[1], out[2], out[3]);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      if (!kWhole && q >= columns) break;
      F v = S::Add(out[q], S::Set(bias));
      if (residual.data)
        v = S::Add(v, S::Load(reinterpret_cast<const float*>(residual.data + p * residual.row + q * residual.pixel)));
      S::Store(reinterpret_cast<float*>(y.data + p * y.row + q * y.pixel), S::Clamp(v, S::Set(low), S::Set(high)));
    }
  }
}

// T tiles from tile n on, in row-major order over the map; a row has `columns` tiles.
template <class S, int T>
void WinogradTiles(const WinogradArgs& a, int n, int columns, int lane) {
  const ConvGeometry& g = a.conv.geometry;
  const ConstView& x = a.conv.x;
  constexpr int kStep = WinogradInputStep<S, T>(), kProductStep = WinogradProductStep<S, T>();
  const int chunks = (a.channels + kWinogradChunk - 1) / kWinogradChunk, chunk = (a.channels + chunks - 1) / chunks;
  const bool single = g.block_count == 1;
  float* m = a.scratch;
  float* v = m + 36 * kProductStep;
  int row[T], column[T];
  for (int t = 0; t < T; ++t) row[t] = (n + t) / columns * 4, column[t] = (n + t) % columns * 4;
  const bool adjacent = row[0] == row[T - 1];
  for (int c = 0; c < a.channels; c += chunk) {
    const int end = a.channels - c < chunk ? a.channels : c + chunk;
    float* to = single ? v : v + int64_t{36} * kStep * (c / chunk);
    for (int k = c; k < end; ++k, to += T * S::kLanes) {
      const uint8_t* from = x.data + k * kLineBytes + lane * 4;
      if (adjacent)
        WinogradInputTiles<S, T, kStep>(from + row[0] * x.row + column[0] * x.pixel, x.row, x.pixel, to);
      else
        for (int t = 0; t < T; ++t)
          WinogradInputTiles<S, 1, kStep>(from + row[t] * x.row + column[t] * x.pixel, x.row, x.pixel,
                                          to + t * S::kLanes);
    }
    if (single) {
      const int count = g.blocks[0].count;
      const float* u = a.conv.weight + g.blocks[0].weight + int64_t{c} * count;
      WinogradMultiplyBlock<S, T>(count, {v, u, int64_t{a.channels} * count, m, end - c, chunk, c == 0});
    }
  }
  for (int k = 0; k < g.block_count; ++k) {
    const ConvBlock& b = g.blocks[k];
    const int64_t u_step = int64_t{a.channels} * b.count;
    if (!single)
      WinogradMultiplyBlock<S, T>(b.count, {v, a.conv.weight + b.weight, u_step, m, a.channels, chunk, true});
    for (int t = 0; t < T; ++t) {
      const int rows = g.out_h - row[t], width = g.out_w - column[t];
      const bool whole = rows >= 4 && width >= 4;
      const auto transform =
          whole ? WinogradOutputTile<S, kProductStep, true> : WinogradOutputTile<S, kProductStep, false>;
      for (int o = 0; o < b.count; ++o) {
        const auto at = [&](const auto& view) {
          const int64_t line = (b.channel + o) * kLineBytes + lane * 4;
          return view.data ? view.data + row[t] * view.row + column[t] * view.pixel + line : nullptr;
        };
        const ConstView residual{at(a.conv.residual), a.conv.residual.row, a.conv.residual.pixel};
        const View y{at(a.conv.y), a.conv.y.row, a.conv.y.pixel};
        transform(m + (o * T + t) * S::kLanes, a.conv.bias[b.channel + o], a.conv.low, a.conv.high, residual, y, rows,
                  width);
      }
    }
  }
}

template <class S>
void WinogradF32(const WinogradArgs& a) {
  static_assert(S::kChannelsWinograd <= kWinogradChannels, "a block must fit the scratch of WinogradScratchLines");
  const int columns = (a.conv.geometry.out_w + 3) / 4, tiles = (a.conv.geometry.out_h + 3) / 4 * columns;
  int n = 0;
  for (; n + kWinogradTiles <= tiles; n += kWinogradTiles)
    for (int lane = 0; lane < kTile; lane += S::kLanes) WinogradTiles<S, kWinogradTiles>(a, n, columns, lane);
  for (; n < tiles; ++n)
    for (int lane = 0; lane < kTile; lane += S::kLanes) WinogradTiles<S, 1>(a, n, columns, lane);
}

}  // namespace hce::kernels
