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

// All pixels of three bytes, sixteen at a time: store(i, j, word) gets pixel (i, j) of the 16 images, three channels and a
// zero byte per lane. Sixteen pixels of an image are one register, and a transpose makes them sixteen images of a pixel.
template <class S, class Store>
inline void ForPixels3(const ImageTile& t, const Store& store) {
  for (int i = 0; i < t.h; ++i)
    for (int j = 0; j < t.w; j += kTile) {
      const int count = t.w - j < kTile ? t.w - j : kTile;
      typename S::I words[kTile];
      for (int n = 0; n < kTile; ++n)
        words[n] = n < t.count ? S::LoadPixels3(t.data + n * t.image_bytes + (int64_t{i} * t.w + j) * 3, count) : S::ZeroI();
      S::Transpose(words);
      for (int p = 0; p < count; ++p) store(i, j + p, words[p]);
    }
}

template <class S>
void LoadCodes(const LoadCodesArgs& a) {
  const ImageTile& t = a.images;
  if constexpr (S::kTransposesTiles) {
    if (t.c == 3) {
      ForPixels3<S>(t, [&](int i, int j, auto word) { S::StoreI(a.y.data + i * a.y.row + j * a.y.pixel, word); });
      return;
    }
  }
  const int units = (t.c + 3) / 4;
  for (int i = 0; i < t.h; ++i)
    for (int n = 0; n < kTile; ++n) {
      uint8_t* y = a.y.data + i * a.y.row + n * 4;
      if (n >= t.count) {
        for (int j = 0; j < t.w; ++j)
          for (int u = 0; u < units; ++u) __builtin_memset(y + j * a.y.pixel + u * kLineBytes, 0, 4);
        continue;
      }
      const uint8_t* x = t.data + n * t.image_bytes + int64_t{i} * t.w * t.c;
      if (t.c == 3) {
        for (int j = 0; j < t.w; ++j) {
          const uint32_t word = PixelWord3<S>(x + 3 * j);
          __builtin_memcpy(y + j * a.y.pixel, &word, 4);
        }
      } else {
        for (int j = 0; j < t.w; ++j)
          for (int u = 0; u < units; ++u) {
            const uint32_t word = PixelWord<S>(x + int64_t{j} * t.c, t.c, u);
            __builtin_memcpy(y + j * a.y.pixel + u * kLineBytes, &word, 4);
          }
      }
    }
}

template <class S>
void LoadNormalized(const LoadNormalizedArgs& a) {
  const ImageTile& t = a.images;
  if constexpr (S::kTransposesTiles) {
    if (t.c == 3 && !a.from_float) {
      const typename S::F scale[3] = {S::Set(a.scale[0]), S::Set(a.scale[1]), S::Set(a.scale[2])};
      const typename S::F offset[3] = {S::Set(a.offset[0]), S::Set(a.offset[1]), S::Set(a.offset[2])};
      ForPixels3<S>(t, [&](int i, int j, auto word) {
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
  for (int i = 0; i < t.h; ++i)
    for (int j = 0; j < t.w; ++j)
      for (int c = 0; c < t.c; ++c) {
        for (int n = 0; n < kTile; ++n) {
          const uint8_t* image = t.data + n * t.image_bytes;
          if (n >= t.count) {
            line[n] = 0.0f;
          } else if (a.from_float) {
            __builtin_memcpy(&line[n], image + 4 * ((int64_t{c} * t.h + i) * t.w + j), 4);
          } else {
            line[n] = static_cast<float>(image[(int64_t{i} * t.w + j) * t.c + c]);
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
  const int units = (t.c + 3) / 4;
  for (int i = 0; i < t.h; ++i)
    for (int j = 0; j < t.w; ++j)
      for (int u = 0; u < units; ++u)
        for (int n = 0; n < kTile; ++n)
          for (int k = 0; k < 4; ++k) {
            const int c = 4 * u + k;
            uint8_t code = 0;
            if (n < t.count && c < t.c) {
              float v;
              __builtin_memcpy(&v, t.data + n * t.image_bytes + 4 * ((int64_t{c} * t.h + i) * t.w + j), 4);
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
