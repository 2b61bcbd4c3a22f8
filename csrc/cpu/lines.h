// Contracts of the kernels that move or combine whole lines (see lanes.h for the layout): images in, halos, pooling,
// element-wise operations, copies, logits out.
#pragma once
#include "lanes.h"

namespace hce {

struct Extent {
  int32_t h, w;
  int32_t lines;  // units of codes or channels of float32
};

// Up to 16 images, image n at data + n * image_bytes. uint8 images are [H][W][C], float32 images are [C][H][W]; both dense.
struct ImageTile {
  const uint8_t* data;
  int64_t image_bytes;
  int32_t count;
  int32_t h, w, c;
};

// Images to lanes. Lanes without an image, and the pixels of a lane that lie outside its image, become zero.
// Pixels to codes, channel by channel; channels beyond C of the last unit are zero.
struct LoadCodesArgs {
  ImageTile images;
  LaneGrid grid;
  View y;
};
// y = f32(x) * scale[c] + offset[c], two roundings; from uint8 or float32 images.
struct LoadNormalizedArgs {
  ImageTile images;
  LaneGrid grid;
  bool from_float;
  const float* scale;
  const float* offset;
  View y;
};
// code = rne(clamp((x - low) * multiplier, 0, 255)), NaN -> 0.
struct LoadQuantizedArgs {
  ImageTile images;
  LaneGrid grid;
  float low, multiplier;
  View y;
};
// Lines whose lanes move, span by span: lane n of a line of `to` becomes lane lanes[n] of the same line of `from`. Where
// lanes[n] < 0 it stays as it is if the span or the call keeps lanes, and else becomes the line's padding value.
struct LaneSpan {
  int64_t to, from;      // first pixel, bytes from the maps'
  const int32_t* lanes;  // [groups][16]; nullptr: padding in every lane, `from` is not read
  int32_t pixels;        // adjacent in both maps
  bool keep;
};
struct MoveLanesArgs {
  const uint8_t* from;
  uint8_t* to;             // may be the same map
  int32_t lines;           // per pixel
  const uint32_t* pattern;  // padding value of each line
  const LaneSpan* spans;
  int64_t span_count;
  int32_t group;  // row of `lanes`
  bool keep;
};
struct PoolArgs {
  ConstView x;
  View y;
  int32_t in_h, in_w;
  Extent out;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
  bool count_include_pad;  // float32 average only
  int32_t zero_point_in;   // code average only: sum of (code - zero_point_in), padded pixels count 0
  float multiplier;
  CodeRange range;
};
// Average over a whole map, whatever its lanes are: the sums of PoolArgs over all pixels, row by row. The word of row r, column
// c and image n lies from_row[r] + from_column[c] + n * from_image bytes from x in each line; y is one pixel of images in lanes.
struct AveragesArgs {
  const uint8_t* x;
  uint8_t* y;
  const int64_t *from_row, *from_column;
  int64_t from_image;
  int32_t h, w, images, lines;
  int32_t zero_point_in;  // codes
  float multiplier;
  CodeRange range;
};
// y = clamp((a + b) * scale), each operation rounded; a alone without b.
struct AddF32Args {
  ConstView a, b;
  View y;
  Extent extent;
  float scale, low, high;
};
// hce_engine.numerics.add
struct AddU8Args {
  ConstView a, b;
  View y;
  Extent extent;
  int32_t zero_point_a, zero_point_b;
  float multiplier_a, multiplier_b;
  CodeRange range;
};
struct RecodeArgs {
  ConstView x;
  View y;
  Extent extent;
  Recode recode;
};
// y[channel_to + c] = x[c] over the pixels row_start + i * row_step, ...: slices, pads and concatenations. fills: every 4-byte
// word of the other channels becomes `word`; else they keep their values.
struct CopyArgs {
  ConstView x;
  View y;
  int32_t out_h, out_w;
  int32_t channels, channel_to;
  int32_t row_start, row_step, column_start, column_step;
  bool codes;
  int32_t out_lines;
  bool fills;
  uint32_t word;
};
// Channel (c * h + i) * w + j of the only pixel at y is x[c] at pixel (i, j).
struct FlattenArgs {
  ConstView x;
  uint8_t* y;
  int32_t h, w, channels;
  bool codes;
};
// out[n][k] = x[k][n] for n < count.
struct StoreLogitsArgs {
  const float* x;
  float* out;
  int32_t classes, count;
};

}  // namespace hce
