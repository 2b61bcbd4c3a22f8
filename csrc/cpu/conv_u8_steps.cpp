// Steps of quantized convolutions: direct, depthwise, on AMX tiles, and by integer Winograd.
#include <algorithm>

#include "conv_parts.h"

namespace hce {
namespace {

int64_t ChunkBytes(WeightStorage storage) {
  return storage == WeightStorage::kS8 ? 64 : storage == WeightStorage::kS4 ? 32 : 24;
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

}  // namespace hce
