// Launches of the Winograd convolution; contracts in lanes.h.
#include "kernels/winograd_f32.h"

#include <array>
#include <utility>

#include "kernel_table.h"

namespace hce::cuda {

namespace {

constexpr int64_t kWinogradSharedBytes = 227 * 1024;  // of one thread block on Hopper; a smaller GPU refuses the launch

constexpr int kWinogradChunk = 256;  // more never fit, and their floats shall not overflow

template <int M, int S, int O>
Status LaunchWinograd(const WinogradF32Args& a, Stream stream) {
  using Kernel = WinogradF32<M, S, O>;
  const WinogradWork work(a);
  const int threads = a.config.channel_groups * a.config.tile_groups * Kernel::kGroupWarps * kWarp;
  const int64_t shared = work.SharedFloats() * 4;
  const int blocks_y = CeilDiv(work.blocks, a.config.channel_groups);
  const int blocks_x = GridBlocks<Kernel, WinogradWork>(work.jobs, S * a.config.tile_groups, blocks_y, a.config.blocks, threads, shared);
  return Launch<Kernel>(blocks_x, blocks_y, threads, shared, work, stream);
}

using WinogradFunction = Status (*)(const WinogradF32Args&, Stream);
template <int M, int S, int... O>
constexpr std::array<WinogradFunction, sizeof...(O)> WinogradTable(std::integer_sequence<int, O...>) {
  return {LaunchWinograd<M, S, O + 1>...};
}
template <int M, int S>
constexpr auto kWinogradTable = WinogradTable<M, S>(std::make_integer_sequence<int, kWinogradChannels[M][S]>{});

WinogradFunction Find(const WinogradConfig& c) {
  if (c.output == 2) return c.tiles == 1 ? kWinogradTable<2, 1>[c.channels - 1] : kWinogradTable<2, 2>[c.channels - 1];
  return c.tiles == 1 ? kWinogradTable<4, 1>[c.channels - 1] : kWinogradTable<4, 2>[c.channels - 1];
}

}  // namespace

int64_t SharedBytes(const WinogradF32Args& a) { return WinogradWork(a).SharedFloats() * 4; }

const char* Check(const WinogradF32Args& a) {
  const WinogradConfig& c = a.config;
  if (!a.x.data || !a.y.data || !a.weight || !a.bias) return "x, y, weight and bias expected";
  if (a.tiles < 1 || a.out_h < 1 || a.out_w < 1 || a.inputs < 1 || a.outputs < 1) return "positive sizes expected";
  if (c.output != 2 && c.output != 4) return "tiles of 2 x 2 or 4 x 4 output pixels expected";
  if (a.out_h < c.output || a.out_w < c.output) return "a map of at least one tile expected";
  if (c.tiles < 1 || c.tiles > 2) return "1 or 2 tiles expected";
  if (c.channels < 1 || c.channels > kWinogradChannels[c.output][c.tiles]) return "a register tile of fewer channels expected";
  if (ConvChannels(a.outputs, c.channels) != c.channels)
    return "channels as large as the larger of the even parts of the outputs expected";
  if (c.channel_groups < 1 || c.tile_groups < 1 || c.channel_groups > kWinogradGroups[c.output] ||
      c.tile_groups > kWinogradGroups[c.output] || c.channel_groups * c.tile_groups > kWinogradGroups[c.output])
    return "fewer groups expected";
  if (a.Blocks() > kMaxBlocksY * c.channel_groups) return "fewer outputs expected";
  if (c.chunk < 1 || c.chunk > a.inputs || c.chunk > kWinogradChunk || !ValidBlocks(c.blocks))
    return "a chunk of 1 to all input channels, at most 256, and valid blocks expected";
  if (c.tiles == 2 && c.chunk < a.inputs) return "all input channels in one chunk expected, for 2 tiles";
  if (SharedBytes(a) > kWinogradSharedBytes) return "a smaller chunk or fewer groups expected: it exceeds shared memory";
  if (int64_t{a.tiles} * a.out_h * a.out_w >= INT32_MAX / 2) return "fewer output pixels expected";
  return nullptr;
}

Status LaunchWinogradF32(const WinogradF32Args& a, Stream stream) {
  return Check(a) ? kInvalidValue : Find(a.config)(a, stream);
}

}  // namespace hce::cuda
