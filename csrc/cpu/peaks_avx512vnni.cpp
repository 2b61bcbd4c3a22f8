// Peak loops on 512-bit registers. See kernels_avx512vnni.cpp for what may stand in a file of an instruction set.
#if defined(__x86_64__)
#include "peaks.h"
#include "peaks_asm.h"
#include "peaks_avx512.h"

namespace hce::avx512vnni {
constexpr PeakLoop kDot = {"vpdpbusd zmm", 12 * 64, peaks512::Vpdpbusd};
const PeakLoops kPeakLoops = {
    {"vfmadd231ps zmm", 12 * 16, peaks512::Vfmadd}, kDot, kDot, peaks512::Read, peaks512::Triad,
};
}  // namespace hce::avx512vnni
#endif
