#include "cpu_features.h"

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
#endif

}  // namespace

std::vector<std::string> SupportedIsas() {
  std::vector<std::string> isas;
#if defined(__x86_64__)
  if (HasAvx512Vnni()) isas.push_back("avx512vnni");
  if (HasAvx2()) isas.push_back("avx2");
#endif
  isas.push_back("portable");
  return isas;
}

const KernelTable* KernelsFor(const std::string& isa) {
  for (const std::string& supported : SupportedIsas()) {
    if (supported != isa) continue;
#if defined(__x86_64__)
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
          {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0}};
#else
  return {};
#endif
}

}  // namespace hce
