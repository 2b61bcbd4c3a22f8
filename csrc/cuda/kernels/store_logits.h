// Logits out of lanes; contract in ../lanes.h (StoreLogitsArgs). The transpose of load_images.h: 32 classes of a tile
// of 32 images at a time, through shared memory with 33 words per row.
#pragma once
#include "../lanes.h"
#include "../warp.h"

namespace hce::cuda {

struct StoreLogits {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  static constexpr int kClasses = 32;
  static constexpr int kPitch = kTile + 1;
  static constexpr int64_t kSharedBytes = int64_t{kClasses} * kPitch * 4;

  static host_device_function int64_t Jobs(const StoreLogitsArgs& a) {
    return static_cast<int64_t>(CeilDiv(a.count, kTile)) * CeilDiv(a.classes, kClasses);
  }

  template <class Context>
  static device_function void Run(Context& ctx, const StoreLogitsArgs& a) {
    float* staged = ctx.template Shared<float>();
    const int chunks = CeilDiv(a.classes, kClasses), jobs = CeilDiv(a.count, kTile) * chunks;
    const int warp = ctx.Warp(), lane = ctx.Lane(), warps = ctx.Warps();
    for (int job = ctx.BlockX(); job < jobs; job += ctx.BlocksX()) {
      const int tile = job / chunks, first = (job - tile * chunks) * kClasses;
      const int classes = a.classes - first < kClasses ? a.classes - first : kClasses;
      ctx.Sync();  // the rows of the job before are read
      for (int k = warp; k < classes; k += warps)
        staged[k * kPitch + lane] = a.x[(static_cast<int64_t>(tile) * a.classes + first + k) * kTile + lane];
      ctx.Sync();
      for (int m = warp; m < kTile; m += warps) {
        const int64_t image = static_cast<int64_t>(tile) * kTile + m;
        if (image >= a.count || lane >= classes) continue;
        const float flag = a.flags ? a.flags[image] : 0.0f;
        a.out[image * a.classes + first + lane] = flag != flag ? flag : staged[lane * kPitch + m];
      }
    }
  }
};

}  // namespace hce::cuda
