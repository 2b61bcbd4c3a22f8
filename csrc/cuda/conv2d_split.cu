// Launches of the convolutions with split operands; contract in split.h.
#include <array>
#include <cmath>
#include <utility>

#include "kernel_table.h"
#include "kernels/conv2d_split.h"

namespace hce::cuda {

namespace {

constexpr int64_t kMaxTableBytes = 96 * 1024;  // shared memory of one thread block; every GPU from sm_80 on gives it

template <Arithmetic A, bool kSplit, int N>
Status LaunchOctets(const ConvSplitArgs& a, Stream stream) {
  using Kernel = Conv2dSplit<A, kSplit, N>;
  const int threads = a.config.channel_warps * a.config.pixel_warps * kWarp;
  const int64_t jobs = int64_t{a.tiles} * a.out_h * a.out_w, shared = SharedBytes(a);
  const int blocks_y = CeilDiv(a.Blocks(), a.config.channel_warps);
  const int blocks_x =
      GridBlocks<Kernel, ConvSplitArgs>(jobs, a.config.pixel_warps * Kernel::P, blocks_y, a.config.blocks, threads, shared);
  return Launch<Kernel>(blocks_x, blocks_y, threads, shared, a, stream);
}

using SplitFunction = Status (*)(const ConvSplitArgs&, Stream);
template <Arithmetic A, bool kSplit, int... N>
constexpr std::array<SplitFunction, sizeof...(N)> SplitTable(std::integer_sequence<int, N...>) {
  return {LaunchOctets<A, kSplit, N + 1>...};
}
template <Arithmetic A, bool kSplit>
constexpr auto kSplitTable = SplitTable<A, kSplit>(std::make_integer_sequence<int, kSplitOctets>{});

bool Aligned(const ConstMap& map) {
  return reinterpret_cast<uintptr_t>(map.data) % 256 == 0 && map.tile % 64 == 0 && map.row % 64 == 0 && map.pixel % 64 == 0;
}

}  // namespace

int64_t SharedBytes(const ConvSplitArgs& a) { return int64_t{a.Steps()} * kSplitTerms * a.TermLines() * 4; }

const char* Check(const ConvSplitArgs& a) {
  const SplitConfig& c = a.config;
  if (a.arithmetic != Arithmetic::kTf32x3 && a.arithmetic != Arithmetic::kFp16x3 && a.arithmetic != Arithmetic::kBf16x3)
    return "tf32x3, fp16x3 or bf16x3 expected";
  if (!a.x.data || !a.weight || !a.bias || (!a.y.data && !a.split.data)) return "x, weight, bias and an output expected";
  if (a.tiles < 1 || a.out_h < 1 || a.out_w < 1 || a.kernel_h < 1 || a.kernel_w < 1 || a.stride_h < 1 || a.stride_w < 1 ||
      a.dilation_h < 1 || a.dilation_w < 1 || a.inputs < 1 || a.outputs < 1)
    return "positive sizes expected";
  if ((a.x_split || a.split.data) && !HasPairs(a.arithmetic)) return "float maps expected: tf32x3 has no split ones";
  if ((a.x_split && !Aligned(a.x)) || !Aligned({a.split.data, a.split.tile, a.split.row, a.split.pixel}))
    return "split maps whose pixels are aligned to 256 bytes expected";
  int exponent = 0;
  if (!std::isfinite(a.factor) || std::frexp(a.factor, &exponent) != 0.5f) return "a positive power of two as factor expected";
  if (c.octets < 1 || c.octets > kSplitOctets || ConvChannels(a.Octets(), c.octets) != c.octets)
    return "octets as many as the larger of the even parts of the outputs, at most 4, expected";
  if (c.channel_warps < 1 || c.pixel_warps < 1 || c.channel_warps > kConvWarps || c.pixel_warps > kConvWarps ||
      c.channel_warps * c.pixel_warps > kConvWarps)
    return "1 to 4 warps expected";
  if (!ValidBlocks(c.blocks)) return "valid blocks expected";
  if (a.Blocks() > kMaxBlocksY * c.channel_warps) return "fewer outputs expected";
  if (int64_t{a.kernel_h} * a.kernel_w * a.TapTerms() > INT32_MAX / 2 || SharedBytes(a) > kMaxTableBytes)
    return "fewer terms of a sum expected: their table exceeds shared memory";
  if (int64_t{a.Steps()} * a.Octets() * kWarp * 4 > INT32_MAX) return "fewer weights expected";
  if (int64_t{a.tiles} * a.out_h * a.out_w >= INT32_MAX / 2) return "fewer output pixels expected";
  return nullptr;
}

Status LaunchConv2dSplit(const ConvSplitArgs& a, Stream stream) {
  if (Check(a)) return kInvalidValue;
  const auto launch = [&](const auto& table) { return table[static_cast<size_t>(a.config.octets - 1)](a, stream); };
  switch (a.arithmetic) {
    case Arithmetic::kTf32x3:
      return launch(kSplitTable<Arithmetic::kTf32x3, false>);
    case Arithmetic::kFp16x3:
      return a.x_split ? launch(kSplitTable<Arithmetic::kFp16x3, true>) : launch(kSplitTable<Arithmetic::kFp16x3, false>);
    case Arithmetic::kBf16x3:
      return a.x_split ? launch(kSplitTable<Arithmetic::kBf16x3, true>) : launch(kSplitTable<Arithmetic::kBf16x3, false>);
  }
  return kInvalidValue;
}

}  // namespace hce::cuda
