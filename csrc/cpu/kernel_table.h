// One row per instruction set: every kernel of the CPU back end. Adding a kernel here makes the program able to call it;
// the tests run every table that the machine supports over the same cases.
#pragma once
#include "lanes.h"
#include "lines.h"

namespace hce {

struct KernelTable {
  const char* isa;
  int channels_f32;       // largest ConvBlock.count of the direct float kernel
  int channels_u8;        // ConvBlock.count of the direct kernel of codes is this or 4
  int channels_winograd;  // largest ConvBlock.count of the Winograd kernel
  void (*conv_u8)(const ConvU8Args&);
  void (*winograd_u8)(const WinogradU8Args&);
  void (*winograd_u8_weights)(const int8_t*, int8_t*, int64_t);  // one block: WinogradU8Weights
  void (*conv_f32)(const ConvF32Args&);
  void (*winograd_f32)(const WinogradArgs&);
  void (*depthwise_u8)(const DepthwiseU8Args&);
  void (*depthwise_f32)(const DepthwiseF32Args&);
  void (*load_codes)(const LoadCodesArgs&);
  void (*load_normalized)(const LoadNormalizedArgs&);
  void (*load_quantized)(const LoadQuantizedArgs&);
  void (*move_lanes)(const MoveLanesArgs&);
  void (*max_pool_f32)(const PoolArgs&);
  void (*max_pool_u8)(const PoolArgs&);
  void (*avg_pool_f32)(const PoolArgs&);
  void (*avg_pool_u8)(const PoolArgs&);
  void (*averages_f32)(const AveragesArgs&);
  void (*averages_u8)(const AveragesArgs&);
  void (*dense_f32)(const DenseF32Args&);
  void (*add_f32)(const AddF32Args&);
  void (*add_u8)(const AddU8Args&);
  void (*recode_u8)(const RecodeArgs&);
  void (*copy)(const CopyArgs&);
  void (*flatten)(const FlattenArgs&);
  void (*store_logits)(const StoreLogitsArgs&);
  void (*unpack_s4)(const uint8_t*, int8_t*, int64_t);
  void (*unpack_s3)(const uint8_t*, int8_t*, int64_t);
  void (*conv_u8_amx)(const ConvU8AmxArgs&);  // nullptr: no tiles
};

namespace portable {
extern const KernelTable kKernels;
}
namespace avx2 {
extern const KernelTable kKernels;
}
namespace avx512vnni {
extern const KernelTable kKernels;
}
namespace amx {
extern const KernelTable kKernels;
}

}  // namespace hce
