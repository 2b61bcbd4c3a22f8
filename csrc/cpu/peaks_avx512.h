// Loops on 512-bit registers, for the instruction sets that have them. Internal to each file that includes it, since those are
// compiled with different flags.
#pragma once
#include "peaks_asm.h"

#define HCE_ZMM                                                                                                       \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm14", "zmm15"

namespace hce::peaks512 {
namespace {

// All operands are 0: denormals, which stray bits could be, would slow the sums down.
#define HCE_CLEAR(i) "vpxord %%zmm" #i ",%%zmm" #i ",%%zmm" #i "\n"
void Clear() { __asm__ volatile(HCE_TWELVE(HCE_CLEAR) HCE_CLEAR(14) HCE_CLEAR(15) : : : HCE_ZMM); }

#define HCE_STEP(i) "vfmadd231ps %%zmm14,%%zmm15,%%zmm" #i "\n"
void Vfmadd(int64_t iterations) {
  Clear();
  HCE_REPEAT(iterations, HCE_TWELVE(HCE_STEP), HCE_ZMM);
}
#undef HCE_STEP

#define HCE_STEP(i) "vpdpbusd %%zmm14,%%zmm15,%%zmm" #i "\n"
[[maybe_unused]] void Vpdpbusd(int64_t iterations) {
  Clear();
  HCE_REPEAT(iterations, HCE_TWELVE(HCE_STEP), HCE_ZMM);
}
#undef HCE_STEP

void Read(const uint8_t* data, int64_t bytes) {
  int64_t blocks = bytes / 512;
  __asm__ volatile(
      "1:\n"
      "vmovaps (%0),%%zmm0\nvmovaps 64(%0),%%zmm1\nvmovaps 128(%0),%%zmm2\nvmovaps 192(%0),%%zmm3\n"
      "vmovaps 256(%0),%%zmm4\nvmovaps 320(%0),%%zmm5\nvmovaps 384(%0),%%zmm6\nvmovaps 448(%0),%%zmm7\n"
      "add $512,%0\ndec %1\njnz 1b\n"
      : "+r"(data), "+r"(blocks) : : "cc", "memory", HCE_ZMM);
}

#define HCE_STEP(i, at)                                                                          \
  "vmovaps " #at "(%1),%%zmm" #i "\nvfmadd231ps " #at "(%2),%%zmm15,%%zmm" #i "\nvmovaps %%zmm" #i "," #at "(%0)\n"
void Triad(float* a, const float* b, const float* c, int64_t bytes) {
  int64_t blocks = bytes / 256;
  const float scale = 3.0f;
  __asm__ volatile(
      "vbroadcastss %4,%%zmm15\n"
      "1:\n" HCE_STEP(0, 0) HCE_STEP(1, 64) HCE_STEP(2, 128) HCE_STEP(3, 192)
      "add $256,%0\nadd $256,%1\nadd $256,%2\ndec %3\njnz 1b\n"
      : "+r"(a), "+r"(b), "+r"(c), "+r"(blocks) : "m"(scale) : "cc", "memory", HCE_ZMM);
}
#undef HCE_STEP
#undef HCE_CLEAR

}  // namespace
}  // namespace hce::peaks512
