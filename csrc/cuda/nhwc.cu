// Launches of the kernels on NHWC maps that are bound by memory; contracts in nhwc.h.
#include "kernel_table.h"
#include "kernels/depthwise_f32.h"
#include "kernels/nhwc_f32.h"
#include "nhwc.h"

namespace hce::cuda {

namespace {

constexpr int kNhwcDepthwisePixels = 4;

bool FitsInt(int64_t images, int64_t h, int64_t w, int64_t channels) {
  return images * h * w < INT32_MAX && h * w * channels < INT32_MAX && channels < INT32_MAX / kLineChannels;
}

}  // namespace

const char* Check(const SumSegmentsArgs& a) {
  if (!a.x.data || !a.y.data) return "x and y expected";
  if (a.images < 1 || a.h < 1 || a.w < 1 || a.lines < 1 || a.segments < 1 || !ValidBlocks(a.blocks))
    return "positive sizes expected";
  if (!FitsInt(a.images, a.h, a.w, int64_t{a.lines} * a.segments)) return "fewer pixels, lines or segments expected";
  return nullptr;
}
Status LaunchSumSegments(const SumSegmentsArgs& a, Stream stream) {
  if (Check(a)) return kInvalidValue;
  return LaunchPieces<SumSegments>(int64_t{a.images} * a.h * a.w * a.lines * kLineLanes, a, stream);
}

const char* Check(const DepthwiseNhwcF32Args& a) {
  if (a.multiplier != 1) return "one output per input expected";
  return Check(static_cast<const DepthwiseF32Args&>(a));
}
Status LaunchDepthwiseNhwcF32(const DepthwiseNhwcF32Args& a, Stream stream) {
  if (Check(a)) return kInvalidValue;
  constexpr int P = kNhwcDepthwisePixels;
  const DepthwiseF32Args& lanes = a;
  const int64_t jobs = int64_t{a.tiles} * a.out_h * CeilDiv(a.out_w, P) * a.outputs * kLineLanes;
  const bool square = a.dilation_w == 1 && a.kernel_w == 3;
  if (square && a.stride_w == 1) return LaunchPieces<DepthwiseF32<P, 3, 1, true>>(jobs, lanes, stream);
  if (square && a.stride_w == 2) return LaunchPieces<DepthwiseF32<P, 3, 2, true>>(jobs, lanes, stream);
  return LaunchPieces<DepthwiseF32<P, 0, 0, true>>(jobs, lanes, stream);
}

const char* Check(const CopyChannelsF32Args& a) {
  if (!a.x.data || !a.y.data) return "x and y expected";
  if (a.images < 1 || a.out_h < 1 || a.out_w < 1 || a.channels < 1 || a.channel_to < 0 || a.zero_to < 0 ||
      a.row_start < 0 || a.row_step < 1 || a.column_start < 0 || a.column_step < 1 || !ValidBlocks(a.blocks))
    return "positive sizes expected";
  if (a.zero_to && a.zero_to < int64_t{a.channel_to} + a.channels)
    return "zero_to 0, or at least the end of the channels that are written, expected";
  if (!FitsInt(a.images, a.out_h, a.out_w, int64_t{a.channel_to} + a.channels) || !FitsInt(1, 1, 1, a.zero_to))
    return "fewer pixels or channels expected";
  return nullptr;
}
Status LaunchCopyChannelsF32(const CopyChannelsF32Args& a, Stream stream) {
  return Check(a) ? kInvalidValue : LaunchPieces<CopyChannelsF32>(CopyChannelsF32::Jobs(a), a, stream);
}

const char* Check(const FlattenNhwcF32Args& a) {
  if (!a.x.data || !a.y.data) return "x and y expected";
  if (a.images < 1 || a.h < 1 || a.w < 1 || a.channels < 1 || !ValidBlocks(a.blocks)) return "positive sizes expected";
  if (!FitsInt(a.images, a.h, a.w, a.channels)) return "fewer pixels or channels expected";
  return nullptr;
}
Status LaunchFlattenNhwcF32(const FlattenNhwcF32Args& a, Stream stream) {
  return Check(a) ? kInvalidValue : LaunchPieces<FlattenNhwcF32>(FlattenNhwcF32::Jobs(a), a, stream);
}

const char* Check(const LoadNhwcArgs& a) {
  if (!a.images || !a.y.data || !a.scale || !a.offset) return "images, scale, offset and y expected";
  if (a.count < 1 || a.h < 1 || a.w < 1 || a.c < 1 || !ValidBlocks(a.blocks)) return "positive sizes expected";
  if (!FitsInt(a.count, a.h, a.w, a.c)) return "smaller images expected";
  return nullptr;
}
Status LaunchLoadNhwc(const LoadNhwcArgs& a, Stream stream) {
  if (Check(a)) return kInvalidValue;
  if (a.flags) {
    const Status status = ClearAsync(a.flags, int64_t{a.count} * 4, stream);
    if (status != kSuccess) return status;
  }
  return LaunchPieces<LoadImagesNhwc>(LoadImagesNhwc::Jobs(a), a, stream);
}

const char* Check(const StoreNhwcArgs& a) {
  if (!a.x.data || !a.out) return "x and out expected";
  if (a.count < 1 || a.classes < 1 || !ValidBlocks(a.blocks)) return "positive sizes expected";
  if (a.classes >= INT32_MAX / kLineChannels) return "fewer logits expected";
  return nullptr;
}
Status LaunchStoreNhwc(const StoreNhwcArgs& a, Stream stream) {
  return Check(a) ? kInvalidValue : LaunchPieces<StoreLogitsNhwc>(int64_t{a.count} * a.classes, a, stream);
}

}  // namespace hce::cuda
