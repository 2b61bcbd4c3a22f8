// Direct convolution of codes on AMX tiles; contract in lanes.h (ConvU8AmxArgs). Same bits as ConvU8.
//
// The images-in-lanes layout already is what TDPBSUD wants as its second operand: a tile of K rows x 64 bytes, each row
// one line of 4 channels x 16 images, read from consecutive lines. The first operand holds output channels as rows. Taps
// that are neighbours in a kernel row are neighbours in memory, so a 3x3 tap row of 16 channels is one run of 12 lines.
//
//   C[m][n] += sum_k A[m][4 k + b] * B[k][4 n + b],  m output channel, n image, k line, b channel in line
//
// A result tile goes through memory (there is no other way out of a tile register); the epilogue of a block runs after
// the tile instructions of the next one were issued, so that the two units overlap.
#pragma once
#include "conv2d_u8.h"

namespace hce::kernels {

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};
};

// GCC 12 describes LDTILECFG as reading eight bytes, and drops stores to the rest of the configuration without a barrier.
template <class S>
inline void LoadConfig(const TileConfig& config) {
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Result tiles 0..3. One channel tile: 4 pixels, weights in 4, inputs in 5..7. Two: 2 pixels, weights in 4 and 5,
// inputs in 6 and 7.
template <class S>
inline void ConfigureTiles(int channels, int rows) {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.colsb[t] = 64;
    config.rows[t] = static_cast<uint8_t>(t < 4 ? channels : rows);
  }
  // Tiles 4 and 5 hold weights in both schemes; 5 is an input tile where one channel tile leaves it free.
  config.colsb[4] = static_cast<uint16_t>(4 * rows);
  config.rows[4] = static_cast<uint8_t>(channels);
  LoadConfig<S>(config);
}

template <class S>
inline void ConfigureTilePairs(int channels, int rows) {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.colsb[t] = static_cast<uint16_t>(t == 4 || t == 5 ? 4 * rows : 64);
    config.rows[t] = static_cast<uint8_t>(t < 6 ? channels : rows);
  }
  LoadConfig<S>(config);
}

// Sums of P pixels x 1 channel tile, into out[p][channel][16].
template <class S, int P>
inline void AmxOneByP(const ConvU8AmxArgs& a, const uint8_t* x, int tile, int32_t* out) {
  const ConvGeometry& g = a.conv.geometry;
  const int64_t step = g.stride_w * a.conv.x.pixel;
  const int32_t* bias = a.bias_lines + int64_t{tile} * a.channels_per_tile * kTile;
  const int a_bytes = a.channels_per_tile * a.rows * 4;
  const int8_t* w = a.conv.weight + int64_t{tile} * a.runs * a.tiles_per_run * a_bytes;
  _tile_loadd(0, bias, 64);
  if constexpr (P > 1) _tile_loadd(1, bias, 64);
  if constexpr (P > 2) _tile_loadd(2, bias, 64);
  if constexpr (P > 3) _tile_loadd(3, bias, 64);
  for (int run = 0; run < a.runs; ++run) {
    const uint8_t* in = x + a.run_offsets[run];
    for (int k = 0; k < a.tiles_per_run; ++k, in += a.rows * kLineBytes, w += a_bytes) {
      _tile_loadd(4, w, a.rows * 4);
      _tile_loadd(5, in, 64);
      _tile_dpbsud(0, 4, 5);
      if constexpr (P > 1) {
        _tile_loadd(6, in + step, 64);
        _tile_dpbsud(1, 4, 6);
      }
      if constexpr (P > 2) {
        _tile_loadd(7, in + 2 * step, 64);
        _tile_dpbsud(2, 4, 7);
      }
      if constexpr (P > 3) {
        _tile_loadd(5, in + 3 * step, 64);
        _tile_dpbsud(3, 4, 5);
      }
    }
  }
  const int64_t pixel = int64_t{a.channels_per_tile} * kTile;
  _tile_stored(0, out, 64);
  if constexpr (P > 1) _tile_stored(1, out + pixel, 64);
  if constexpr (P > 2) _tile_stored(2, out + 2 * pixel, 64);
  if constexpr (P > 3) _tile_stored(3, out + 3 * pixel, 64);
}

