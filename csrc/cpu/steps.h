// The steps a plan can put into a program. Each builder checks every address a step will touch, then adds it.
#pragma once
#include <array>
#include <optional>
#include <tuple>

#include "program.h"

namespace hce {

struct ConvShape {
  int32_t in_h, in_w, in_lines, out_h, out_w, out_channels;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

struct ResidualU8 {
  MapRef map;
  float multiplier;
  int32_t zero_point;
};

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
  std::vector<uint8_t> packed;
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
  std::vector<float> weight;
  std::vector<float> bias;
  MapRef x, y, residual;
  float low, high;
  MapRef scratch;  // present: Winograd, and its workspace
};
void AddConvF32(Program& program, ConvF32Spec spec);

void AddLoadCodes(Program& program, MapRef y);
void AddLoadNormalized(Program& program, MapRef y, std::vector<float> scale, std::vector<float> offset);
void AddLoadQuantized(Program& program, MapRef y, float low, float multiplier);

struct HaloSpec {
  MapRef y;
  Extent extent;
  int32_t top, left, bottom, right;
  std::vector<uint32_t> pattern;
};
void AddHalo(Program& program, HaloSpec spec);
void AddFill(Program& program, MapRef y, Extent extent, uint32_t word);

enum class PoolKind { kMaxF32, kMaxU8, kAvgF32, kAvgU8 };
void AddPool(Program& program, PoolKind kind, PoolArgs args, MapRef x, MapRef y);
void AddAddF32(Program& program, AddF32Args args, MapRef a, MapRef b, MapRef y);
void AddAddU8(Program& program, AddU8Args args, MapRef a, MapRef b, MapRef y);
void AddRecode(Program& program, RecodeArgs args, MapRef x, MapRef y);
// in_h, in_w: extent of x; out_lines: lines of y.
void AddCopy(Program& program, CopyArgs args, MapRef x, MapRef y, int32_t in_h, int32_t in_w, int32_t out_lines);
void AddFlatten(Program& program, MapRef x, MapRef y, int32_t h, int32_t w, int32_t channels, bool codes);
// The logits at x become member output `output` (as returned by Program::AddOutput).
void AddStoreLogits(Program& program, MapRef x, int output);

}  // namespace hce
