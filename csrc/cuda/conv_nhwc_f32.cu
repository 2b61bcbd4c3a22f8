// Launches of the convolution on NHWC maps; contract in nhwc.h.
#include "kernel_table.h"
#include "kernels/conv_nhwc_f32.h"

namespace hce::cuda {

namespace {

template <int M, int N, int TM, int TN, bool Whole = true>
Status LaunchNhwc(const ConvNhwcF32Args& a, Stream stream) {
  using Kernel = ConvNhwcF32<M, N, TM, TN, Whole>;
  const int blocks_x = CeilDiv(int64_t{a.images} * a.out_h * a.out_w, M);
  const int blocks_y = a.Columns() * a.groups * (a.config.parallel ? a.config.segments : 1);
  return Launch<Kernel>(blocks_x, blocks_y, Kernel::kThreads, Kernel::SharedBytes(a), a, stream);
}

// The launch for a tile of kNhwcTiles; nullptr if there is none.
using NhwcFunction = Status (*)(const ConvNhwcF32Args&, Stream);
NhwcFunction FindNhwc(const ConvNhwcF32Args& a) {
  constexpr NhwcFunction launches[] = {LaunchNhwc<128, 64, 8, 8>, LaunchNhwc<64, 64, 8, 4>, LaunchNhwc<64, 32, 4, 4>,
                                       LaunchNhwc<32, 32, 2, 4>};
  constexpr int count = sizeof(kNhwcTiles) / sizeof(kNhwcTiles[0]);
  static_assert(sizeof(launches) / sizeof(launches[0]) == count);
  for (int n = 0; n < count; ++n) {
    if (kNhwcTiles[n][0] != a.config.rows || kNhwcTiles[n][1] != a.config.columns) continue;
    if (a.Whole()) return launches[n];
    return n == kNhwcSmallTile ? LaunchNhwc<32, 32, 2, 4, false> : nullptr;
  }
  return nullptr;
}

}  // namespace

const char* Check(const ConvNhwcF32Args& a) {
  const NhwcConfig& c = a.config;
  if (!a.x.data || !a.y.data || !a.weight || !a.bias) return "x, y, weight and bias expected";
  if (a.images < 1 || a.out_h < 1 || a.out_w < 1 || a.kernel_h < 1 || a.kernel_w < 1 || a.stride_h < 1 ||
      a.stride_w < 1 || a.dilation_h < 1 || a.dilation_w < 1 || a.groups < 1 || a.group_inputs < 1 ||
      a.group_outputs < 1)
    return "positive sizes expected";
  if (!FindNhwc(a)) return "a tile of NHWC_TILES, the smallest for groups that are no multiple of 4 channels, expected";
  if (int64_t{a.images} * a.out_h * a.out_w >= INT32_MAX / 2) return "fewer output pixels expected";
  if (int64_t{a.kernel_h} * a.kernel_w * (int64_t{a.group_inputs} + 3) >= INT32_MAX / 2) return "fewer taps expected";
  if (c.segments < 1 || c.segments > a.Steps()) return "1 segment to as many as there are steps expected";
  if (c.parallel != 0 && (c.parallel != 1 || c.segments == 1 || a.residual.data))
    return "parallel 0; or 1 with several segments and without a residual, expected";
  if (int64_t{a.Columns()} * a.groups * c.segments > kMaxBlocksY) return "fewer outputs or segments expected";
  if ((int64_t{a.groups} * a.group_outputs + kLineChannels) * c.segments >= INT32_MAX)
    return "fewer outputs or segments expected";
  return nullptr;
}
Status LaunchConvNhwcF32(const ConvNhwcF32Args& a, Stream stream) {
  return Check(a) ? kInvalidValue : FindNhwc(a)(a, stream);
}

}  // namespace hce::cuda
