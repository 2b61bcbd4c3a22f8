// Max and average pools on images in lanes; contract in ../lanes.h (PoolF32Args). A thread computes one output of one
// channel for 4 images; neighbouring lanes are neighbouring images, then channels.
#pragma once
#include "../lanes.h"
#include "../warp.h"

namespace hce::cuda {

template <PoolKind kKind>
struct PoolF32 {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;

  // A NaN, once seen, stays: x > NaN is false, and x != x catches a new one.
  static device_function float Larger(float best, float x) { return x > best || x != x ? x : best; }

  static device_function void Take(float (&v)[kImages], const Float4& x) {
    if constexpr (kKind == PoolKind::kMax) {
      v[0] = Larger(v[0], x.x), v[1] = Larger(v[1], x.y), v[2] = Larger(v[2], x.z), v[3] = Larger(v[3], x.w);
    } else {
      v[0] = Add(v[0], x.x), v[1] = Add(v[1], x.y), v[2] = Add(v[2], x.z), v[3] = Add(v[3], x.w);
    }
  }

  template <class Context>
  static device_function void Run(Context& ctx, const PoolF32Args& a) {
    const int lanes = a.channels * kLineLanes;
    const int64_t jobs = static_cast<int64_t>(a.tiles) * a.out_h * a.out_w * lanes;
    for (int64_t n = static_cast<int64_t>(ctx.BlockX()) * ctx.Threads() + ctx.Thread(); n < jobs;
         n += static_cast<int64_t>(ctx.BlocksX()) * ctx.Threads()) {
      const int pixel = static_cast<int>(n / lanes), lane = static_cast<int>(n - static_cast<int64_t>(pixel) * lanes) * kImages;
      const int row_job = pixel / a.out_w, j = pixel - row_job * a.out_w;
      const int tile = row_job / a.out_h, i = row_job - tile * a.out_h;
      const int r0 = i * a.stride_h - a.pad_h, c0 = j * a.stride_w - a.pad_w;
      const int row = r0 < 0 ? 0 : r0, row_end = r0 + a.kernel_h > a.in_h ? a.in_h : r0 + a.kernel_h;
      const int column = c0 < 0 ? 0 : c0, column_end = c0 + a.kernel_w > a.in_w ? a.in_w : c0 + a.kernel_w;
      const float first = kKind == PoolKind::kMax ? FromBits(0xff800000u) : 0.0f;
      float v[kImages] = {first, first, first, first};
      const float* x = a.x.data + tile * a.x.tile + lane;
      for (int r = row; r < row_end; ++r)
        for (int c = column; c < column_end; ++c)
          Take(v, LoadReadOnly(reinterpret_cast<const Float4*>(x + (r * a.x.row + c * a.x.pixel))));
      if constexpr (kKind == PoolKind::kAverage) {
        const float count = static_cast<float>(a.count_include_pad ? a.kernel_h * a.kernel_w
                                                                   : (row_end - row) * (column_end - column));
        HCE_UNROLL
        for (int e = 0; e < kImages; ++e) v[e] = Div(v[e], count);
      }
      *reinterpret_cast<Float4*>(a.y.data + tile * a.y.tile + (i * a.y.row + j * a.y.pixel + lane)) = {v[0], v[1], v[2],
                                                                                                       v[3]};
    }
  }
};

}  // namespace hce::cuda
