// Steps that pool, add, recode and move maps, and the logits' way out.
#include "steps.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "add_step.h"

namespace hce {

int32_t HalfMultiplier(const Recode& r) {
  if (r.zero_point_in != 0 || r.zero_point != 0 || r.qmin != 0) return 0;
  for (int32_t half = r.k / 2 < 4 ? 1 : r.k / 2 - 3; half <= r.k / 2 + 4 && half < (1 << 15); ++half) {
    bool same = true;
    for (int32_t code = 0; code < 256 && same; ++code)
      same = std::min((code * half + (1 << 14)) >> 15, r.qmax) == std::min((code * r.k + (1 << 15)) >> 16, r.qmax);
    if (same) return half;
  }
  return 0;
}

void AddPool(Program& program, PoolKind kind, PoolArgs args, MapRef x, MapRef y, bool halo) {
  Require(args.kernel_h > 0 && args.kernel_w > 0 && args.stride_h > 0 && args.stride_w > 0 &&
              args.pad_h >= 0 && args.pad_w >= 0 && args.pad_h <= args.kernel_h / 2 && args.pad_w <= args.kernel_w / 2 &&
              int64_t{args.kernel_h} * args.kernel_w <= std::numeric_limits<int32_t>::max(),
          "pool: a window with at most half of it padding expected");
  int32_t top = 0, left = 0;
  if (halo) {  // a larger map, which begins in the halo and has no padding
    std::swap(top, args.pad_h);
    std::swap(left, args.pad_w);
    const int64_t rows = int64_t{args.out.h - 1} * args.stride_h + args.kernel_h;
    const int64_t columns = int64_t{args.out.w - 1} * args.stride_w + args.kernel_w;
    program.Check("pool halo", x, -top, rows - top, -left, columns - left, args.out.lines);
    args.in_h = static_cast<int32_t>(rows);
    args.in_w = static_cast<int32_t>(columns);
    x.offset -= top * x.row + left * x.pixel;
  }
  Require(int64_t{args.out.h - 1} * args.stride_h - args.pad_h < args.in_h &&
              int64_t{args.out.w - 1} * args.stride_w - args.pad_w < args.in_w,
          "pool: windows that touch the map expected");
  program.Check("pool input", x, 0, args.in_h, 0, args.in_w, args.out.lines);
  program.Check("pool output", y, 0, args.out.h, 0, args.out.w, args.out.lines);
  AddStep(program, [=](Tile& tile) {
    PoolArgs a = args;
    a.x = ReadAt(tile, x);
    a.y = At(tile, y);
    switch (kind) {
      case PoolKind::kMaxF32: return tile.kernels->max_pool_f32(a);
      case PoolKind::kMaxU8: return tile.kernels->max_pool_u8(a);
      case PoolKind::kAvgF32: return tile.kernels->avg_pool_f32(a);
      case PoolKind::kAvgU8: return tile.kernels->avg_pool_u8(a);
    }
  });
}

void AddAddF32(Program& program, AddF32Args args, MapRef a, MapRef b, MapRef y) {
  for (const MapRef& map : {a, y}) program.Check("add", map, 0, args.extent.h, 0, args.extent.w, args.extent.lines);
  if (b.present()) program.Check("add", b, 0, args.extent.h, 0, args.extent.w, args.extent.lines);
  AddStep(program, [=](Tile& tile) {
    AddF32Args run = args;
    run.a = ReadAt(tile, a);
    run.b = ReadAt(tile, b);
    run.y = At(tile, y);
    tile.kernels->add_f32(run);
  });
}

void AddAddU8(Program& program, AddU8Args args, MapRef a, MapRef b, MapRef y) {
  for (const MapRef& map : {a, b, y}) program.Check("add", map, 0, args.extent.h, 0, args.extent.w, args.extent.lines);
  AddStep(program, [=](Tile& tile) {
    AddU8Args run = args;
    run.a = ReadAt(tile, a);
    run.b = ReadAt(tile, b);
    run.y = At(tile, y);
    tile.kernels->add_u8(run);
  });
}

void AddRecode(Program& program, RecodeArgs args, MapRef x, MapRef y) {
  for (const MapRef& map : {x, y}) program.Check("recode", map, 0, args.extent.h, 0, args.extent.w, args.extent.lines);
  args.recode.half = HalfMultiplier(args.recode);
  AddStep(program, [=](Tile& tile) {
    tile.kernels->recode_u8({ReadAt(tile, x), At(tile, y), args.extent, args.recode});
  });
}

void AddCopy(Program& program, CopyArgs args, MapRef x, MapRef y, int32_t in_h, int32_t in_w) {
  const int per_line = args.codes ? 4 : 1;
  Require(args.row_start >= 0 && args.column_start >= 0 && args.row_step >= 1 && args.column_step >= 1 &&
              args.row_start + int64_t{args.out_h - 1} * args.row_step < in_h &&
              args.column_start + int64_t{args.out_w - 1} * args.column_step < in_w,
          "copy: pixels inside the input expected");
  Require(args.channels > 0 && args.channel_to >= 0 &&
              int64_t{args.channel_to} + args.channels <= int64_t{args.out_lines} * per_line,
          "copy: channels inside the output expected");
  program.Check("copy input", x, 0, in_h, 0, in_w, (int64_t{args.channels} + per_line - 1) / per_line);
  program.Check("copy output", y, 0, args.out_h, 0, args.out_w, args.out_lines);
  AddStep(program, [=](Tile& tile) {
    CopyArgs a = args;
    a.x = ReadAt(tile, x);
    a.y = At(tile, y);
    tile.kernels->copy(a);
  });
}

void AddFlatten(Program& program, MapRef x, MapRef y, int32_t h, int32_t w, int32_t channels, bool codes) {
  const int64_t per_line = codes ? 4 : 1;
  Require(channels > 0, "flatten: at least one channel expected");
  program.Check("flatten input", x, 0, h, 0, w, (channels + per_line - 1) / per_line);
  program.Check("flatten output", y, 0, 1, 0, 1, (int64_t{channels} * h * w + per_line - 1) / per_line);
  AddStep(program, [=](Tile& tile) {
    tile.kernels->flatten({ReadAt(tile, x), tile.arena + y.offset, h, w, channels, codes});
  });
}

void AddStoreLogits(Program& program, MapRef x, int output) {
  Require(output >= 0 && output < static_cast<int>(program.outputs().size()), "store: a registered output expected");
  const int classes = program.outputs()[output];
  program.Check("logits", x, 0, 1, 0, 1, classes);
  AddStep(program, [=](Tile& tile) {
    float* out = tile.logits[output] + (tile.first + tile.offset) * classes;
    tile.kernels->store_logits({reinterpret_cast<const float*>(tile.arena + x.offset), out, classes, tile.images.count});
    for (int n = 0; n < tile.images.count; ++n)
      if (tile.non_finite[tile.offset + n])
        for (int k = 0; k < classes; ++k) out[int64_t{n} * classes + k] = std::numeric_limits<float>::quiet_NaN();
  });
}

}  // namespace hce
