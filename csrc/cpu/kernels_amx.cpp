// AVX-512 VNNI kernels, and quantized convolutions on AMX tiles. See kernels_avx512vnni.cpp for what may stand here.
#if defined(__x86_64__)
#include "kernel_table.h"
#include "kernels/conv2d_f32.h"
#include "kernels/conv2d_u8.h"
#include "kernels/dense_f32.h"
#include "kernels/depthwise_f32.h"
#include "kernels/depthwise_u8.h"
#include "kernels/images.h"
#include "kernels/lines.h"
#include "kernels/unpack.h"
#include "kernels/winograd_f32.h"
#include "kernels/winograd_u8.h"
#include "simd/avx512.h"
// After the intrinsics:
#include "kernels/conv2d_u8_amx.h"

namespace hce::amx {
namespace {
using Simd = avx512vnni::Simd;
constexpr const char* kIsa = "amx";
constexpr void (*kConvU8Amx)(const ConvU8AmxArgs&) = kernels::ConvU8Amx<Simd>;
}
#include "kernels/table.inc"
}  // namespace hce::amx
#endif
