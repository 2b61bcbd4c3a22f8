#include "cpu_features.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace hce {
namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports asks cpuid and XGETBV, so registers that the operating system does not save count as absent.
bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool HasAvx512Vnni() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

// Tiles need three consents: the processor's, the operating system's saving of their state (XCR0), and the kernel's
// permission for this process, which Linux gives on request (arch_prctl ARCH_REQ_XCOMP_PERM, feature 18).
bool HasAmxInt8() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!HasAvx512Vnni() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned tile = 1u << 24, int8 = 1u << 25;
  if (!(d & tile) || !(d & int8)) return false;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & (3u << 17)) != (3u << 17)) return false;
  static const bool permitted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return permitted;
#else
  return false;
#endif
}
#endif

std::vector<std::string> FindIsas() {
  std::vector<std::string> isas;
#if defined(__x86_64__)
  if (HasAmxInt8()) isas.push_back("amx");
  if (HasAvx512Vnni()) isas.push_back("avx512vnni");
  if (HasAvx2()) isas.push_back("avx2");
#endif
  isas.push_back("portable");
  return isas;
}

}  // namespace

std::vector<std::string> SupportedIsas() {
  static const std::vector<std::string> isas = FindIsas();  // cpuid takes microseconds in a virtual machine
  return isas;
}

const KernelTable* KernelsFor(const std::string& isa) {
  for (const std::string& supported : SupportedIsas()) {
    if (supported != isa) continue;
#if defined(__x86_64__)
    if (isa == "amx") return &amx::kKernels;
    if (isa == "avx512vnni") return &avx512vnni::kKernels;
    if (isa == "avx2") return &avx2::kKernels;
#endif
    return &portable::kKernels;
  }
  return nullptr;
}

std::vector<std::pair<std::string, bool>> CpuFeatures() {
#if defined(__x86_64__)
  return {{"sse4.1", __builtin_cpu_supports("sse4.1") != 0},
          {"avx2", __builtin_cpu_supports("avx2") != 0},
          {"fma", __builtin_cpu_supports("fma") != 0},
          {"avx512f", __builtin_cpu_supports("avx512f") != 0},
          {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
          {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
          {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
          {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0},
          {"amx-int8", HasAmxInt8()}};
#else
  return {};
#endif
}

}  // namespace hce
