// Steps that know what a lane is: images into lanes, halos, and changes of lanes.
#include <algorithm>
#include <array>
#include <limits>
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

using LaneOrder = std::array<int32_t, kTile>;

// Spans as they are found, pixel by pixel; orders are stored once, and [groups][16] each.
class Spans {
 public:
  explicit Spans(int64_t pixel) : pixel_(pixel) {}

  // Pixel `to` gets lanes of `from`; all lanes -1: padding.
  void Add(int64_t to, int64_t from, const LaneOrder& order, bool keep) {
    int64_t index = -1;
    for (int32_t lane : order)
      if (lane >= 0) index = 0;
    if (index == 0) {
      const auto [entry, added] = known_.try_emplace(order, static_cast<int64_t>(orders_.size()));
      if (added) orders_.push_back(order);
      index = entry->second;
    }
    if (!spans_.empty()) {
      Span& last = spans_.back();
      const int64_t bytes = last.pixels * pixel_;
      if (last.order == index && last.keep == keep && last.to + bytes == to && (index < 0 || last.from + bytes == from)) {
        ++last.pixels;
        return;
      }
    }
    spans_.push_back({to, from, index, 1, keep});
  }

  // A step that moves lanes of x to y. Lanes of group g are those of group 0, `group_lanes` further each.
  void AddStep(Program& program, const MapRef& x, const MapRef& y, std::vector<uint32_t> pattern, int groups,
               int group_images, int group_lanes) {
    std::vector<int32_t> orders(orders_.size() * groups * kTile, -1);
    for (size_t k = 0; k < orders_.size(); ++k)
      for (int g = 0; g < groups; ++g)
        for (int n = 0; n + g * group_lanes < kTile; ++n)
          if (orders_[k][n] >= 0) orders[(k * groups + g) * kTile + n + g * group_lanes] = orders_[k][n];
    std::vector<LaneSpan> spans;
    for (const Span& s : spans_)
      spans.push_back({s.to, s.from, s.order < 0 ? nullptr : orders.data() + s.order * groups * kTile, s.pixels, s.keep});
    // The orders move into the step as a whole, so that the spans' pointers to them stay.
    // One thread runs it whole: pixels of the last blocks that lie beyond the map are written where others are read.
    hce::AddStep(program, [=, spans = std::move(spans), orders = std::move(orders), pattern = std::move(pattern)](Tile& tile) {
      const int32_t group = tile.offset / group_images % groups;
      tile.kernels->move_lanes({tile.arena + x.offset, tile.arena + y.offset, static_cast<int32_t>(pattern.size()), pattern.data(),
                                spans.data(), static_cast<int64_t>(spans.size()), group, group > 0});
    });
  }

 private:
  struct Span {
    int64_t to, from, order;  // order -1: padding
    int32_t pixels;
    bool keep;
  };

  int64_t pixel_;
  std::vector<Span> spans_;
  std::vector<LaneOrder> orders_;
  std::map<LaneOrder, int64_t> known_;
};

// Along one axis: where pixel `at` of the blocks of one arrangement lies in the blocks of another, which has the same extent.
// For each block n the pixel, and the block in which it is; -1 outside the map.
struct AxisSource {
  std::array<int64_t, kTile> pixel, block;
};

AxisSource OnAxis(int64_t at, int32_t to_size, int32_t to_blocks, int32_t from_size, int32_t extent) {
  AxisSource source;
  source.pixel.fill(-1);
  source.block.fill(-1);
  for (int n = 0; n < to_blocks; ++n) {
    const int64_t whole = int64_t{n} * to_size + at;
    if (whole < 0 || whole >= extent) continue;
    source.pixel[n] = whole % from_size;
    source.block[n] = whole / from_size;
  }
  return source;
}

// Offsets of the rows or columns of a whole map: `block_lanes` lanes more for each block, which has `size` of them.
std::vector<int64_t> AxisOffsets(int32_t extent, int32_t size, int64_t stride, int32_t block_lanes) {
  std::vector<int64_t> offsets;
  for (int32_t at = 0; at < extent; ++at) offsets.push_back(at % size * stride + int64_t{at / size} * block_lanes * 4);
  return offsets;
}

// The lanes of `to` whose source is pixel (row, column) of a block of `from`, and the lanes where it is.
LaneOrder Order(const LaneGrid& from, const LaneGrid& to, const AxisSource& rows, const AxisSource& columns, int64_t row,
                int64_t column) {
  LaneOrder order;
  order.fill(-1);
  for (int n = 0; n < from.images; ++n)
    for (int i = 0; i < to.rows; ++i)
      for (int j = 0; j < to.columns; ++j)
        if (rows.pixel[i] == row && columns.pixel[j] == column)
          order[(n * to.rows + i) * to.columns + j] =
              static_cast<int32_t>((n * from.rows + rows.block[i]) * from.columns + columns.block[j]);
  return order;
}

