// Steps that know what a lane is: images into lanes, halos, and changes of lanes.
#include <array>
#include <map>
#include <string>

#include "add_step.h"
#include "steps.h"

namespace hce {
namespace {

// Lanes of a map of h x w pixels per image, in a stage of `images` images.
void CheckGrid(const LaneGrid& g, int32_t h, int32_t w) {
  Require(g.images > 0 && g.images <= kTile && g.rows > 0 && g.columns > 0 && g.rows <= kTile && g.columns <= kTile &&
              g.images * g.rows * g.columns <= kTile,
          "lanes: at most 16 of them expected");
  Require(g.h > 0 && g.w > 0 && int64_t{g.rows} * g.h >= h && int64_t{g.columns} * g.w >= w,
          "lanes: blocks that cover the map expected");
}

void CheckImageGrid(const Program& program, const MapRef& y, const LaneGrid& grid, int lines) {
  CheckGrid(grid, program.image().h, program.image().w);
  Require(grid.images == program.stage_images(), "image: lanes for the images of the stage expected");
  program.Check("image", y, 0, grid.h, 0, grid.w, lines);
}

// Along one axis: the pixel of a block, from -before to size + after, that lies `shift` blocks on at pixel `from` of a block;
// bit n of `inside`: for block n it lies inside the map.
struct AxisPixel {
  int from, shift;
  uint32_t inside;
  bool own;  // a pixel of the block itself
};

AxisPixel OnAxis(int64_t pixel, int32_t size, int32_t blocks, int32_t extent) {
  const int64_t shift = pixel >= 0 ? pixel / size : -((size - 1 - pixel) / size);
  AxisPixel p{static_cast<int>(pixel - shift * size), static_cast<int>(shift), 0, shift == 0};
  for (int n = 0; n < blocks; ++n) {
    const int64_t at = int64_t{n} * size + pixel;
    if (at >= 0 && at < extent) p.inside |= 1u << n;
  }
  return p;
}

using LaneOrder = std::array<int32_t, kTile>;

LaneOrder Order(const LaneGrid& g, const AxisPixel& row, const AxisPixel& column) {
  LaneOrder order;
  order.fill(-1);
  for (int n = 0; n < g.images; ++n)
    for (int i = 0; i < g.rows; ++i)
      for (int j = 0; j < g.columns; ++j)
        if ((row.inside >> i & 1) && (column.inside >> j & 1))
          order[(n * g.rows + i) * g.columns + j] = (n * g.rows + i + row.shift) * g.columns + j + column.shift;
  return order;
}

// Offsets of the rows or columns of a whole map: pixel `at` lies in block at / size, `block_lanes` lanes further per block.
std::vector<int64_t> AxisOffsets(int32_t extent, int32_t size, int64_t stride, int32_t block_lanes) {
  std::vector<int64_t> offsets;
  for (int32_t at = 0; at < extent; ++at) offsets.push_back(at % size * stride + int64_t{at / size} * block_lanes * 4);
  return offsets;
}

}  // namespace

void AddLoadCodes(Program& program, MapRef y, LaneGrid grid) {
  Require(!program.float_images(), "load codes: uint8 images expected");
  CheckImageGrid(program, y, grid, (program.image().c + 3) / 4);
  AddStep(program, [=](Tile& tile) { tile.kernels->load_codes({tile.images, grid, At(tile, y)}); });
}

void AddLoadNormalized(Program& program, MapRef y, LaneGrid grid, std::vector<float> scale, std::vector<float> offset) {
  const size_t channels = program.image().c;
  CheckImageGrid(program, y, grid, program.image().c);
  Require(scale.size() == channels && offset.size() == channels, "normalize: one scale and offset per channel expected");
  const bool from_float = program.float_images();
  AddStep(program, [=, scale = std::move(scale), offset = std::move(offset)](Tile& tile) {
    tile.kernels->load_normalized({tile.images, grid, from_float, scale.data(), offset.data(), At(tile, y)});
  });
}

void AddLoadQuantized(Program& program, MapRef y, LaneGrid grid, float low, float multiplier) {
  Require(program.float_images(), "quantize input: float32 images expected");
  CheckImageGrid(program, y, grid, (program.image().c + 3) / 4);
  AddStep(program, [=](Tile& tile) { tile.kernels->load_quantized({tile.images, grid, low, multiplier, At(tile, y)}); });
}

void AddHalo(Program& program, HaloSpec spec) {
  const LaneGrid& g = spec.grid;
  Require(spec.top >= 0 && spec.left >= 0 && spec.bottom >= 0 && spec.right >= 0, "halo: widths of at least 0 expected");
  Require(static_cast<int64_t>(spec.pattern.size()) * kLineBytes == spec.y.pixel, "halo: one word per line expected");
  CheckGrid(g, spec.h, spec.w);
  const int lines = static_cast<int>(spec.pattern.size());
  program.Check("halo", spec.y, -int64_t{spec.top}, int64_t{g.h} + spec.bottom, -int64_t{spec.left}, int64_t{g.w} + spec.right, lines);
  std::vector<LaneOrder> orders;
  std::map<LaneOrder, int64_t> known;
  struct Span {
    int64_t to, from, order;  // order: -1 is padding in every lane
    int32_t pixels;
  };
  std::vector<Span> spans;
  std::vector<AxisPixel> columns;
  for (int64_t c = -int64_t{spec.left}; c < int64_t{g.w} + spec.right; ++c) columns.push_back(OnAxis(c, g.w, g.columns, spec.w));
  const uint32_t all_rows = (1u << g.rows) - 1, all_columns = (1u << g.columns) - 1;
  for (int64_t r = -int64_t{spec.top}; r < int64_t{g.h} + spec.bottom; ++r) {
    const AxisPixel row = OnAxis(r, g.h, g.rows, spec.h);
    bool adjacent = false;  // the last span ends where the next pixel begins
    for (size_t k = 0; k < columns.size(); ++k) {
      const AxisPixel& column = columns[k];
      if (row.own && column.own && row.inside == all_rows && column.inside == all_columns) {
        adjacent = false;
        continue;
      }
      int64_t order = -1;
      if (row.inside && column.inside) {
        const auto [entry, added] = known.try_emplace(Order(g, row, column), static_cast<int64_t>(orders.size()));
        if (added) orders.push_back(entry->first);
        order = entry->second;
      }
      const int64_t to = r * spec.y.row + (static_cast<int64_t>(k) - spec.left) * spec.y.pixel;
      const int64_t from = row.from * spec.y.row + column.from * spec.y.pixel;
      if (adjacent && spans.back().order == order &&
          (order < 0 || spans.back().from + spans.back().pixels * spec.y.pixel == from))
        ++spans.back().pixels;
      else
        spans.push_back({to, from, order, 1});
      adjacent = true;
    }
  }
  std::vector<HaloSpan> final_spans;
  for (const Span& s : spans)
    final_spans.push_back({s.to, s.from, s.order < 0 ? nullptr : orders[s.order].data(), s.pixels});
  // The orders move into the step as a whole, so that the spans' pointers to them stay.
  AddStep(program, [y = spec.y, lines, spans = std::move(final_spans), orders = std::move(orders),
                    pattern = std::move(spec.pattern)](Tile& tile) {
    tile.kernels->halo({tile.arena + y.offset, lines, pattern.data(), spans.data(), static_cast<int64_t>(spans.size())});
  });
}

void AddRegroup(Program& program, RegroupSpec spec) {
  const LaneGrid &from = spec.from, &to = spec.to;
  Require(spec.h > 0 && spec.w > 0 && spec.lines > 0, "regroup: a map expected");
  CheckGrid(from, spec.h, spec.w);
  CheckGrid(to, spec.h, spec.w);
  Require(from.images == program.stage_images() && to.images % from.images == 0, "regroup: whole groups of the stage expected");
  program.Check("regrouped input", spec.x, 0, from.h, 0, from.w, spec.lines);
  program.Check("regrouped output", spec.y, 0, to.h, 0, to.w, spec.lines);
  const auto offsets = [&](const MapRef& map, const LaneGrid& g) {
    return std::pair{AxisOffsets(spec.h, g.h, map.row, g.columns), AxisOffsets(spec.w, g.w, map.pixel, 1)};
  };
  const bool whole = to.rows * to.h == spec.h && to.columns * to.w == spec.w && to.images * to.rows * to.columns == kTile;
  AddStep(program, [spec, whole, x = offsets(spec.x, from), y = offsets(spec.y, to)](Tile& tile) {
    const LaneGrid &g = spec.from, &t = spec.to;
    const int first = static_cast<int>(tile.offset % t.images);
    // What no image fills is zero, not what the arena held.
    if (first == 0 && (!whole || tile.left < t.images)) tile.kernels->fill({At(tile, spec.y), {t.h, t.w, spec.lines}, 0});
    const int64_t from_image = int64_t{g.rows} * g.columns * 4, to_image = int64_t{t.rows} * t.columns * 4;
    tile.kernels->regroup({tile.arena + spec.x.offset, tile.arena + spec.y.offset + first * to_image, x.first.data(),
                           x.second.data(), y.first.data(), y.second.data(), from_image, to_image, spec.h, spec.w,
                           tile.images.count, spec.lines});
  });
}

}  // namespace hce
