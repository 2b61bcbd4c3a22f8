// Which instruction sets this processor and its operating system can run.
#pragma once
#include <string>
#include <vector>

#include "kernel_table.h"

namespace hce {

// Instruction sets with kernels here that this machine can run, best first; "portable" is always last.
std::vector<std::string> SupportedIsas();

// The kernels of one of SupportedIsas(); nullptr for any other name.
const KernelTable* KernelsFor(const std::string& isa);

// Names of all processor features that a selection may depend on, and whether they are present.
std::vector<std::pair<std::string, bool>> CpuFeatures();

}  // namespace hce
