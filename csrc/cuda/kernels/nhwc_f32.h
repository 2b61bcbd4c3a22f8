// Segments of sums, moves of channels, images in and logits out on NHWC maps; contracts in ../nhwc.h. All are bound by
// memory: neighbouring threads take neighbouring channels.
#pragma once
#include "../nhwc.h"
#include "../warp.h"
#include "elementwise_f32.h"

namespace hce::cuda {

// Calls body(n) for n < jobs; the threads of the grid share the work.
template <class Context, class Body>
device_function void ForJobs(Context& ctx, int64_t jobs, const Body& body) {
  for (int64_t n = static_cast<int64_t>(ctx.BlockX()) * ctx.Threads() + ctx.Thread(); n < jobs;
       n += static_cast<int64_t>(ctx.BlocksX()) * ctx.Threads())
    body(n);
}

struct SumSegments {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  template <class Context>
  static device_function void Run(Context& ctx, const SumSegmentsArgs& a) {
    ForPieces(ctx, a.images, a.h, a.w, a.lines, [&](const Piece& p) {
      const float* x = At(a.x, p);
      Float4 v = Load4(x);
      for (int s = 1; s < a.segments; ++s) {
        const Float4 part = Load4(x + s * a.lines * kLineChannels);
        v = {Add(v.x, part.x), Add(v.y, part.y), Add(v.z, part.z), Add(v.w, part.w)};
      }
      if (a.residual.data) {
        const Float4 r = Load4(At(a.residual, p));
        v = {Add(v.x, r.x), Add(v.y, r.y), Add(v.z, r.z), Add(v.w, r.w)};
      }
      Store4(At(a.y, p), {Clamp(v.x, a.low, a.high), Clamp(v.y, a.low, a.high), Clamp(v.z, a.low, a.high),
                          Clamp(v.w, a.low, a.high)});
    });
  }
};

struct CopyChannelsF32 {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;

  // Either the channels to copy alone, or all below zero_to.
  static host_device_function int64_t Jobs(const CopyChannelsF32Args& a) {
    return static_cast<int64_t>(a.images) * a.out_h * a.out_w * (a.zero_to ? a.zero_to : a.channels);
  }
  template <class Context>
  static device_function void Run(Context& ctx, const CopyChannelsF32Args& a) {
    const int first = a.zero_to ? 0 : a.channel_to, count = a.zero_to ? a.zero_to : a.channels;
    ForJobs(ctx, Jobs(a), [&](int64_t n) {
      const int pixel = static_cast<int>(n / count);
      const int channel = first + static_cast<int>(n - static_cast<int64_t>(pixel) * count);
      const int line = pixel / a.out_w, j = pixel - line * a.out_w, image = line / a.out_h, i = line - image * a.out_h;
      const int c = channel - a.channel_to;
      float v = 0.0f;
      if (c >= 0 && c < a.channels)
        v = a.x.data[image * a.x.tile +
                     ((a.row_start + i * a.row_step) * a.x.row + (a.column_start + j * a.column_step) * a.x.pixel + c)];
      a.y.data[image * a.y.tile + (i * a.y.row + j * a.y.pixel + channel)] = v;
    });
  }
};

struct FlattenNhwcF32 {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  static host_device_function int64_t Jobs(const FlattenNhwcF32Args& a) {
    return static_cast<int64_t>(a.images) * a.channels * a.h * a.w;
  }
  template <class Context>
  static device_function void Run(Context& ctx, const FlattenNhwcF32Args& a) {
    const int pixels = a.h * a.w, features = a.channels * pixels;
    ForJobs(ctx, Jobs(a), [&](int64_t n) {
      const int image = static_cast<int>(n / features);
      const int feature = static_cast<int>(n - static_cast<int64_t>(image) * features);
      const int c = feature / pixels, pixel = feature - c * pixels, i = pixel / a.w, j = pixel - i * a.w;
      a.y.data[image * a.y.tile + feature] = a.x.data[image * a.x.tile + (i * a.x.row + j * a.x.pixel + c)];
    });
  }
};

// A thread takes up to four channels of a pixel.
struct LoadImagesNhwc {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  static host_device_function int64_t Jobs(const LoadNhwcArgs& a) {
    return static_cast<int64_t>(a.count) * a.h * a.w * CeilDiv(a.c, 4);
  }

  static device_function float Value(const LoadNhwcArgs& a, int64_t image, int i, int j, int c) {
    if (!a.from_float)
      return static_cast<float>(static_cast<const uint8_t*>(a.images)[((image * a.h + i) * a.w + j) * a.c + c]);
    return static_cast<const float*>(a.images)[((image * a.c + c) * a.h + i) * a.w + j];
  }

  template <class Context>
  static device_function void Run(Context& ctx, const LoadNhwcArgs& a) {
    const int quads = CeilDiv(a.c, 4);
    ForJobs(ctx, Jobs(a), [&](int64_t n) {
      const int pixel = static_cast<int>(n / quads);
      const int first = static_cast<int>(n - static_cast<int64_t>(pixel) * quads) * 4;
      const int line = pixel / a.w, j = pixel - line * a.w, image = line / a.h, i = line - image * a.h;
      float* y = a.y.data + image * a.y.tile + (i * a.y.row + j * a.y.pixel + first);
      HCE_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int c = first + e;
        if (c >= a.c) break;
        const float v = Value(a, image, i, j, c);
        if (a.flags && !(Sub(v, v) == 0.0f)) ctx.AtomicOr(reinterpret_cast<uint32_t*>(a.flags + image), 0x7fc00000u);
        y[e] = Add(Mul(v, LoadReadOnly(a.scale + c)), LoadReadOnly(a.offset + c));
      }
    });
  }
};

struct StoreLogitsNhwc {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  template <class Context>
  static device_function void Run(Context& ctx, const StoreNhwcArgs& a) {
    ForJobs(ctx, static_cast<int64_t>(a.count) * a.classes, [&](int64_t n) {
      const int image = static_cast<int>(n / a.classes);
      const int k = static_cast<int>(n - static_cast<int64_t>(image) * a.classes);
      const float flag = a.flags ? a.flags[image] : 0.0f;
      a.out[n] = flag != flag ? flag : a.x.data[image * a.x.tile + k];
    });
  }
};

}  // namespace hce::cuda
