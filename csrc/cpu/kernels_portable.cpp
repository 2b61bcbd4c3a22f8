// The kernels compiled for portable. Nothing from the standard library's templates may be instantiated here: the linker
// could keep this unit's copy for the whole program, and older processors would meet its instructions.
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
#include "simd/portable.h"

namespace hce::portable {
namespace {
constexpr const char* kIsa = "portable";
constexpr void (*kConvU8Amx)(const ConvU8AmxArgs&) = nullptr;
}
#include "kernels/table.inc"
}  // namespace hce::portable
