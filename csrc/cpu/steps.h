// The steps a plan can put into a program. Each builder checks every address a step will touch, then adds it.
#pragma once
#include <array>
#include <memory>
#include <optional>
#include <tuple>

#include "program.h"

namespace hce {

// Numbers that several programs share; whoever holds a copy keeps them alive.
template <class T>
struct Shared {
  std::shared_ptr<const T> data;
  size_t size = 0;
  const T* get() const { return data.get(); }
};

struct ConvShape {
  int32_t in_h, in_w, in_lines, out_h, out_w, out_channels;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

struct ResidualU8 {
  MapRef map;
  float multiplier;
  int32_t zero_point;
};

// Recode::half: k / 2 or a neighbour that gives the same code for all 256 bytes, which one multiplication with rounding then
// yields; 0 if there is none.
int32_t HalfMultiplier(const Recode& r);

struct RecodedOutput {
  MapRef map;
  Recode recode;
};

// How a quantized layer is cut into AMX tiles (ConvU8AmxArgs).
struct AmxCut {
  int32_t channels_per_tile, channel_tiles, rows, tiles_per_run;
  bool kernel_rows;  // a run is a kernel row, else one tap
  MapRef sums;
};

// How a quantized layer runs by Winograd F(4, 3) (WinogradU8Args): weights are packed before their transform, one block of 4
// output channels after the other, [entries / 4][3 kernel columns][4 entries][4 output][4 input].
struct WinogradU8Plan {
  int32_t qmax, entries;
  std::vector<int32_t> constants;
  std::array<int32_t, kFrequencies> pair_sums;
  MapRef scratch;
};

// Quantized layer: weights packed as kernels/unpack.h says, in the order of lanes.h.
struct ConvU8Spec {
  ConvShape shape;
  std::vector<ConvBlock> blocks;  // none: depthwise, weights in the order of DepthwiseU8Args
  WeightStorage storage;
  Shared<uint8_t> packed;
  std::vector<int32_t> bias;
  std::vector<float> multiplier;
  int32_t pair_sums;
  bool fits_int32;
  MapRef x, y;
  CodeRange range;
  std::optional<ResidualU8> residual;
  std::optional<RecodedOutput> recoded;
  std::vector<float> offset;  // not empty: float32 logits to y, one line per channel
  std::optional<AmxCut> amx;  // given: weights in the order of ConvU8AmxArgs, no blocks
  std::optional<WinogradU8Plan> winograd;  // given: weights as it says, no blocks
};
void AddConvU8(Program& program, ConvU8Spec spec);

struct ConvF32Spec {
  ConvShape shape;
  std::vector<ConvBlock> blocks;  // none: depthwise, weights in the order of DepthwiseF32Args
  Shared<float> weight;
  std::vector<float> bias;
  MapRef x, y, residual;
  float low, high;
  MapRef scratch;  // present: Winograd, and its workspace
};
void AddConvF32(Program& program, ConvF32Spec spec);

// A float layer on vectors for a stage of fewer than 16 images (DenseF32Args).
struct DenseF32Spec {
  MapRef x, y;
  int32_t channels, out_channels;
  Shared<float> weight;
  std::vector<float> bias;  // padded to whole blocks
  float low, high;
};
void AddDenseF32(Program& program, DenseF32Spec spec);

void AddLoadCodes(Program& program, MapRef y, LaneGrid grid);
void AddLoadNormalized(Program& program, MapRef y, LaneGrid grid, std::vector<float> scale, std::vector<float> offset);
void AddLoadQuantized(Program& program, MapRef y, LaneGrid grid, float low, float multiplier);

// The surroundings of a map of h x w pixels per image: what its lanes read of their neighbours, and the padding value where
// that lies outside the image, in the halo as in those pixels of the last lanes that lie beyond the map.
struct HaloSpec {
  MapRef y;
  LaneGrid grid;
  int32_t h, w;
  int32_t top, left, bottom, right;
  std::vector<uint32_t> pattern;  // padding value of each line
};
void AddHalo(Program& program, HaloSpec spec);

// x in the lanes of `to`. With more images there than in `from`, each run of the step fills the lanes of its own images, so
// that the next stage of the program finds several groups joined.
struct RegroupSpec {
  MapRef x, y;
  LaneGrid from, to;
  int32_t h, w, lines;  // of the map
};
void AddRegroup(Program& program, RegroupSpec spec);

// Averages of whole maps of h x w pixels that lie in `grid`, as one pixel of images in lanes.
struct AveragesSpec {
  MapRef x, y;
  LaneGrid grid;
  int32_t h, w, lines;
  bool codes;
  int32_t zero_point_in;  // codes
  float multiplier;
  CodeRange range;
};
void AddAverages(Program& program, AveragesSpec spec);

enum class PoolKind { kMaxF32, kMaxU8, kAvgF32, kAvgU8 };
// halo: windows that reach beyond x read its halo; otherwise they are cut at its borders.
void AddPool(Program& program, PoolKind kind, PoolArgs args, MapRef x, MapRef y, bool halo);
void AddAddF32(Program& program, AddF32Args args, MapRef a, MapRef b, MapRef y);
void AddAddU8(Program& program, AddU8Args args, MapRef a, MapRef b, MapRef y);
void AddRecode(Program& program, RecodeArgs args, MapRef x, MapRef y);
// in_h, in_w: extent of x.
void AddCopy(Program& program, CopyArgs args, MapRef x, MapRef y, int32_t in_h, int32_t in_w);
void AddFlatten(Program& program, MapRef x, MapRef y, int32_t h, int32_t w, int32_t channels, bool codes);
// The logits at x become member output `output` (as returned by Program::AddOutput).
void AddStoreLogits(Program& program, MapRef x, int output);

}  // namespace hce
