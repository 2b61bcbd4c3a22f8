// Steps of float convolutions and linear layers: direct, depthwise, Winograd, and with channels in lanes.
#include "conv_parts.h"

namespace hce {
namespace {

ConvF32Args RunArgs(const ConvF32Spec& spec, const Tile& tile) {
  return {Geometry(spec.shape, spec.blocks), FirstTap(tile, spec.x, spec.shape), spec.weight.get(), spec.bias.data(),
          At(tile, spec.y), ReadAt(tile, spec.residual), spec.low, spec.high};
}

void AddDepthwiseF32(Program& program, ConvF32Spec spec) {
  const ConvShape& s = spec.shape;
  Require(s.in_lines == s.out_channels && s.kernel_h == 3 && s.kernel_w == 3 && s.dilation_h == 1 && s.dilation_w == 1 &&
              s.stride_h == s.stride_w && s.stride_h <= 2,
          "depthwise: a 3x3 kernel of stride 1 or 2 for every input channel expected");
  Require(spec.weight.size == size_t{9} * s.out_channels, "depthwise: 9 weights per channel expected");
  program.AddWork(int64_t{s.out_channels} * 9 * s.out_h * s.out_w);
  AddSplitStep(program, [spec = std::move(spec)](Tile& tile) {
    const int64_t first = tile.part.Begin(spec.shape.out_channels), end = tile.part.End(spec.shape.out_channels);
    if (first == end) return;
    DepthwiseF32Args a{RunArgs(spec, tile), static_cast<int32_t>(end - first)};
    a.conv.x.data += first * kLineBytes;
    a.conv.weight += first * 9;
    SkipLines(first, a.conv);
    tile.kernels->depthwise_f32(a);
  });
}

}  // namespace

void AddConvF32(Program& program, ConvF32Spec spec) {
  const ConvShape& s = spec.shape;
  Require(spec.bias.size() == static_cast<size_t>(s.out_channels), "convolution: one bias per channel expected");
  if (spec.residual.present()) program.Check("residual", spec.residual, 0, s.out_h, 0, s.out_w, s.out_channels);
  CheckConvMaps(program, s, s.out_channels, spec.x, spec.y);
  if (spec.blocks.empty()) {
    AddDepthwiseF32(program, std::move(spec));
    return;
  }
  if (!spec.scratch.present()) {
    for (const ConvBlock& b : spec.blocks)
      Require(b.count <= program.kernels().channels_f32, "convolution: a block wider than this instruction set's kernel");
    CheckBlocks(s, spec.blocks, spec.weight.size, 1);
    program.AddWork(Products(s, spec.blocks));
    AddSplitStep(program, [spec = std::move(spec)](Tile& tile) {
      ConvF32Args a = RunArgs(spec, tile);
      if (TakePart(tile.part, 1, a)) tile.kernels->conv_f32(a);
    });
    return;
  }
  Require(s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 &&
              s.dilation_w == 1,
          "winograd: a 3x3 kernel of stride 1 expected");
  Require(spec.weight.size == size_t{36} * s.in_lines * s.out_channels, "winograd: 36 C OC weights expected");
  const int64_t rows = (int64_t{s.out_h} + 3) / 4 * 4 + 2, columns = (int64_t{s.out_w} + 3) / 4 * 4 + 2;
  program.Check("winograd input", spec.x, -s.pad_h, rows - s.pad_h, -s.pad_w, columns - s.pad_w, s.in_lines);
  int channel = 0;
  for (const ConvBlock& b : spec.blocks) {
    Require(b.channel == channel && b.count > 0 && b.count <= program.kernels().channels_winograd &&
                b.weight == int64_t{36} * s.in_lines * b.channel,
            "winograd: adjacent blocks that this instruction set's kernel can hold expected");
    channel += b.count;
  }
  Require(channel == s.out_channels, "winograd: blocks that cover all output channels expected");
  program.Check("winograd scratch", spec.scratch, 0, 1, 0, 1, WinogradScratchLines(s.in_lines));
  program.AddWork(Products(s, spec.blocks) / 3);
  AddSplitStep(program, [spec = std::move(spec)](Tile& tile) {
    ConvF32Args a = RunArgs(spec, tile);
    if (TakePart(tile.part, 4, a))
      tile.kernels->winograd_f32({a, spec.shape.in_lines, reinterpret_cast<float*>(tile.scratch + spec.scratch.offset)});
  });
}

void AddDenseF32(Program& program, DenseF32Spec spec) {
  Require(spec.channels > 0 && spec.out_channels > 0, "dense: channels expected");
  const int64_t blocks = (int64_t{spec.out_channels} + kDenseBlock - 1) / kDenseBlock;
  Require(static_cast<int64_t>(spec.bias.size()) == blocks * kDenseBlock &&
              static_cast<int64_t>(spec.weight.size) == blocks * kDenseBlock * spec.channels,
          "dense: weights and bias of whole blocks expected");
  program.Check("dense input", spec.x, 0, 1, 0, 1, spec.channels);
  program.Check("dense output", spec.y, 0, 1, 0, 1, spec.out_channels);
  AddStep(program, [spec = std::move(spec)](Tile& tile) {
    tile.kernels->dense_f32({reinterpret_cast<const float*>(tile.arena + spec.x.offset),
                             reinterpret_cast<float*>(tile.arena + spec.y.offset), spec.weight.get(), spec.bias.data(),
                             spec.channels, spec.out_channels, tile.images.count, spec.low, spec.high});
  });
}

}  // namespace hce
