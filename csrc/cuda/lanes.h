// The image-lanes layout of the float member on a GPU: 32 images go through the network together, side by side in memory.
//
//   map       float32 [tile][row][column][channel][32 images], rows and columns with their halo
//   features  float32 [tile][feature][32 images]; a map of one pixel without halo
//
// One (pixel, channel) is a line: 32 floats, 128 bytes, one coalesced load of a warp. A channel count of 9 costs 9.
// Image n lies in tile n / 32, lane n % 32; unused lanes of the last tile hold finite values that nothing reads. Around
// the pixels lies a halo of zeros, written once when the memory is set up; kernels write inner pixels only.
//
// All strides and offsets count floats. Inside one tile they fit int32, so a tile has fewer than 2^31 floats; between
// tiles they are int64. Data pointers of maps are aligned to 128 bytes at every line.
#pragma once
#include <cstdint>

#include "context.h"

namespace hce::cuda {

constexpr int kTile = 32;                    // images per tile
constexpr int kImages = 4;                   // images per thread where a thread moves 16 bytes
constexpr int kLineLanes = kTile / kImages;  // lanes that then make a line

// `data` is pixel (0, 0), channel 0, image 0 of tile 0: inside the halo. Pixel (i, j), channel c of tile t is the line
// at data + t * tile + i * row + j * pixel + c * 32. A slice of the channels of a wider map is a map with the same
// strides.
struct ConstMap {
  const float* data;
  int64_t tile;
  int32_t row, pixel;
};
struct Map {
  float* data;
  int64_t tile;
  int32_t row, pixel;
};

// Begin of part s when n things are cut into `parts` even ones, the larger ones first: 9 in two parts are 5 + 4.
host_device_function constexpr int SegmentStart(int s, int n, int parts) {
  const int larger = n % parts;
  return s * (n / parts) + (s < larger ? s : larger);
}
host_device_function constexpr int CeilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
host_device_function constexpr int RoundUp4(int n) { return (n + 3) / 4 * 4; }

// ---- convolution: y = clamp(bias + sum w * x (+ residual), low, high)
//
// One accumulator per output takes the bias, then the taps in the order kernel row, kernel column, input channel, each
// by one fused multiply-add; then the residual by one addition, then the clamp, which lets NaN pass; y may lie where
// the residual does. These are the roundings of the CPU's direct kernels, so the results are the same bits.
//
// A thread computes 4 images (one 128-bit load) x `pixels` adjacent output pixels of a row x `channels` output
// channels; eight lanes make the 32 images of a tile, so a warp works on four such runs of pixels at a time, which may
// lie anywhere. All its lanes use the same weights. The outputs of a group are cut evenly into blocks of `channels` or
// one less, so 9 are 5 + 4 and nothing is computed twice; `channels` must be the larger of these sizes (ConvChannels).
// A thread block is channel_warps x pixel_warps warps: those of one pixel_warp read the same inputs, those of one
// channel_warp the same weights.
//
// Weights, packed by PackConvWeights (pack.h): [block of outputs][line][channels rounded up to 4], line = (kernel row,
// kernel column, input channel of the group), zeros where a block has fewer outputs. They are staged in shared memory,
// chunk_lines at a time: once per thread block if that is all of them, else in two buffers, the next chunk while one is
// used.
struct ConvConfig {
  int32_t pixels, channels;            // register tile: 1 x 1 to 1 x 16, or 2 x 1 to 2 x 12
  int32_t channel_warps, pixel_warps;  // product at most kConvWarps
  int32_t chunk_lines;
  int32_t blocks;  // thread blocks along the pixels; 0: as many as run at once on the device; < 0: a share (launch.h)
};
constexpr int kConvWarps = 4;
constexpr int kConvChannels[] = {0, 16, 12};  // most channels for each number of pixels

// Outputs per block when n outputs are cut evenly into as few blocks as `limit` allows.
host_device_function constexpr int ConvChannels(int n, int limit) { return CeilDiv(n, CeilDiv(n, limit)); }

struct ConvF32Args {
  ConstMap x;  // data: the input pixel of tap (0, 0) of output pixel (0, 0), which may lie in the halo
  const float* weight;
  const float* bias;  // [outputs]
  Map y;
  ConstMap residual;  // data nullptr: none
  int32_t tiles, out_h, out_w;
  int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int32_t groups, group_inputs, group_outputs;
  float low, high;
  ConvConfig config;

