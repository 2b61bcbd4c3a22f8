// The NHWC layout of the float member on a GPU, for batches that would leave lanes of images empty:
//
//   map   float32 [image][row][column][line][32 channels], rows and columns with their halo of zeros
//
// That is the map of lanes.h with an image for a tile and a block of 32 channels for a line; ConstMap and Map are its
// views. Kernels of lanes.h that never mix lanes serve it as they are, with tiles = images and channels = lines: pools,
// additions, copies of whole lines. What mixes channels stands here.
//
// The last line of a pixel has padding lanes where the channels are not a multiple of 32. They hold anything: no kernel
// here lets them reach a channel, and kernels of lanes.h keep them in their lanes. Data pointers of maps are aligned to
// 128 bytes at every line.
#pragma once
#include "lanes.h"

namespace hce::cuda {

constexpr int kLineChannels = 32;

// ---- convolution, as in lanes.h: y = clamp(bias + sum w * x (+ residual), low, high)
//
// It is a matrix product whose rows are the output pixels of all images, whose columns are the output channels of a
// group, and whose sum runs over the taps in the order kernel row, kernel column, input channel. The input channels of
// a tap count in fours; the sum is cut into steps of 16, what is missing at its end is zero times zero.
//
// The steps are cut evenly into `segments`, the longer ones first. The first segment is the chain of fused
// multiply-adds that begins with the bias, the others begin with zero; a result is ((p_0 + p_1) + p_2) + ..., one
// rounding each, then the residual and the clamp. So a result depends on its image and on `segments` alone, which a
// plan makes a function of the layer; with one segment it is that of ConvF32Args, but for the sign of a zero.
//
// A thread block computes `rows` x `columns` results of one group: all segments one after the other, or, with
// `parallel`, one of them, which it writes to the map of partial sums that SumSegments reads. A linear layer is the
// convolution of a map of one pixel; one whose kernel is the map reads a flattened map.
//
// Weights, packed by hce_engine/plan/cuda/nhwc_weights.py: [group][block of columns][step][16][columns], zeros where
// there is no tap or output.
constexpr int kNhwcStep = 16;
struct NhwcConfig {
  int32_t rows, columns;  // of kNhwcTiles
  int32_t segments;       // 1 to the number of steps
  int32_t parallel;       // 0, or 1: segments > 1, the residual and the clamp are left to SumSegments
};
constexpr int kNhwcTiles[][2] = {{128, 64}, {64, 64}, {64, 32}, {32, 32}};
constexpr int kNhwcSmallTile = 3;  // the only one for groups that do not begin at multiples of four input channels

struct ConvNhwcF32Args {
  ConstMap x;  // data: the input pixel of tap (0, 0) of output pixel (0, 0), which may lie in the halo
  const float* weight;
  const float* bias;  // [outputs]
  Map y;              // parallel: partial sums, segment s in lines [s * lines of outputs, (s + 1) * lines of outputs)
  ConstMap residual;  // data nullptr: none
  int32_t images, out_h, out_w;
  int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int32_t groups, group_inputs, group_outputs;
  float low, high;
  NhwcConfig config;

  host_device_function int Quads() const { return (group_inputs + 3) / 4; }  // fours of input channels of a tap
  host_device_function int Steps() const { return CeilDiv(int64_t{kernel_h} * kernel_w * Quads() * 4, kNhwcStep); }
  // Whether every group begins at a multiple of four input channels.
  host_device_function bool Whole() const { return groups == 1 || group_inputs % 4 == 0; }
  host_device_function int Columns() const { return CeilDiv(group_outputs, config.columns); }  // blocks of a group
  host_device_function int SegmentFloats() const {
    return CeilDiv(int64_t{groups} * group_outputs, kLineChannels) * kLineChannels;
  }
};

// y = clamp(((p_0 + p_1) + ...) (+ residual), low, high), line by line, where p_s begins at line s * lines of x. y may
// lie where the residual does.
struct SumSegmentsArgs {
  ConstMap x;
  Map y;
  ConstMap residual;  // data nullptr: none
  int32_t images, h, w, lines, segments;
  float low, high;
  int32_t blocks;  // 0: as many as run at once; < 0: a share of them (launch.h)
};

// Depthwise convolution, as in lanes.h with tiles = images and outputs = lines, multiplier 1; weight is [kernel
// row][kernel column][lines * 32], bias [lines * 32].
struct DepthwiseNhwcF32Args : DepthwiseF32Args {};

// CopyF32Args in channels instead of lines: y[channel_to + c] = x[c], and zeros below zero_to around them.
struct CopyChannelsF32Args {
  ConstMap x;
  Map y;
  int32_t images, out_h, out_w;
  int32_t channels, channel_to, zero_to;
  int32_t row_start, row_step, column_start, column_step;
  int32_t blocks;
};

// Feature (c * h + i) * w + j is channel c at pixel (i, j). y: one pixel of channels * h * w channels per image.
struct FlattenNhwcF32Args {
  ConstMap x;
  Map y;
  int32_t images, h, w, channels;
  int32_t blocks;
};

// Images in: LoadImagesArgs without lanes beyond the images.
struct LoadNhwcArgs {
  const void* images;  // uint8 [N][H][W][C], or float32 [N][C][H][W]
  int32_t from_float;
  int32_t count, h, w, c;
  const float* scale;   // [c]
  const float* offset;  // [c]
  Map y;
  float* flags;  // float32 [images], or nullptr
  int32_t blocks;
};

// Logits out: out[n][k] = channel k of pixel (0, 0) of image n; rows whose flag is NaN become NaN.
struct StoreNhwcArgs {
  ConstMap x;
  const float* flags;  // [count] or nullptr
  float* out;          // [count][classes]
  int32_t count, classes;
  int32_t blocks;
};

}  // namespace hce::cuda
