// What the steps of convolutions share: addresses that are checked, and the part of one thread where several share a tile.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "add_step.h"
#include "steps.h"

namespace hce {

inline void CheckConvMaps(const Program& program, const ConvShape& s, int out_lines, const MapRef& x, const MapRef& y) {
  Require(s.out_h > 0 && s.out_w > 0 && s.kernel_h > 0 && s.kernel_w > 0 && s.stride_h > 0 && s.stride_w > 0 &&
              s.dilation_h > 0 && s.dilation_w > 0 && s.pad_h >= 0 && s.pad_w >= 0,
          "convolution: positive sizes expected");
  program.Check("convolution input", x, -s.pad_h,
                int64_t{s.out_h - 1} * s.stride_h + int64_t{s.kernel_h - 1} * s.dilation_h - s.pad_h + 1, -s.pad_w,
                int64_t{s.out_w - 1} * s.stride_w + int64_t{s.kernel_w - 1} * s.dilation_w - s.pad_w + 1, s.in_lines);
  program.Check("convolution output", y, 0, s.out_h, 0, s.out_w, out_lines);
}

inline void CheckBlocks(const ConvShape& s, const std::vector<ConvBlock>& blocks, size_t weights, int lanes_per_weight) {
  Require(!blocks.empty(), "convolution: at least one block of output channels expected");
  for (const ConvBlock& b : blocks) {
    const __int128 taps = __int128{s.kernel_h} * s.kernel_w * b.lines * b.count * lanes_per_weight;
    Require(b.count > 0 && b.channel >= 0 && int64_t{b.channel} + b.count <= s.out_channels && b.line >= 0 && b.lines > 0 &&
                int64_t{b.line} + b.lines <= s.in_lines && b.weight >= 0 && b.weight + taps <= static_cast<int64_t>(weights),
            "convolution: a block outside its channels or weights");
  }
}

inline ConvGeometry Geometry(const ConvShape& s, const std::vector<ConvBlock>& blocks) {
  return {s.out_h, s.out_w, s.kernel_h, s.kernel_w, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w,
          blocks.data(), static_cast<int32_t>(blocks.size())};
}

// Multiply-accumulates of whole registers, for Program::AddWork.
inline int64_t Products(const ConvShape& s, const std::vector<ConvBlock>& blocks) {
  int64_t lines = 0;
  for (const ConvBlock& b : blocks) lines += int64_t{b.lines} * b.count;
  return lines * s.kernel_h * s.kernel_w * s.out_h * s.out_w;
}

// The input view moved to the pixel of tap (0, 0) of output (0, 0).
inline ConstView FirstTap(const Tile& tile, const MapRef& x, const ConvShape& s) {
  ConstView view = ReadAt(tile, x);
  view.data -= s.pad_h * x.row + s.pad_w * x.pixel;
  return view;
}

// Rows [first, end) of a convolution's output.
template <class Args>
void TakeRows(int64_t first, int64_t end, Args& a) {
  ConvGeometry& g = a.geometry;
  a.x.data += first * g.stride_h * a.x.row;
  const auto move = [&](auto& view) {
    if (view.data) view.data += first * view.row;
  };
  move(a.y);
  move(a.residual);
  if constexpr (std::is_same_v<Args, ConvU8Args>) move(a.y2);
  g.out_h = static_cast<int32_t>(end - first);
}

// Output lines from the first-th on, for kernels that take all lines from where their pointers say.
template <class Args>
void SkipLines(int64_t first, Args& a) {
  constexpr int kChannels = std::is_same_v<Args, ConvU8Args> ? 4 : 1;
  const auto move = [&](auto& view) {
    if (view.data) view.data += first * kLineBytes;
  };
  move(a.y);
  move(a.residual);
  a.bias += first * kChannels;
  if constexpr (kChannels == 4) {
    move(a.y2);
    a.multiplier += first * kChannels;
  }
}

// Whether `part.count` threads share `strips` more evenly than `blocks`.
inline bool StripsAreEven(const Part& part, int64_t strips, int64_t blocks) {
  const auto longest = [&](int64_t size) { return (size + part.count - 1) / part.count * (strips * blocks / size); };
  return longest(strips) <= longest(blocks);
}

// Narrows a convolution to the rows, `multiple` of them at a time, or to the blocks of channels that are `part`'s, whichever
// share the work more evenly; false if nothing is. Rows, if both do: they share the inputs as well.
template <class Args>
bool TakePart(const Part& part, int multiple, Args& a) {
  if (part.count == 1) return true;
  ConvGeometry& g = a.geometry;
  const int64_t strips = (g.out_h + multiple - 1) / multiple;
  if (StripsAreEven(part, strips, g.block_count)) {
    TakeRows(part.Begin(strips) * multiple, std::min<int64_t>(part.End(strips) * multiple, g.out_h), a);
    return g.out_h > 0;
  }
  const int64_t first = part.Begin(g.block_count), end = part.End(g.block_count);
  g.blocks += first;
  g.block_count = static_cast<int32_t>(end - first);
  return g.block_count > 0;
}

}  // namespace hce