  host_device_function int Lines() const { return kernel_h * kernel_w * group_inputs; }
  host_device_function int GroupBlocks() const { return CeilDiv(group_outputs, config.channels); }
  host_device_function int Chunks() const { return CeilDiv(Lines(), config.chunk_lines); }
  host_device_function int Segments() const { return CeilDiv(out_w, config.pixels); }
  // Floats of shared memory that hold one chunk of a thread block.
  host_device_function int ChunkFloats() const {
    return config.channel_warps * config.chunk_lines * RoundUp4(config.channels);
  }
};

// Depthwise convolution: output channel o reads input channel o / multiplier only. Same formula, order and epilogue.
// weight is [kernel row][kernel column][outputs].
struct DepthwiseF32Args {
  ConstMap x;  // data as in ConvF32Args
  const float* weight;
  const float* bias;
  Map y;
  ConstMap residual;
  int32_t tiles, out_h, out_w;
  int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int32_t outputs, multiplier;
  float low, high;
  int32_t blocks;  // 0: as many as run at once; < 0: a share of them (launch.h)
};

// Linear layer on features: y[o] = clamp(bias[o] + sum_f w[o][f] * x[f]), f ascending, one fused multiply-add each. It
// is the 1 x 1 convolution of a map whose pixels are the tiles (AsConv in kernels/linear_f32.h); weights are packed the
// same way.
struct LinearF32Args {
  const float* x;  // [tiles][inputs][32]
  const float* weight;
  const float* bias;
  float* y;  // [tiles][outputs][32]
  int32_t tiles, inputs, outputs;
  float low, high;
  ConvConfig config;  // pixels: tiles that share each weight
};

// ---- 3 x 3 convolution of stride 1, without groups, by Winograd F(m x m, 3 x 3), m = 2 or 4 (Lavin and Gray, arXiv 1509.09308):
// of each tile of m x m output pixels, with (m + 2)^2 frequencies f and the matrices of kernels/winograd_f32.h,
//
//   V[f][c] = (B^T d B)[f]      U[f][c][o] = (G w G^T)[f]      y = clamp(A^T [sum_c U[f][c][o] V[f][c]] A + bias (+ residual))
//
// c ascending, one fused multiply-add each; bias and residual by one addition each; the clamp as above; y may lie where the
// residual does. A result depends on its image alone, not on the configuration. Error bound: docs/NUMERICS.md.
//
// A thread block computes `channel_groups` blocks of outputs, cut evenly as in ConvConfig, of `tile_groups` x `tiles` tiles of
// pixels at a time; `chunk` input channels lie transformed in shared memory. Weights, packed by hce_engine/plan/cuda/winograd_weights.py:
// [block of outputs][input channel][f / 4][o / 4][f % 4][o % 4], zeros where a block has fewer outputs.
struct WinogradConfig {
  int32_t output;          // m: 2 or 4; the map has at least m x m output pixels
  int32_t tiles;           // 1; or 2, where all input channels are one chunk
  int32_t channels;        // register tile: outputs, 1 to kWinogradChannels[m][tiles]
  int32_t channel_groups;  // blocks of outputs of a thread block
  int32_t tile_groups;     // it computes `tiles` x this many tiles; the product of the groups is 1 to kWinogradGroups[m]
  int32_t chunk;           // input channels
  int32_t blocks;          // thread blocks along the pixels; 0: as many as run at once on the device; < 0: a share (launch.h)
};
constexpr int kWinogradChannels[5][3] = {{}, {}, {0, 16, 10}, {}, {0, 11, 9}};
constexpr int kWinogradGroups[5] = {0, 0, 4, 0, 2};

struct WinogradF32Args {
  ConstMap x;  // data: the input pixel of tap (0, 0) of output pixel (0, 0), which may lie in the halo
  const float* weight;
  const float* bias;  // [outputs]
  Map y;
  ConstMap residual;  // data nullptr: none
  int32_t tiles, out_h, out_w, inputs, outputs;
  float low, high;
  WinogradConfig config;

