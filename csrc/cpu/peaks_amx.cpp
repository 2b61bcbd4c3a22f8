// Peak loops on AMX tiles; floats and memory as with AVX-512.
#if defined(__x86_64__)
#include "peaks.h"
#include "peaks_avx512.h"

namespace hce::amx {
namespace {

// Six tiles of sums, 16 x 16 int32, and one of each operand, 16 x 64 codes. Zeroed, so the products are defined.
void Tdpbsud(int64_t iterations) {
  struct Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  int64_t left = iterations;
  __asm__ volatile(
      "tilezero %%tmm0\ntilezero %%tmm1\ntilezero %%tmm2\ntilezero %%tmm3\n"
      "tilezero %%tmm4\ntilezero %%tmm5\ntilezero %%tmm6\ntilezero %%tmm7\n"
      "1:\n"
      "tdpbsud %%tmm7,%%tmm6,%%tmm0\ntdpbsud %%tmm7,%%tmm6,%%tmm1\ntdpbsud %%tmm7,%%tmm6,%%tmm2\n"
      "tdpbsud %%tmm7,%%tmm6,%%tmm3\ntdpbsud %%tmm7,%%tmm6,%%tmm4\ntdpbsud %%tmm7,%%tmm6,%%tmm5\n"
      "dec %0\njnz 1b\ntilerelease\n"
      : "+r"(left) : : "cc");
}

constexpr PeakLoop kDot = {"tdpbsud 16x16x64", 6 * 16 * 16 * 64, Tdpbsud};

}  // namespace

const PeakLoops kPeakLoops = {
    {"vfmadd231ps zmm", 12 * 16, peaks512::Vfmadd}, kDot, kDot, peaks512::Read, peaks512::Triad,
};
}  // namespace hce::amx
#endif
