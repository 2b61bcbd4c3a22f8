// Launches of the kernels that are bound by memory: depthwise convolution, pools, element-wise operations, images in,
// logits out; contracts in lanes.h.
#include "kernel_table.h"
#include "kernels/depthwise_f32.h"
#include "kernels/elementwise_f32.h"
#include "kernels/load_images.h"
#include "kernels/pool_f32.h"
#include "kernels/store_logits.h"

namespace hce::cuda {

namespace {

constexpr int kDepthwisePixels = 4;

// Starts a kernel whose thread blocks share its jobs, one at a time each.
template <class Kernel, class Args>
Status LaunchBlocks(const Args& a, Stream stream) {
  const int blocks = GridBlocks<Kernel, Args>(Kernel::Jobs(a), 1, 1, a.blocks, Kernel::kThreads, Kernel::kSharedBytes);
  return Launch<Kernel>(blocks, 1, Kernel::kThreads, Kernel::kSharedBytes, a, stream);
}

bool FitsPixels(int64_t tiles, int64_t h, int64_t w) { return tiles * h * w < INT32_MAX; }
bool FitsLine(int64_t channels) { return channels * kTile < INT32_MAX; }

}  // namespace

const char* Check(const DepthwiseF32Args& a) {
  if (!a.x.data || !a.y.data || !a.weight || !a.bias) return "x, y, weight and bias expected";
  if (a.tiles < 1 || a.out_h < 1 || a.out_w < 1 || a.kernel_h < 1 || a.kernel_w < 1 || a.stride_h < 1 || a.stride_w < 1 ||
      a.dilation_h < 1 || a.dilation_w < 1 || a.outputs < 1 || a.multiplier < 1 || a.outputs % a.multiplier ||
      !ValidBlocks(a.blocks))
    return "positive sizes, and outputs that are a multiple of the multiplier, expected";
  if (!FitsPixels(a.tiles, a.out_h, a.out_w) || !FitsLine(a.outputs)) return "fewer output pixels or channels expected";
  return nullptr;
}
Status LaunchDepthwiseF32(const DepthwiseF32Args& a, Stream stream) {
  if (Check(a)) return kInvalidValue;
  constexpr int P = kDepthwisePixels;
  const int64_t jobs = int64_t{a.tiles} * a.out_h * CeilDiv(a.out_w, P) * a.outputs * kLineLanes;
  const bool square = a.dilation_w == 1 && a.kernel_w == 3;
  if (square && a.stride_w == 1) return LaunchPieces<DepthwiseF32<P, 3, 1>>(jobs, a, stream);
  if (square && a.stride_w == 2) return LaunchPieces<DepthwiseF32<P, 3, 2>>(jobs, a, stream);
  return LaunchPieces<DepthwiseF32<P, 0, 0>>(jobs, a, stream);
}

const char* Check(const PoolF32Args& a) {
  if (!a.x.data || !a.y.data) return "x and y expected";
  if (a.tiles < 1 || a.in_h < 1 || a.in_w < 1 || a.out_h < 1 || a.out_w < 1 || a.channels < 1 || a.kernel_h < 1 ||
      a.kernel_w < 1 || a.stride_h < 1 || a.stride_w < 1 || a.pad_h < 0 || a.pad_w < 0 || !ValidBlocks(a.blocks))
    return "positive sizes expected";
  if (a.kind != PoolKind::kMax && a.kind != PoolKind::kAverage) return "a max or an average pool expected";
  if (a.pad_h >= a.kernel_h || a.pad_w >= a.kernel_w ||
      int64_t{a.out_h - 1} * a.stride_h - a.pad_h >= a.in_h || int64_t{a.out_w - 1} * a.stride_w - a.pad_w >= a.in_w)
    return "windows that each hold a pixel expected";
  if (!FitsPixels(a.tiles, a.out_h, a.out_w) || !FitsLine(a.channels)) return "fewer output pixels or channels expected";
  return nullptr;
}
Status LaunchPoolF32(const PoolF32Args& a, Stream stream) {
  if (Check(a)) return kInvalidValue;
  const int64_t jobs = int64_t{a.tiles} * a.out_h * a.out_w * a.channels * kLineLanes;
  if (a.kind == PoolKind::kMax) return LaunchPieces<PoolF32<PoolKind::kMax>>(jobs, a, stream);
  return LaunchPieces<PoolF32<PoolKind::kAverage>>(jobs, a, stream);
}

const char* Check(const AddF32Args& a) {
  if (!a.a.data || !a.y.data) return "a and y expected";
  if (a.tiles < 1 || a.h < 1 || a.w < 1 || a.channels < 1 || !ValidBlocks(a.blocks)) return "positive sizes expected";
  if (!FitsPixels(a.tiles, a.h, a.w) || !FitsLine(a.channels)) return "fewer pixels or channels expected";
  return nullptr;
}
Status LaunchAddF32(const AddF32Args& a, Stream stream) {
  if (Check(a)) return kInvalidValue;
  return LaunchPieces<AddF32>(int64_t{a.tiles} * a.h * a.w * a.channels * kLineLanes, a, stream);
}

const char* Check(const CopyF32Args& a) {
  if (!a.x.data || !a.y.data) return "x and y expected";
  if (a.tiles < 1 || a.out_h < 1 || a.out_w < 1 || a.channels < 1 || a.channel_to < 0 || a.zero_to < 0 || a.row_start < 0 ||
      a.row_step < 1 || a.column_start < 0 || a.column_step < 1 || !ValidBlocks(a.blocks))
    return "positive sizes expected";
  if (a.zero_to && a.zero_to < int64_t{a.channel_to} + a.channels)
    return "zero_to 0, or at least the end of the channels that are written, expected";
  if (!FitsPixels(a.tiles, a.out_h, a.out_w) || !FitsLine(int64_t{a.channel_to} + a.channels) || !FitsLine(a.zero_to))
    return "fewer pixels or channels expected";
  return nullptr;
}
Status LaunchCopyF32(const CopyF32Args& a, Stream stream) {
  if (Check(a)) return kInvalidValue;
  return LaunchPieces<CopyF32>(int64_t{a.tiles} * a.out_h * a.out_w * (a.zero_to ? a.zero_to : a.channels) * kLineLanes, a,
                               stream);
}

const char* Check(const FlattenF32Args& a) {
  if (!a.x.data || !a.y) return "x and y expected";
  if (a.tiles < 1 || a.h < 1 || a.w < 1 || a.channels < 1 || !ValidBlocks(a.blocks)) return "positive sizes expected";
  if (!FitsPixels(a.tiles, a.h, a.w) || !FitsLine(a.channels)) return "fewer pixels or channels expected";
  return nullptr;
}
Status LaunchFlattenF32(const FlattenF32Args& a, Stream stream) {
  if (Check(a)) return kInvalidValue;
  return LaunchPieces<FlattenF32>(int64_t{a.tiles} * a.h * a.w * a.channels * kLineLanes, a, stream);
}

const char* Check(const LoadImagesArgs& a) {
  if (!a.images || !a.y.data || !a.scale || !a.offset) return "images, scale, offset and y expected";
  if (a.count < 1 || a.h < 1 || a.w < 1 || a.c < 1 || !ValidBlocks(a.blocks)) return "positive sizes expected";
  if (int64_t{a.h} * a.w > (1 << 28) || int64_t{a.h} * a.w * a.c > (1 << 28) || LoadImages::Jobs(a) >= INT32_MAX)
    return "smaller images expected";
  return nullptr;
}
Status LaunchLoadImages(const LoadImagesArgs& a, Stream stream) {
  if (Check(a)) return kInvalidValue;
  if (a.flags) {
    const Status status = ClearAsync(a.flags, int64_t{a.count} * 4, stream);
    if (status != kSuccess) return status;
  }
  return LaunchBlocks<LoadImages>(a, stream);
}

const char* Check(const StoreLogitsArgs& a) {
  if (!a.x || !a.out) return "x and out expected";
  if (a.count < 1 || a.classes < 1 || !ValidBlocks(a.blocks)) return "positive sizes expected";
  if (StoreLogits::Jobs(a) >= INT32_MAX) return "fewer logits expected";
  return nullptr;
}
Status LaunchStoreLogits(const StoreLogitsArgs& a, Stream stream) {
  return Check(a) ? kInvalidValue : LaunchBlocks<StoreLogits>(a, stream);
}

const char* Check(const EnsembleMeanArgs& a) {
  if (a.n < 1 || a.n > kMaxMembers || !a.out || a.elements < 1 || !ValidBlocks(a.blocks))
    return "1 to 16 members and an output expected";
  for (int n = 0; n < a.n; ++n)
    if (!a.members[n]) return "logits of every member expected";
  return nullptr;
}
Status LaunchEnsembleMean(const EnsembleMeanArgs& a, Stream stream) {
  return Check(a) ? kInvalidValue : LaunchPieces<EnsembleMean>(a.elements, a, stream);
}

}  // namespace hce::cuda