// Sums of P <= 2 pixels x 2 adjacent channel tiles, into out[p][channel][16].
template <class S, int P>
inline void AmxTwoByP(const ConvU8AmxArgs& a, const uint8_t* x, int tile, int32_t* out) {
  const ConvGeometry& g = a.conv.geometry;
  const int64_t step = g.stride_w * a.conv.x.pixel;
  const int64_t channels = int64_t{a.channels_per_tile} * kTile;
  const int32_t* bias = a.bias_lines + tile * channels;
  const int a_bytes = a.channels_per_tile * a.rows * 4;
  const int64_t next = int64_t{a.runs} * a.tiles_per_run * a_bytes;
  const int8_t* w = a.conv.weight + tile * next;
  _tile_loadd(0, bias, 64);
  _tile_loadd(1, bias + channels, 64);
  if constexpr (P > 1) _tile_loadd(2, bias, 64);
  if constexpr (P > 1) _tile_loadd(3, bias + channels, 64);
  for (int run = 0; run < a.runs; ++run) {
    const uint8_t* in = x + a.run_offsets[run];
    for (int k = 0; k < a.tiles_per_run; ++k, in += a.rows * kLineBytes, w += a_bytes) {
      _tile_loadd(6, in, 64);
      _tile_loadd(4, w, a.rows * 4);
      _tile_dpbsud(0, 4, 6);
      _tile_loadd(5, w + next, a.rows * 4);
      _tile_dpbsud(1, 5, 6);
      if constexpr (P > 1) {
        _tile_loadd(7, in + step, 64);
        _tile_dpbsud(2, 4, 7);
        _tile_dpbsud(3, 5, 7);
      }
    }
  }
  _tile_stored(0, out, 64);
  _tile_stored(1, out + channels, 64);
  if constexpr (P > 1) _tile_stored(2, out + 2 * channels, 64);
  if constexpr (P > 1) _tile_stored(3, out + 3 * channels, 64);
}

// A block whose sums lie in memory and whose epilogue is still to come.
struct AmxBlock {
  int i, j, pixels, channel, channels;
  const int32_t* sums;
};

template <class S, bool kUsual, bool kY, bool kY2, bool kResidual>
inline void AmxEpilogue(const ConvU8Args& conv, int channels_stored, const AmxBlock& b) {
  const int channels = b.channel + b.channels > channels_stored ? channels_stored - b.channel : b.channels;
  for (int p = 0; p < b.pixels; ++p) {
    const int32_t* sums = b.sums + int64_t{p} * b.channels * kTile;
    for (int c = 0; c < channels; c += 4, sums += 4 * kTile) {
      const typename S::I acc[4] = {S::LoadI(sums), S::LoadI(sums + kTile), S::LoadI(sums + 2 * kTile),
                                    S::LoadI(sums + 3 * kTile)};
      StoreCodes<S, kUsual, kY, kY2, kResidual>(conv, acc, b.channel + c, b.i, b.j + p, 0);
    }
  }
}

template <class S, bool kUsual, bool kY, bool kY2, bool kResidual>
void ConvU8AmxBlocks(const ConvU8AmxArgs& args) {
  // A copy that no store can alias: byte stores would otherwise make the compiler read every field again.
  const ConvU8AmxArgs a = args;
  const ConvGeometry& g = a.conv.geometry;
  const bool pairs = a.channel_tiles % 2 == 0;
  const int width = pairs ? 2 : 4, tiles = pairs ? 2 : 1;
  if (pairs)
    ConfigureTilePairs<S>(a.channels_per_tile, a.rows);
  else
    ConfigureTiles<S>(a.channels_per_tile, a.rows);
  int32_t* buffers[2] = {a.sums, a.sums + 4 * kTile * kTile};
  AmxBlock waiting{};
  int turn = 0;
  const int segments = (g.out_w + width - 1) / width;
  for (int i = 0; i < g.out_h; ++i)
    for (int s = 0; s < segments; ++s) {
      const int j = SegmentStart(s, g.out_w, segments), pixels = SegmentStart(s + 1, g.out_w, segments) - j;
      const uint8_t* x = a.conv.x.data + int64_t{i} * g.stride_h * a.conv.x.row + int64_t{j} * g.stride_w * a.conv.x.pixel;
      for (int tile = 0; tile < a.channel_tiles; tile += tiles) {
        int32_t* out = buffers[turn ^= 1];
        if (pairs) {
          if (pixels == 1) AmxTwoByP<S, 1>(a, x, tile, out);
          else AmxTwoByP<S, 2>(a, x, tile, out);
        } else {
          switch (pixels) {
            case 1: AmxOneByP<S, 1>(a, x, tile, out); break;
            case 2: AmxOneByP<S, 2>(a, x, tile, out); break;
            case 3: AmxOneByP<S, 3>(a, x, tile, out); break;
            default: AmxOneByP<S, 4>(a, x, tile, out); break;
          }
        }
        if (waiting.pixels) AmxEpilogue<S, kUsual, kY, kY2, kResidual>(a.conv, a.conv_channels, waiting);
        waiting = {i, j, pixels, tile * a.channels_per_tile, tiles * a.channels_per_tile, out};
      }
    }
  AmxEpilogue<S, kUsual, kY, kY2, kResidual>(a.conv, a.conv_channels, waiting);
  _tile_release();
}

template <class S>
void ConvU8Amx(const ConvU8AmxArgs& a) {
  const bool y = a.conv.y.data, y2 = a.conv.y2.data, residual = a.conv.residual.data;
  if (!IsUsual<S>(a.conv)) return ConvU8AmxBlocks<S, false, false, false, false>(a);
  if (residual) return y2 ? ConvU8AmxBlocks<S, true, true, true, true>(a) : ConvU8AmxBlocks<S, true, true, false, true>(a);
  if (!y) return ConvU8AmxBlocks<S, true, false, true, false>(a);
  return y2 ? ConvU8AmxBlocks<S, true, true, true, false>(a) : ConvU8AmxBlocks<S, true, true, false, false>(a);
}

}  // namespace hce::kernels
