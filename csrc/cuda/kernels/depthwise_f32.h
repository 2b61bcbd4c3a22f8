// Depthwise float32 convolution on images in lanes; contract in ../lanes.h (DepthwiseF32Args).
//
// A thread computes P adjacent output pixels of one channel for 4 images; neighbouring lanes hold the images of a line,
// then the next channels, so a warp reads and writes 512 bytes in a row. It is bound by memory: with kernels of K
// columns and stride S known to the compiler, the (P - 1) S + K inputs of a row are loaded once for all its taps. K =
// 0: any kernel.
//
// PerLane: lanes are channels (../nhwc.h), so that each has weights of its own, as many as a line.
#pragma once
#include <type_traits>

#include "../lanes.h"
#include "../warp.h"

namespace hce::cuda {

template <int P, int K, int S, bool PerLane = false>
struct DepthwiseF32 {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 2;
  using Weight = std::conditional_t<PerLane, Float4, float>;

  static device_function void Fill(float (&v)[kImages], float from) { v[0] = v[1] = v[2] = v[3] = from; }
  static device_function void Fill(float (&v)[kImages], const Float4& from) {
    v[0] = from.x, v[1] = from.y, v[2] = from.z, v[3] = from.w;
  }

  template <class Context>
  static device_function void Run(Context& ctx, const DepthwiseF32Args& a) {
    const int segments = CeilDiv(a.out_w, P), lanes = a.outputs * kLineLanes, rows = a.tiles * a.out_h * segments;
    const int64_t jobs = static_cast<int64_t>(rows) * lanes;
    for (int64_t n = static_cast<int64_t>(ctx.BlockX()) * ctx.Threads() + ctx.Thread(); n < jobs;
         n += static_cast<int64_t>(ctx.BlocksX()) * ctx.Threads()) {
      const int row_job = static_cast<int>(n / lanes), lane = static_cast<int>(n - static_cast<int64_t>(row_job) * lanes);
      const int channel = lane / kLineLanes, image = lane % kLineLanes * kImages;
      const int row = row_job / segments, segment = row_job - row * segments;
      const int tile = row / a.out_h, i = row - tile * a.out_h;
      const int j = SegmentStart(segment, a.out_w, segments), j_end = SegmentStart(segment + 1, a.out_w, segments);
      const float* x = a.x.data + tile * a.x.tile +
                       (i * a.stride_h * a.x.row + j * a.stride_w * a.x.pixel + channel / a.multiplier * kTile + image);
      float acc[P][kImages];
      const int own = PerLane ? lane : channel;  // of the weights of a tap
      const Weight bias = LoadReadOnly(reinterpret_cast<const Weight*>(a.bias) + own);
      HCE_UNROLL
      for (int p = 0; p < P; ++p) Fill(acc[p], bias);
      Taps(acc, a, x, reinterpret_cast<const Weight*>(a.weight) + own, PerLane ? lanes : a.outputs, j_end - j);
      const int line = channel * kTile + image;
      HCE_UNROLL
      for (int p = 0; p < P; ++p) {
        if (j + p >= j_end) break;
        float* v = acc[p];
        if (a.residual.data) {
          const Float4 r = *reinterpret_cast<const Float4*>(a.residual.data + tile * a.residual.tile +
                                                            (i * a.residual.row + (j + p) * a.residual.pixel + line));
          v[0] = Add(v[0], r.x), v[1] = Add(v[1], r.y), v[2] = Add(v[2], r.z), v[3] = Add(v[3], r.w);
        }
        *reinterpret_cast<Float4*>(a.y.data + tile * a.y.tile + (i * a.y.row + (j + p) * a.y.pixel + line)) = {
            Clamp(v[0], a.low, a.high), Clamp(v[1], a.low, a.high), Clamp(v[2], a.low, a.high), Clamp(v[3], a.low, a.high)};
      }
    }
  }

  static device_function void Tap(float (&acc)[kImages], const Float4& x, float w) {
    acc[0] = Fma(x.x, w, acc[0]);
    acc[1] = Fma(x.y, w, acc[1]);
    acc[2] = Fma(x.z, w, acc[2]);
    acc[3] = Fma(x.w, w, acc[3]);
  }
  static device_function void Tap(float (&acc)[kImages], const Float4& x, const Float4& w) {
    acc[0] = Fma(x.x, w.x, acc[0]);
    acc[1] = Fma(x.y, w.y, acc[1]);
    acc[2] = Fma(x.z, w.z, acc[2]);
    acc[3] = Fma(x.w, w.w, acc[3]);
  }

  // Only the first `pixels` of P exist: the inputs of the others may lie outside the map. stride: weights of a tap.
  static device_function void Taps(float (&acc)[P][kImages], const DepthwiseF32Args& a, const float* x, const Weight* w,
                                   int stride, int pixels) {
    if constexpr (K > 0) {
      constexpr int kInputs = (P - 1) * S + K;
      const int inputs = (pixels - 1) * S + K;
      for (int kh = 0; kh < a.kernel_h; ++kh, x += a.dilation_h * a.x.row) {
        Float4 in[kInputs];
        HCE_UNROLL
        for (int q = 0; q < kInputs; ++q)
          in[q] = LoadReadOnly(reinterpret_cast<const Float4*>(x + (q < inputs ? q : 0) * a.x.pixel));
        HCE_UNROLL
        for (int kw = 0; kw < K; ++kw, w += stride) {
          const Weight weight = LoadReadOnly(w);
          HCE_UNROLL
          for (int p = 0; p < P; ++p) Tap(acc[p], in[p * S + kw], weight);
        }
      }
    } else {
      for (int kh = 0; kh < a.kernel_h; ++kh, x += a.dilation_h * a.x.row)
        for (int kw = 0; kw < a.kernel_w; ++kw, w += stride) {
          const Weight weight = LoadReadOnly(w);
          HCE_UNROLL
          for (int p = 0; p < P; ++p) {
            const int q = (p < pixels ? p : 0) * a.stride_w + kw * a.dilation_w;
            Tap(acc[p], LoadReadOnly(reinterpret_cast<const Float4*>(x + q * a.x.pixel)), weight);
          }
        }
    }
  }
};

}  // namespace hce::cuda