  host_device_function int Blocks() const { return CeilDiv(outputs, config.channels); }
  host_device_function int Chunks() const { return CeilDiv(inputs, config.chunk); }
  host_device_function int TileRows() const { return CeilDiv(out_h, config.output); }
  host_device_function int TileColumns() const { return CeilDiv(out_w, config.output); }
};

// ---- pools. Windows are cut to the map (in_h x in_w), padded pixels take no part.
// max: a NaN in the window is the result. average: the sum by row and column, then one division by kernel_h * kernel_w
// if count_include_pad, else by the pixels inside. A global average is a window of the size of the map.
enum class PoolKind : int32_t { kMax, kAverage };
struct PoolF32Args {
  ConstMap x;
  Map y;
  int32_t tiles, in_h, in_w, out_h, out_w, channels;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
  int32_t count_include_pad;
  PoolKind kind;
  int32_t blocks;
};

// ---- element-wise. y = clamp((a + b) * scale), each operation rounded; b.data nullptr: clamp(a * scale). A running
// mean over n logits is n - 1 additions with scale 1, the last with scale f32(1 / n).
struct AddF32Args {
  ConstMap a, b;
  Map y;
  int32_t tiles, h, w, channels;
  float scale, low, high;
  int32_t blocks;
};

// y[channel_to + c] at (i, j) = x[c] at (row_start + i * row_step, column_start + j * column_step), c < channels:
// slices and concatenation. Channels of y below `zero_to` that are not written this way become 0: padding of channels;
// with zero_to = 0 they keep their values.
struct CopyF32Args {
  ConstMap x;
  Map y;
  int32_t tiles, out_h, out_w;
  int32_t channels, channel_to, zero_to;
  int32_t row_start, row_step, column_start, column_step;
  int32_t blocks;
};

// Feature (c * h + i) * w + j is channel c at pixel (i, j): the order of torch.flatten.
struct FlattenF32Args {
  ConstMap x;
  float* y;  // [tiles][channels * h * w][32]
  int32_t tiles, h, w, channels;
  int32_t blocks;
};

// ---- images in. y = f32(x) * scale[c] + offset[c], two roundings. Lanes beyond `images` become 0.
// flags (float images only; may be nullptr): float32 [images], NaN where the image holds a NaN or an Inf, else 0; the
// launch clears them first.
struct LoadImagesArgs {
  const void* images;  // uint8 [N][H][W][C], any alignment, or float32 [N][C][H][W]
  int32_t from_float;
  int32_t count, h, w, c;
  const float* scale;   // [c]
  const float* offset;  // [c]
  Map y;
  float* flags;
  int32_t blocks;
};

// ---- logits out: out[n][k] = x[n / 32][k][n % 32] for n < count; rows whose flag is NaN become NaN.
struct StoreLogitsArgs {
  const float* x;      // [tiles][classes][32]
  const float* flags;  // [count] or nullptr
  float* out;          // [count][classes]
  int32_t count, classes;
  int32_t blocks;
};

// out = ((z_0 + z_1) + ...) * f32(1 / n), each operation rounded; n = 1 copies the bits.
constexpr int kMaxMembers = 16;
struct EnsembleMeanArgs {
  const float* members[kMaxMembers];
  int32_t n;
  float factor;  // f32(1 / n)
  float* out;
  int64_t elements;
  int32_t blocks;
};

}  // namespace hce::cuda
