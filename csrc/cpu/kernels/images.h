// Images into lanes and logits out of them; contracts in lines.h.
#pragma once
#include "../lines.h"

namespace hce::kernels {

// Channels [4 unit, 4 unit + 4) of one pixel as a word, the first channel lowest.
template <class S>
inline uint32_t PixelWord(const uint8_t* pixel, int channels, int unit) {
  uint32_t word = 0;
  const int left = channels - 4 * unit;
  __builtin_memcpy(&word, pixel + 4 * unit, left < 4 ? left : 4);
  return word;
}

// Three channels, the usual case: the copy has a constant length and becomes two loads.
template <class S>
inline uint32_t PixelWord3(const uint8_t* pixel) {
  uint32_t word = 0;
  __builtin_memcpy(&word, pixel, 3);
  return word;
}

// The block of an image that a lane holds: its first pixel, `pixel` bytes per pixel, and how much of it lies inside the image.
struct LaneBlock {
  const uint8_t* data;
  int rows, columns;
};

template <class S>
inline void LaneBlocks(const ImageTile& t, const LaneGrid& g, int64_t pixel, LaneBlock (&blocks)[kTile]) {
  for (int n = 0; n < kTile; ++n) {
    const int image = n / (g.rows * g.columns), i = n / g.columns % g.rows * g.h, j = n % g.columns * g.w;
    const int rows = t.h - i < g.h ? t.h - i : g.h, columns = t.w - j < g.w ? t.w - j : g.w;
    if (image < t.count && rows > 0 && columns > 0)
      blocks[n] = {t.data + image * t.image_bytes + (int64_t{i} * t.w + j) * pixel, rows, columns};
    else
      blocks[n] = {t.data, 0, 0};
  }
}

// All pixels of three bytes, sixteen at a time: store(i, j, word) gets pixel (i, j) of the 16 lanes, three channels and a
// zero byte per lane. Sixteen pixels of an image are one register, and a transpose makes them sixteen lanes of a pixel.
template <class S, class Store>
inline void ForPixels3(const ImageTile& t, const LaneGrid& g, const LaneBlock (&blocks)[kTile], const Store& store) {
  for (int i = 0; i < g.h; ++i)
    for (int j = 0; j < g.w; j += kTile) {
      typename S::I words[kTile];
      for (int n = 0; n < kTile; ++n) {
        const int left = i < blocks[n].rows ? blocks[n].columns - j : 0;
        words[n] = left > 0 ? S::LoadPixels3(blocks[n].data + (int64_t{i} * t.w + j) * 3, left < kTile ? left : kTile)
                            : S::ZeroI();
      }
      S::Transpose(words);
      const int count = g.w - j < kTile ? g.w - j : kTile;
      for (int p = 0; p < count; ++p) store(i, j + p, words[p]);
    }
}

template <class S>
void LoadCodes(const LoadCodesArgs& a) {
  const ImageTile& t = a.images;
  LaneBlock blocks[kTile];
  LaneBlocks<S>(t, a.grid, t.c, blocks);
  if constexpr (S::kTransposesTiles) {
    if (t.c == 3) {
      ForPixels3<S>(t, a.grid, blocks, [&](int i, int j, auto word) { S::StoreI(a.y.data + i * a.y.row + j * a.y.pixel, word); });
      return;
    }
  }
  const int units = (t.c + 3) / 4;
  for (int i = 0; i < a.grid.h; ++i)
    for (int n = 0; n < kTile; ++n) {
      uint8_t* y = a.y.data + i * a.y.row + n * 4;
      const int columns = i < blocks[n].rows ? blocks[n].columns : 0;
      const uint8_t* x = blocks[n].data + int64_t{i} * t.w * t.c;
      if (t.c == 3) {
        for (int j = 0; j < columns; ++j) {
          const uint32_t word = PixelWord3<S>(x + 3 * j);
          __builtin_memcpy(y + j * a.y.pixel, &word, 4);
        }
      } else {
        for (int j = 0; j < columns; ++j)
          for (int u = 0; u < units; ++u) {
            const uint32_t word = PixelWord<S>(x + int64_t{j} * t.c, t.c, u);
            __builtin_memcpy(y + j * a.y.pixel + u * kLineBytes, &word, 4);
          }
      }
      for (int j = columns; j < a.grid.w; ++j)
        for (int u = 0; u < units; ++u) __builtin_memset(y + j * a.y.pixel + u * kLineBytes, 0, 4);
    }
}

template <class S>
void LoadNormalized(const LoadNormalizedArgs& a) {
  const ImageTile& t = a.images;
  LaneBlock blocks[kTile];
  LaneBlocks<S>(t, a.grid, a.from_float ? 4 : t.c, blocks);
  if constexpr (S::kTransposesTiles) {
    if (t.c == 3 && !a.from_float) {
      const typename S::F scale[3] = {S::Set(a.scale[0]), S::Set(a.scale[1]), S::Set(a.scale[2])};
      const typename S::F offset[3] = {S::Set(a.offset[0]), S::Set(a.offset[1]), S::Set(a.offset[2])};
      ForPixels3<S>(t, a.grid, blocks, [&](int i, int j, auto word) {
        float* y = reinterpret_cast<float*>(a.y.data + i * a.y.row + j * a.y.pixel);
        for (int c = 0; c < 3; ++c) {
          S::Store(y + c * kTile, S::Add(S::Mul(S::ToFloat(S::AndI(word, S::SetI(0xff))), scale[c]), offset[c]));
          word = S::template ShiftRight<8>(word);
        }
      });
      return;
    }
  }
  alignas(64) float line[kTile];
  for (int i = 0; i < a.grid.h; ++i)
    for (int j = 0; j < a.grid.w; ++j)
      for (int c = 0; c < t.c; ++c) {
        for (int n = 0; n < kTile; ++n) {
          if (i >= blocks[n].rows || j >= blocks[n].columns) {
            line[n] = 0.0f;
          } else if (a.from_float) {
            __builtin_memcpy(&line[n], blocks[n].data + 4 * ((int64_t{c} * t.h + i) * t.w + j), 4);
          } else {
            line[n] = static_cast<float>(blocks[n].data[(int64_t{i} * t.w + j) * t.c + c]);
          }
        }
        float* y = reinterpret_cast<float*>(a.y.data + i * a.y.row + j * a.y.pixel + c * kLineBytes);
        const auto scale = S::Set(a.scale[c]), offset = S::Set(a.offset[c]);
        for (int l = 0; l < kTile; l += S::kLanes) S::Store(y + l, S::Add(S::Mul(S::Load(line + l), scale), offset));
      }
}

template <class S>
void LoadQuantized(const LoadQuantizedArgs& a) {
  const ImageTile& t = a.images;
  LaneBlock blocks[kTile];
  LaneBlocks<S>(t, a.grid, 4, blocks);
  const int units = (t.c + 3) / 4;
  for (int i = 0; i < a.grid.h; ++i)
    for (int j = 0; j < a.grid.w; ++j)
      for (int u = 0; u < units; ++u)
        for (int n = 0; n < kTile; ++n)
          for (int k = 0; k < 4; ++k) {
            const int c = 4 * u + k;
            uint8_t code = 0;
            if (i < blocks[n].rows && j < blocks[n].columns && c < t.c) {
              float v;
              __builtin_memcpy(&v, blocks[n].data + 4 * ((int64_t{c} * t.h + i) * t.w + j), 4);
              v = (v - a.low) * a.multiplier;
              if (v > 0.0f) {  // false for NaN
                v = v > 255.0f ? 255.0f : v;
                code = static_cast<uint8_t>(static_cast<int>((v + 12582912.0f) - 12582912.0f));
              }
            }
            a.y.data[i * a.y.row + j * a.y.pixel + u * kLineBytes + n * 4 + k] = code;
          }
}

template <class S>
void StoreLogits(const StoreLogitsArgs& a) {
  for (int n = 0; n < a.count; ++n)
    for (int k = 0; k < a.classes; ++k) a.out[int64_t{n} * a.classes + k] = a.x[k * kTile + n];
}

}  // namespace hce::kernels
