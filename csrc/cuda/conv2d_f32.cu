// Launches of the direct convolution, and of the linear layers that are one; contracts in lanes.h.
#include "kernels/conv2d_f32.h"

#include <array>
#include <utility>

#include "kernel_table.h"
#include "kernels/linear_f32.h"

namespace hce::cuda {

namespace {

constexpr int64_t kMaxSharedBytes = 96 * 1024;  // of one thread block; every GPU from sm_80 on gives it

template <int P, int O>
Status LaunchTile(const ConvF32Args& a, Stream stream) {
  using Kernel = Conv2dF32<P, O>;
  const int threads = a.config.channel_warps * a.config.pixel_warps * kWarp;
  const int64_t jobs = int64_t{a.tiles} * a.out_h * a.Segments();
  const int blocks_y = CeilDiv(int64_t{a.groups} * a.GroupBlocks(), a.config.channel_warps);
  const int64_t shared = SharedBytes(a);
  const int blocks_x = GridBlocks<Kernel, ConvF32Args>(jobs, a.config.pixel_warps * kConvRuns, blocks_y, a.config.blocks,
                                                       threads, shared);
  return Launch<Kernel>(blocks_x, blocks_y, threads, shared, a, stream);
}

using LaunchFunction = Status (*)(const ConvF32Args&, Stream);
template <int P, int... O>
constexpr std::array<LaunchFunction, sizeof...(O)> TileTable(std::integer_sequence<int, O...>) {
  return {LaunchTile<P, O + 1>...};
}
constexpr auto kOnePixel = TileTable<1>(std::make_integer_sequence<int, kConvChannels[1]>{});
constexpr auto kTwoPixels = TileTable<2>(std::make_integer_sequence<int, kConvChannels[2]>{});

}  // namespace

int64_t SharedBytes(const ConvF32Args& a) {
  const ConvConfig& c = a.config;
  return int64_t{a.Chunks() > 1 ? 2 : 1} * c.channel_warps * c.chunk_lines * RoundUp4(c.channels) * 4;
}

const char* Check(const ConvF32Args& a) {
  const ConvConfig& c = a.config;
  if (!a.x.data || !a.y.data || !a.weight || !a.bias) return "x, y, weight and bias expected";
  if (a.tiles < 1 || a.out_h < 1 || a.out_w < 1 || a.kernel_h < 1 || a.kernel_w < 1 || a.stride_h < 1 || a.stride_w < 1 ||
      a.dilation_h < 1 || a.dilation_w < 1 || a.groups < 1 || a.group_inputs < 1 || a.group_outputs < 1)
    return "positive sizes expected";
  if (c.pixels < 1 || c.pixels > 2) return "a register tile of 1 or 2 pixels expected";
  if (c.channels < 1 || c.channels > kConvChannels[c.pixels]) return "a register tile of fewer channels expected";
  if (ConvChannels(a.group_outputs, c.channels) != c.channels)
    return "channels as large as the larger of the even parts of the outputs expected";
  if (c.channel_warps < 1 || c.pixel_warps < 1 || c.channel_warps > kConvWarps || c.pixel_warps > kConvWarps ||
      c.channel_warps * c.pixel_warps > kConvWarps)
    return "1 to 4 warps expected";
  if (c.chunk_lines < 1 || !ValidBlocks(c.blocks)) return "a positive chunk and valid blocks expected";
  if (int64_t{a.kernel_h} * a.kernel_w * a.group_inputs >= INT32_MAX / 2) return "fewer taps expected";
  if (int64_t{a.groups} * a.GroupBlocks() > kMaxBlocksY * c.channel_warps) return "fewer outputs expected";
  if (SharedBytes(a) > kMaxSharedBytes) return "a smaller chunk expected: it exceeds shared memory";
  if (int64_t{a.tiles} * a.out_h * a.out_w >= INT32_MAX / 2) return "fewer output pixels expected";
  return nullptr;
}

Status LaunchConv2dF32(const ConvF32Args& a, Stream stream) {
  if (Check(a)) return kInvalidValue;
  return (a.config.pixels == 1 ? kOnePixel[a.config.channels - 1] : kTwoPixels[a.config.channels - 1])(a, stream);
}

const char* Check(const LinearF32Args& a) {
  if (int64_t{a.inputs} * kTile > INT32_MAX || int64_t{a.outputs} * kTile > INT32_MAX ||
      int64_t{a.tiles} * (a.inputs > a.outputs ? a.inputs : a.outputs) * kTile > INT32_MAX)
    return "features of all tiles within 2^31 floats expected";
  return Check(AsConv(a));
}
Status LaunchLinearF32(const LinearF32Args& a, Stream stream) {
  return Check(a) ? kInvalidValue : LaunchConv2dF32(AsConv(a), stream);
}

}  // namespace hce::cuda
