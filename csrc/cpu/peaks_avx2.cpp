// Peak loops on 256-bit registers. See kernels_avx2.cpp for what may stand in a file of an instruction set.
#if defined(__x86_64__)
#include "peaks.h"
#include "peaks_asm.h"

#define HCE_YMM                                                                                                       \
  "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm12", "ymm14", \
      "ymm15"

namespace hce::avx2 {
namespace {

// All operands are 0: denormals, which stray bits could be, would slow the sums down.
#define HCE_CLEAR(i) "vpxor %%ymm" #i ",%%ymm" #i ",%%ymm" #i "\n"
void Clear() { __asm__ volatile(HCE_TWELVE(HCE_CLEAR) HCE_CLEAR(12) HCE_CLEAR(14) HCE_CLEAR(15) : : : HCE_YMM); }

#define HCE_STEP(i) "vfmadd231ps %%ymm14,%%ymm15,%%ymm" #i "\n"
void Vfmadd(int64_t iterations) {
  Clear();
  HCE_REPEAT(iterations, HCE_TWELVE(HCE_STEP), HCE_YMM);
}
#undef HCE_STEP

// Register 12 holds products only until the next instruction reads them; the processor renames it.
#define HCE_STEP(i)                                                                       \
  "vpmaddubsw %%ymm14,%%ymm15,%%ymm12\nvpmaddwd %%ymm14,%%ymm12,%%ymm12\nvpaddd %%ymm12,%%ymm" #i ",%%ymm" #i "\n"
void Dot8(int64_t iterations) {
  Clear();
  HCE_REPEAT(iterations, HCE_TWELVE(HCE_STEP), HCE_YMM);
}
#undef HCE_STEP

#define HCE_STEP(i) "vpmaddubsw %%ymm14,%%ymm15,%%ymm12\nvpaddw %%ymm12,%%ymm" #i ",%%ymm" #i "\n"
void Dot4(int64_t iterations) {
  Clear();
  HCE_REPEAT(iterations, HCE_TWELVE(HCE_STEP), HCE_YMM);
}
#undef HCE_STEP

void Read(const uint8_t* data, int64_t bytes) {
  int64_t blocks = bytes / 256;
  __asm__ volatile(
      "1:\n"
      "vmovaps (%0),%%ymm0\nvmovaps 32(%0),%%ymm1\nvmovaps 64(%0),%%ymm2\nvmovaps 96(%0),%%ymm3\n"
      "vmovaps 128(%0),%%ymm4\nvmovaps 160(%0),%%ymm5\nvmovaps 192(%0),%%ymm6\nvmovaps 224(%0),%%ymm7\n"
      "add $256,%0\ndec %1\njnz 1b\n"
      : "+r"(data), "+r"(blocks) : : "cc", "memory", HCE_YMM);
}

#define HCE_STEP(i, at)                                                                          \
  "vmovaps " #at "(%1),%%ymm" #i "\nvfmadd231ps " #at "(%2),%%ymm15,%%ymm" #i "\nvmovaps %%ymm" #i "," #at "(%0)\n"
void Triad(float* a, const float* b, const float* c, int64_t bytes) {
  int64_t blocks = bytes / 128;
  const float scale = 3.0f;
  __asm__ volatile(
      "vbroadcastss %4,%%ymm15\n"
      "1:\n" HCE_STEP(0, 0) HCE_STEP(1, 32) HCE_STEP(2, 64) HCE_STEP(3, 96)
      "add $128,%0\nadd $128,%1\nadd $128,%2\ndec %3\njnz 1b\n"
      : "+r"(a), "+r"(b), "+r"(c), "+r"(blocks) : "m"(scale) : "cc", "memory", HCE_YMM);
}
#undef HCE_STEP

}  // namespace

const PeakLoops kPeakLoops = {
    {"vfmadd231ps ymm", 12 * 8, Vfmadd},
    {"vpmaddubsw, vpmaddwd, vpaddd ymm", 12 * 32, Dot8},
    {"vpmaddubsw, vpaddw ymm", 12 * 32, Dot4},
    Read, Triad,
};
}  // namespace hce::avx2
#endif
