#include "steps.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "add_step.h"

namespace hce {
namespace {

void CheckConvMaps(const Program& program, const ConvShape& s, int out_lines, const MapRef& x, const MapRef& y) {
  Require(s.out_h > 0 && s.out_w > 0 && s.kernel_h > 0 && s.kernel_w > 0 && s.stride_h > 0 && s.stride_w > 0 &&
              s.dilation_h > 0 && s.dilation_w > 0 && s.pad_h >= 0 && s.pad_w >= 0,
          "convolution: positive sizes expected");
  program.Check("convolution input", x, -s.pad_h,
                int64_t{s.out_h - 1} * s.stride_h + int64_t{s.kernel_h - 1} * s.dilation_h - s.pad_h + 1, -s.pad_w,
                int64_t{s.out_w - 1} * s.stride_w + int64_t{s.kernel_w - 1} * s.dilation_w - s.pad_w + 1, s.in_lines);
  program.Check("convolution output", y, 0, s.out_h, 0, s.out_w, out_lines);
}

void CheckBlocks(const ConvShape& s, const std::vector<ConvBlock>& blocks, size_t weights, int lanes_per_weight) {
  Require(!blocks.empty(), "convolution: at least one block of output channels expected");
  for (const ConvBlock& b : blocks) {
    const __int128 taps = __int128{s.kernel_h} * s.kernel_w * b.lines * b.count * lanes_per_weight;
    Require(b.count > 0 && b.channel >= 0 && int64_t{b.channel} + b.count <= s.out_channels && b.line >= 0 && b.lines > 0 &&
                int64_t{b.line} + b.lines <= s.in_lines && b.weight >= 0 && b.weight + taps <= static_cast<int64_t>(weights),
            "convolution: a block outside its channels or weights");
  }
}

ConvGeometry Geometry(const ConvShape& s, const std::vector<ConvBlock>& blocks) {
  return {s.out_h, s.out_w, s.kernel_h, s.kernel_w, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w,
          blocks.data(), static_cast<int32_t>(blocks.size())};
}

// Multiply-accumulates of whole registers, for Program::AddWork.
int64_t Products(const ConvShape& s, const std::vector<ConvBlock>& blocks) {
  int64_t lines = 0;
  for (const ConvBlock& b : blocks) lines += int64_t{b.lines} * b.count;
  return lines * s.kernel_h * s.kernel_w * s.out_h * s.out_w;
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
bool StripsAreEven(const Part& part, int64_t strips, int64_t blocks) {
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

// The input view moved to the pixel of tap (0, 0) of output (0, 0).
ConstView FirstTap(const Tile& tile, const MapRef& x, const ConvShape& s) {
  ConstView view = ReadAt(tile, x);
  view.data -= s.pad_h * x.row + s.pad_w * x.pixel;
  return view;
}

int64_t ChunkBytes(WeightStorage storage) {
  return storage == WeightStorage::kS8 ? 64 : storage == WeightStorage::kS4 ? 32 : 24;
}

// Recode::half: k / 2 or a neighbour that gives the same code for all 256 bytes, which one multiplication with rounding then
// yields; 0 if there is none.
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

// `chunks` chunks from the first-th one, unpacked to `room` unless they are bytes already.
const int8_t* Unpack(const ConvU8Spec& spec, const Tile& tile, int64_t first, int64_t chunks, int8_t* room) {
  const uint8_t* packed = spec.packed.get() + first * ChunkBytes(spec.storage);
  if (spec.storage == WeightStorage::kS8) return reinterpret_cast<const int8_t*>(packed);
  (spec.storage == WeightStorage::kS4 ? tile.kernels->unpack_s4 : tile.kernels->unpack_s3)(packed, room, chunks);
  return room;
}

ConvU8Args RunArgs(const ConvU8Spec& spec, const Tile& tile, const int8_t* weights) {
  ConvU8Args a{};
  a.x = FirstTap(tile, spec.x, spec.shape);
  a.weight = weights;
  a.bias = spec.bias.data();
  a.multiplier = spec.multiplier.data();
  a.pair_sums = spec.pair_sums;
  a.fits_int32 = spec.fits_int32;
  a.range = spec.range;
  if (!spec.offset.empty()) {
    a.logits = reinterpret_cast<float*>(tile.arena + spec.y.offset);
    a.offset = spec.offset.data();
  } else {
    a.y = At(tile, spec.y);
  }
  if (spec.residual) {
    a.residual = ReadAt(tile, spec.residual->map);
    a.residual_multiplier = spec.residual->multiplier;
    a.residual_zero_point = spec.residual->zero_point;
  }
  if (spec.recoded) {
    a.y2 = At(tile, spec.recoded->map);
    a.recode = spec.recoded->recode;
  }
  return a;
}

ConvF32Args RunArgs(const ConvF32Spec& spec, const Tile& tile) {
  return {Geometry(spec.shape, spec.blocks), FirstTap(tile, spec.x, spec.shape), spec.weight.get(), spec.bias.data(),
          At(tile, spec.y), ReadAt(tile, spec.residual), spec.low, spec.high};
}

// Layers without blocks: a line of the output reads the same line of the input alone.
void AddDepthwiseU8(Program& program, ConvU8Spec spec, int64_t chunks) {
  const ConvShape& s = spec.shape;
  const int sets = DepthwiseSets(s.kernel_h), shifts = DepthwiseShifts(s.kernel_h, s.stride_h, s.dilation_h);
  Require(int64_t{s.in_lines} * 4 == s.out_channels && spec.offset.empty(), "depthwise: as many output as input lines expected");
  Require(sets * ((s.kernel_w - 1) * int64_t{s.dilation_w} + 1) <= kDepthwiseColumns, "depthwise: a narrower window expected");
  Require(__int128{s.in_lines} * sets * shifts * s.kernel_w * 16 <= chunks * 64, "depthwise: weights for every channel expected");
  program.AddWork(int64_t{s.in_lines} * 4 * sets * s.kernel_w * s.out_h * s.out_w);
  AddSplitStep(program, [spec = std::move(spec), chunks, sets, shifts](Tile& tile) {
    const int64_t first = tile.part.Begin(spec.shape.in_lines), end = tile.part.End(spec.shape.in_lines);
    if (first == end) return;
    DepthwiseU8Args a{RunArgs(spec, tile, Unpack(spec, tile, 0, chunks, tile.weights)), static_cast<int32_t>(end - first), sets,
                      shifts};
    a.conv.geometry = Geometry(spec.shape, spec.blocks);
    a.conv.x.data += first * kLineBytes;
    a.conv.weight += first * sets * shifts * spec.shape.kernel_w * 16;
    SkipLines(first, a.conv);
    tile.kernels->depthwise_u8(a);
  });
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

void AddAmxStep(Program& program, ConvU8Spec spec, int64_t chunks) {
  const ConvShape& s = spec.shape;
  const AmxCut& cut = *spec.amx;
  const int64_t run_lines = cut.kernel_rows ? int64_t{s.kernel_w} * s.in_lines : s.in_lines;
  const int64_t runs = cut.kernel_rows ? s.kernel_h : int64_t{s.kernel_h} * s.kernel_w;
  Require(program.kernels().conv_u8_amx != nullptr, "tiles: an instruction set with AMX expected");
  Require(spec.offset.empty(), "tiles: a convolution that yields codes expected");
  Require(!cut.kernel_rows || s.dilation_w == 1, "tiles: kernel rows as runs need a dilation of 1");
  Require(spec.x.pixel == s.in_lines * kLineBytes, "tiles: an input that reads all its lines expected");
  Require(cut.channels_per_tile > 0 && cut.channels_per_tile <= 16 && cut.channels_per_tile % 4 == 0 &&
              cut.channel_tiles > 0 && int64_t{cut.channels_per_tile} * cut.channel_tiles >= s.out_channels &&
              cut.rows > 0 && cut.rows <= 16 && cut.tiles_per_run > 0,
          "tiles: a cut that covers the channels expected");
  // Lines behind a run meet weights of 0, but they are read: Program keeps kTile of them readable behind the arena.
  const int64_t behind = int64_t{cut.rows} * cut.tiles_per_run - run_lines;
  Require(0 <= behind && behind < kTile, "tiles: a cut that covers the lines and reads less than 16 more expected");
  const int64_t weights = int64_t{cut.channel_tiles} * cut.channels_per_tile * runs * cut.tiles_per_run * cut.rows * 4;
  Require(weights <= chunks * 64, "tiles: weights for every tile expected");
  program.Check("tile sums", cut.sums, 0, 1, 0, 1, kAmxSumBytes / kLineBytes);
  std::vector<int64_t> offsets;
  for (int kh = 0; kh < s.kernel_h; ++kh)
    for (int kw = 0; kw < (cut.kernel_rows ? 1 : s.kernel_w); ++kw)
      offsets.push_back(int64_t{kh} * s.dilation_h * spec.x.row + int64_t{kw} * s.dilation_w * spec.x.pixel);
  std::vector<int32_t> bias_lines(size_t{kTile} * cut.channel_tiles * cut.channels_per_tile, 0);
  for (size_t c = 0; c < spec.bias.size(); ++c)
    for (int n = 0; n < kTile; ++n) bias_lines[c * kTile + n] = spec.bias[c];
  program.AddWork(int64_t{s.out_channels} * s.kernel_h * s.kernel_w * s.in_lines * s.out_h * s.out_w / 4);
  AddSplitStep(program, [spec = std::move(spec), chunks, runs, offsets = std::move(offsets),
                         bias_lines = std::move(bias_lines)](Tile& tile) {
    const AmxCut& c = *spec.amx;
    ConvU8AmxArgs a{RunArgs(spec, tile, Unpack(spec, tile, 0, chunks, tile.weights)), spec.shape.out_channels, c.channels_per_tile,
                    c.channel_tiles, c.rows, static_cast<int32_t>(runs), c.tiles_per_run, offsets.data(), bias_lines.data(),
                    reinterpret_cast<int32_t*>(tile.scratch + c.sums.offset)};
    a.conv.geometry = Geometry(spec.shape, spec.blocks);
    TakeRows(tile.part.Begin(spec.shape.out_h), tile.part.End(spec.shape.out_h), a.conv);
    if (a.conv.geometry.out_h > 0) tile.kernels->conv_u8_amx(a);
  });
}

void AddWinogradU8Step(Program& program, ConvU8Spec spec, int64_t chunks) {
  const ConvShape& s = spec.shape;
  const WinogradU8Plan& plan = *spec.winograd;
  Require(s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 &&
              s.dilation_w == 1 && spec.offset.empty(),
          "integer winograd: a 3x3 kernel of stride 1 that yields codes expected");
  Require(spec.storage != WeightStorage::kS8, "integer winograd: weights of 3 or 4 bits expected");
  Require(plan.qmax > 0 && plan.qmax <= 25, "integer winograd: input codes of which ten fit a byte expected");
  Require(plan.entries % 4 == 0 && plan.entries >= int64_t{3} * s.in_lines && plan.entries < int64_t{3} * s.in_lines + 4,
          "integer winograd: an entry per unit and kernel row, filled up to a multiple of 4, expected");
  const int64_t blocks = s.out_channels / 4, block_chunks = int64_t{plan.entries} / 4 * 3;
  Require(chunks == blocks * block_chunks, "integer winograd: weights for every block expected");
  Require(plan.constants.size() == size_t{16} * blocks, "integer winograd: four constants per output channel expected");
  for (const int32_t sums : plan.pair_sums) Require(sums >= 1, "integer winograd: products that fit int16 expected");
  const int64_t columns = (int64_t{s.out_w} + 3) / 4 * 4 + 2;
  program.Check("integer winograd input", spec.x, -s.pad_h, int64_t{s.out_h} + 2 - s.pad_h, -s.pad_w, columns - s.pad_w,
                s.in_lines);
  program.Check("integer winograd scratch", plan.scratch, 0, 1, 0, 1, WinogradU8Lines(s.in_lines));
  // The transformed weights of all blocks, and behind them room for one block before its transform.
  const int64_t block_bytes = int64_t{kFrequencies} * plan.entries * 16;
  program.NeedWeights(blocks * block_bytes + block_chunks * 64);
  program.AddWork(blocks * 4 * 9 * s.in_lines * s.out_h * s.out_w / 2);
  AddSplitStep(program, [spec = std::move(spec), blocks, block_chunks, block_bytes](Tile& tile) {
    const WinogradU8Plan& p = *spec.winograd;
    // Parts are blocks where these are even, since weights are then transformed once.
    const bool rows = blocks % tile.part.count != 0 && StripsAreEven(tile.part, spec.shape.out_h, blocks);
    const int64_t first = rows ? 0 : tile.part.Begin(blocks), end = rows ? blocks : tile.part.End(blocks);
    WinogradU8Args a{RunArgs(spec, tile, tile.weights + first * block_bytes), spec.shape.in_lines, p.entries,
                     static_cast<int32_t>(4 * (end - first)), p.qmax, p.constants.data() + 16 * first, {},
                     tile.scratch + p.scratch.offset};
    a.conv.geometry = Geometry(spec.shape, spec.blocks);
    SkipLines(first, a.conv);
    if (rows) TakeRows(tile.part.Begin(spec.shape.out_h), tile.part.End(spec.shape.out_h), a.conv);
    if (a.out_channels == 0 || a.conv.geometry.out_h == 0) return;
    for (int64_t b = first; b < end; ++b)
      tile.kernels->winograd_u8_weights(
          Unpack(spec, tile, b * block_chunks, block_chunks, tile.weights + blocks * block_bytes),
          tile.weights + b * block_bytes, p.entries);
    std::copy(p.pair_sums.begin(), p.pair_sums.end(), a.pair_sums);
    tile.kernels->winograd_u8(a);
  });
}

}  // namespace

void AddConvU8(Program& program, ConvU8Spec spec) {
  const int64_t chunk = ChunkBytes(spec.storage);
  Require(spec.packed.size % chunk == 0, "quantized convolution: whole chunks of 64 weights expected");
  const int64_t chunks = spec.packed.size / chunk;
  const bool logits = !spec.offset.empty();
  const int64_t lines = logits ? spec.shape.out_channels : spec.shape.out_channels / 4;
  const size_t channels = spec.shape.out_channels;
  Require(channels % 4 == 0 && spec.bias.size() == channels && spec.multiplier.size() == channels &&
              (!logits || spec.offset.size() == channels),
          "quantized convolution: bias, multiplier and offset for a multiple of 4 channels expected");
  // Without y of its own a convolution whose codes are only read recoded writes the recoded map alone.
  const MapRef& main = spec.y.present() || !spec.recoded ? spec.y : spec.recoded->map;
  CheckConvMaps(program, spec.shape, lines, spec.x, main);
  Require(!logits || (spec.shape.out_h == 1 && spec.shape.out_w == 1 && spec.y.present() && !spec.residual && !spec.recoded),
          "logits: one output pixel of its own expected");
  if (spec.residual)
    program.Check("residual", spec.residual->map, 0, spec.shape.out_h, 0, spec.shape.out_w, lines);
  if (spec.recoded) spec.recoded->recode.half = HalfMultiplier(spec.recoded->recode);
  if (spec.recoded)
    program.Check("recoded output", spec.recoded->map, 0, spec.shape.out_h, 0, spec.shape.out_w, lines);
  if (spec.winograd) {
    AddWinogradU8Step(program, std::move(spec), chunks);
    return;
  }
  program.NeedWeights(chunks * 64);
  if (spec.amx) {
    AddAmxStep(program, std::move(spec), chunks);
    return;
  }
  if (spec.blocks.empty()) {
    AddDepthwiseU8(program, std::move(spec), chunks);
    return;
  }
  CheckBlocks(spec.shape, spec.blocks, chunks * 64, 4);
  for (const ConvBlock& b : spec.blocks)
    Require((b.count == 4 || b.count == program.kernels().channels_u8) && b.channel % 4 == 0,
            "quantized convolution: blocks of 4 channels, or as many as this instruction set's kernel takes, expected");
  program.AddWork(Products(spec.shape, spec.blocks));
  AddSplitStep(program, [spec = std::move(spec), chunks](Tile& tile) {
    ConvU8Args a = RunArgs(spec, tile, Unpack(spec, tile, 0, chunks, tile.weights));
    a.geometry = Geometry(spec.shape, spec.blocks);
    if (TakePart(tile.part, 1, a)) tile.kernels->conv_u8(a);
  });
}

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
