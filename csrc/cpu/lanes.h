// The layout of maps: sixteen lanes go through the network together, one per place of a SIMD register.
//
//   codes    [row][pixel][unit][16 lanes][4 channels] uint8; a unit is 4 channels; channels are padded up to a unit
//   float32  [row][pixel][channel][16 lanes]
//
// so one (pixel, unit) and one (pixel, channel) are both 64 bytes: one cache line, one AVX-512 register. A channel count
// of 9 costs 9 in float32 and 12 in codes, never 16. A lane is an image, or where a tile has fewer than 16 images, one of
// several blocks of an image (LaneGrid). Around the pixels lies a halo that holds the neighbouring lanes' borders, and the
// padding value at the borders of the image. So a kernel computes the same whatever a lane is.
#pragma once
#include <cstdint>

namespace hce {

constexpr int kTile = 16;         // lanes, and the most images of a tile
constexpr int64_t kLineBytes = 64;  // bytes of one unit of codes, or of one channel of float32

// How the images of a tile lie in lanes: each map is cut into rows x columns blocks of h x w pixels, and lane
// (image * rows + i) * columns + j holds the block whose first pixel is (i * h, j * w). The last blocks may reach beyond the
// map; what lies there is computed and never used. Lanes beyond images * rows * columns are idle.
struct LaneGrid {
  int32_t images, rows, columns, h, w;
};

// Weights of one block of output channels, contiguous at `weight` elements from the start of the layer's weights.
//   float32: [kernel_h][kernel_w][line][count], a line is one input channel
//   codes:   [kernel_h][kernel_w][line][count][4], a line is one unit of 4 input channels; count is 4 or KernelTable.channels_u8
// Grouped layers differ only in the lines a block reads.
struct ConvBlock {
  int32_t channel;  // first output channel
  int32_t count;    // output channels in this block
  int32_t line;     // first input line
  int32_t lines;    // input lines
  int64_t weight;
};

// Pixels of a convolution. `x` points at the input pixel of tap (0, 0) of output pixel (0, 0), which may lie in the halo.
struct ConvGeometry {
  int32_t out_h, out_w;
  int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  const ConvBlock* blocks;
  int32_t block_count;
};

// First pixel of segment s when `width` pixels are cut into even segments instead of full ones and a short tail: 7 pixels
// are 4 + 3, 14 are 4 + 4 + 3 + 3. In 64 bits, since a row may have 2^20 pixels. Static, so that no copy of it compiled for
// one instruction set can be linked into another's kernels.
static constexpr int SegmentStart(int64_t s, int width, int segments) { return static_cast<int>(s * width / segments); }

struct ConstView {  // strides in bytes
  const uint8_t* data;
  int64_t row, pixel;
};

struct View {
  uint8_t* data;
  int64_t row, pixel;
};

// The lines a block reads, as `rows` x `runs` stretches of `lines` adjacent lines in the order kernel_h, kernel_w, channel: the
// taps of a kernel row are one run where they lie side by side, so that few channels do not make short loops.
struct Runs {
  int32_t rows, runs, lines;
  int64_t row, run;  // bytes from one to the next
};
static inline Runs RunsOf(const ConvGeometry& g, const ConvBlock& b, const ConstView& x) {
  const bool joined = g.dilation_w == 1 && b.lines * kLineBytes == x.pixel;
  return {g.kernel_h, joined ? 1 : g.kernel_w, joined ? g.kernel_w * b.lines : b.lines, g.dilation_h * x.row,
          g.dilation_w * x.pixel};
}

// code = zero_point + rne(clamp(v, low, high)), low = qmin - zero_point, high = qmax - zero_point; which equals
// clamp(zero_point + rne(v), qmin, qmax), because the ends are integers and rounding is monotone.
struct CodeRange {
  int32_t zero_point, qmin, qmax;
  float low, high;
};

// code = clamp(zero_point + (((r - zero_point_in) * k + 2^15) >> 16), qmin, qmax)
struct Recode {
  int32_t k, zero_point_in, zero_point, qmin, qmax;
  int32_t half;  // not 0: min((r * half + 2^14) >> 15, qmax) is the same for every byte r; set when a program is built
};

// Quantized convolution, hce_engine.numerics: conv2d_accumulate then requantize, bit for bit.
//   acc[o] = bias[o] + sum w * x, int32, proven not to overflow when the graph was verified
//   logits given: logits[o] = f32(acc) * multiplier[o] + offset[o], float32 lines, out_h = out_w = 1
//   else:         codes, with residual if residual.data; and recoded to y2 if y2.data
// bias, multiplier and offset are padded to a multiple of 4 channels.
struct ConvU8Args {
  ConvGeometry geometry;
  ConstView x;
  const int8_t* weight;
  const int32_t* bias;
  const float* multiplier;
  int32_t pair_sums;  // how often two products may be added to an int16: (2^15 - 1) / (2 * max(x) * max|w|), may be 0
  bool fits_int32;    // |f32(acc) * m + residual| < 2^31 is proven: convert first, clamp the integers
  View y;
  CodeRange range;
  ConstView residual;
  float residual_multiplier;
  int32_t residual_zero_point;
  View y2;
  Recode recode;
  float* logits;
  const float* offset;
};

// Quantized convolution on AMX tiles: same result as ConvU8Args. `conv.geometry.blocks` is not used; weights are
//   [channel tile][run][tile of the run][channels_per_tile][rows][4]
// A run is a stretch of input lines that lies contiguously: a whole kernel row (dilation_w 1), else one tap. Its lines are
// cut into tiles_per_run tiles of `rows` lines; the last tile may reach past the run, where weights are 0, so up to 15
// lines behind the map must be readable.
struct ConvU8AmxArgs {
  ConvU8Args conv;
  int32_t conv_channels;      // a multiple of 4
  int32_t channels_per_tile;  // a multiple of 4, at most 16
  int32_t channel_tiles;      // even: two tiles at a time
  int32_t rows, runs, tiles_per_run;
  const int64_t* run_offsets;  // bytes from the pixel of tap (0, 0)
  const int32_t* bias_lines;   // [channel tile][channels_per_tile][16]
  int32_t* sums;               // scratch, kAmxSumBytes
};
constexpr int64_t kAmxSumBytes = 2 * 4 * kTile * kTile * 4;

// Depthwise convolution of codes: unit l of the output reads unit l of the input alone. Same result as ConvU8Args, whose
// `geometry.blocks` is not used. A set is four kernel rows, the last one filled up with weights of 0:
//   weights  [line][shift][set][kernel_w][4 channels][4 rows], set s of shift d holds kernel rows 4 s - d .. 4 s - d + 3
// so that the same input rows serve two output rows, the second one with shift 1.
struct DepthwiseU8Args {
  ConvU8Args conv;
  int32_t lines;
  int32_t sets, shifts;  // DepthwiseSets, DepthwiseShifts
};
static constexpr int DepthwiseSets(int kernel_h) { return (kernel_h + 3) / 4; }
static constexpr int DepthwiseShifts(int kernel_h, int stride_h, int dilation_h) {
  return stride_h == 1 && dilation_h == 1 && kernel_h % 4 != 0 ? 2 : 1;
}
constexpr int kDepthwiseColumns = 64;  // sets * ((kernel_w - 1) * dilation_w + 1) is at most this

// Quantized 3x3 convolution of stride 1 by Winograd F(4, 3) along rows, in integers: same result as ConvU8Args, whose
// geometry.blocks and bias are not used. docs/NUMERICS.md derives it, hce_engine/plan/cpu/winograd_codes.py proves it for a
// layer and makes `constants` and `pair_sums`. Weights are transformed, signed bytes:
//   [block of 4 output channels][6 frequencies][entries][4 output][4 input]
// where an entry is one unit of one kernel row, in that order, filled up to a multiple of 4. Input columns up to
// 4 * ceil(out_w / 4) + 2 from x must be readable (halo).
constexpr int kFrequencies = 6;
struct WinogradU8Args {
  ConvU8Args conv;
  int32_t units, entries, out_channels;  // out_channels: a multiple of 4
  int32_t qmax;                          // of the input codes, at most 25: ten of them fit a byte
  const int32_t* constants;              // [block][4 pixels of a tile][4 channels], what the four scaled sums lack
  int32_t pair_sums[kFrequencies];       // as ConvU8Args.pair_sums, at least 1 where sums pass through int16
  uint8_t* scratch;                      // WinogradU8Lines(units) lines
};
constexpr int kWinogradU8Tiles = 4;  // at most so many tiles share a broadcast weight
constexpr int64_t WinogradU8Lines(int64_t units) {
  return kFrequencies * kWinogradU8Tiles * (3 * units + 4);  // inputs of 3 rows of tiles or 4 half rows, products
}

// Float convolution: y = clamp(bias + sum w * x (+ residual)). Direct kernels add bias first, then taps in the order
// kernel_h, kernel_w, channel, each by one fused multiply-add (portable: two roundings).
struct ConvF32Args {
  ConvGeometry geometry;
  ConstView x;
  const float* weight;
  const float* bias;
  View y;
  ConstView residual;
  float low, high;
};

// Depthwise float convolution: channel c of the output reads channel c of the input alone. Same result, to the bit, as
// ConvF32Args, whose `geometry.blocks` is not used; weights [channel][3][3]. Kernel 3x3, dilation 1, both strides 1 or both 2.
struct DepthwiseF32Args {
  ConvF32Args conv;
  int32_t channels;
};

// Winograd F(4x4, 3x3), stride 1 (Lavin and Gray, arXiv 1509.09308): weight is [block][36][C][count], transformed in
// float64 and rounded once; scratch holds WinogradScratchLines lines. Error bound: docs/NUMERICS.md.
// Input pixels up to 4 * ceil(out / 4) + 2 per axis from x must be readable (halo).
constexpr int kWinogradTiles = 2;     // tiles at a time
constexpr int kWinogradChunk = 8;     // input channels of a chunk of transformed inputs, at most
constexpr int kWinogradChannels = 8;  // output channels of a block on any instruction set, at most
struct WinogradArgs {
  ConvF32Args conv;  // blocks of at most KernelTable::channels_winograd
  int32_t channels;
  float* scratch;
};
// Products of one block and transformed inputs in chunks, in 36 frequencies with a line behind each.
static constexpr int64_t WinogradScratchLines(int64_t channels) {
  return 36 * ((kWinogradTiles * kWinogradChannels + 1) +
               (kWinogradTiles * kWinogradChunk + 1) * ((channels + kWinogradChunk - 1) / kWinogradChunk));
}

// A float layer on vectors, of a few images: the sums of ConvF32Args with one pixel and one tap, with output channels in the
// places of a register instead of images. weight is [block][channels][kDenseBlock], unused places 0; x and y are lines of
// images in lanes, of which `images` are computed and the others become 0.
constexpr int kDenseBlock = 64;
struct DenseF32Args {
  const float* x;
  float* y;
  const float* weight;
  const float* bias;  // padded to whole blocks
  int32_t channels, out_channels, images;
  float low, high;
};

}  // namespace hce