// The distinct pixels of an axis, in the order of its blocks.
std::vector<int64_t> Distinct(const AxisSource& source) {
  std::vector<int64_t> pixels;
  for (int64_t pixel : source.pixel)
    if (pixel >= 0 && std::find(pixels.begin(), pixels.end(), pixel) == pixels.end()) pixels.push_back(pixel);
  return pixels;
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
  program.Check("halo", spec.y, -int64_t{spec.top}, int64_t{g.h} + spec.bottom, -int64_t{spec.left}, int64_t{g.w} + spec.right,
                static_cast<int64_t>(spec.pattern.size()));
  std::vector<AxisSource> columns;
  for (int64_t c = -int64_t{spec.left}; c < int64_t{g.w} + spec.right; ++c)
    columns.push_back(OnAxis(c, g.w, g.columns, g.w, spec.w));
  const auto full = [](const AxisSource& source, int blocks) { return source.pixel[0] >= 0 && source.pixel[blocks - 1] >= 0; };
  Spans spans(spec.y.pixel);
  for (int64_t r = -int64_t{spec.top}; r < int64_t{g.h} + spec.bottom; ++r) {
    const AxisSource row = OnAxis(r, g.h, g.rows, g.h, spec.h);
    for (int64_t c = -int64_t{spec.left}; c < int64_t{g.w} + spec.right; ++c) {
      const AxisSource& column = columns[c + spec.left];
      const bool own = 0 <= r && r < g.h && 0 <= c && c < g.w;
      if (own && full(row, g.rows) && full(column, g.columns)) continue;  // inside the map in every lane
      // All blocks have one size, so the source is the same pixel in every lane that has one.
      const int64_t from_row = ((r % g.h) + g.h) % g.h, from_column = ((c % g.w) + g.w) % g.w;
      spans.Add(r * spec.y.row + c * spec.y.pixel, from_row * spec.y.row + from_column * spec.y.pixel,
                Order(g, g, row, column, from_row, from_column), false);
    }
  }
  spans.AddStep(program, spec.y, spec.y, std::move(spec.pattern), 1, g.images, 0);
}

void AddRegroup(Program& program, RegroupSpec spec) {
  const LaneGrid &from = spec.from, &to = spec.to;
  Require(spec.h > 0 && spec.w > 0 && spec.lines > 0, "regroup: a map expected");
  CheckGrid(from, spec.h, spec.w);
  CheckGrid(to, spec.h, spec.w);
  Require(from.images == program.stage_images() && to.images % from.images == 0, "regroup: whole groups of the stage expected");
  Require(spec.x.pixel == spec.lines * kLineBytes && spec.y.pixel == spec.x.pixel, "regroup: maps of these lines expected");
  program.Check("regrouped input", spec.x, 0, from.h, 0, from.w, spec.lines);
  program.Check("regrouped output", spec.y, 0, to.h, 0, to.w, spec.lines);
  std::vector<AxisSource> columns;
  for (int32_t c = 0; c < to.w; ++c) columns.push_back(OnAxis(c, to.w, to.columns, from.w, spec.w));
  Spans spans(spec.y.pixel);
  for (int32_t r = 0; r < to.h; ++r) {
    const AxisSource row = OnAxis(r, to.h, to.rows, from.h, spec.h);
    for (int32_t c = 0; c < to.w; ++c) {
      const int64_t at = r * spec.y.row + c * spec.y.pixel;
      bool keep = false;  // the first source also writes zeros where no image or no pixel is
      for (int64_t from_row : Distinct(row))
        for (int64_t from_column : Distinct(columns[c])) {
          spans.Add(at, from_row * spec.x.row + from_column * spec.x.pixel,
                    Order(from, to, row, columns[c], from_row, from_column), keep);
          keep = true;
        }
      if (!keep) {
        LaneOrder none;
        none.fill(-1);
        spans.Add(at, 0, none, false);
      }
    }
  }
  spans.AddStep(program, spec.x, spec.y, std::vector<uint32_t>(spec.lines, 0), to.images / from.images, from.images,
                from.images * to.rows * to.columns);
}

void AddAverages(Program& program, AveragesSpec spec) {
  const LaneGrid& g = spec.grid;
  Require(spec.h > 0 && spec.w > 0 && spec.lines > 0 && int64_t{spec.h} * spec.w <= std::numeric_limits<int32_t>::max(),
          "averages: a map expected");
  CheckGrid(g, spec.h, spec.w);
  Require(g.images == program.stage_images(), "averages: lanes for the images of the stage expected");
  program.Check("averages input", spec.x, 0, g.h, 0, g.w, spec.lines);
  program.Check("averages output", spec.y, 0, 1, 0, 1, spec.lines);
  AddStep(program, [spec, rows = AxisOffsets(spec.h, g.h, spec.x.row, g.columns),
                    columns = AxisOffsets(spec.w, g.w, spec.x.pixel, 1)](Tile& tile) {
    const AveragesArgs args{tile.arena + spec.x.offset, tile.arena + spec.y.offset, rows.data(), columns.data(),
                            int64_t{spec.grid.rows} * spec.grid.columns * 4, spec.h, spec.w, tile.images.count, spec.lines,
                            spec.zero_point_in, spec.multiplier, spec.range};
    (spec.codes ? tile.kernels->averages_u8 : tile.kernels->averages_f32)(args);
  });
}

}  // namespace hce
