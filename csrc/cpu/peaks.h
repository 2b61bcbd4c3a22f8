// What this processor does at best: loops of nothing but multiply-adds, and of nothing but loads and stores.
//
// The loops are assembly, or opaque to the compiler: written with intrinsics, accumulators that hold equal values are merged into
// one, and the loop reports twice what the machine can do. Each has enough independent accumulators to hide the latency of its
// instruction (4 cycles on two ports need 8; 12 leave room).
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace hce {

struct PeakLoop {
  const char* instructions;       // what one step of the loop consists of
  int64_t macs;                   // multiply-accumulates of one iteration
  void (*run)(int64_t iterations);
};

// One row per instruction set, as KernelTable.
struct PeakLoops {
  PeakLoop f32;  // float32 multiply-adds
  PeakLoop u8;   // u8 x s8 products summed in int32
  PeakLoop u4;   // the step for codes of at most 4 bits: sums in int16 where the instruction set has no dot product
  // Reads `bytes`, a multiple of kPeakBlock, once.
  void (*read)(const uint8_t* data, int64_t bytes);
  // a[i] = b[i] + c[i] * 3 over arrays of `bytes`, a multiple of kPeakBlock, 64-byte aligned.
  void (*triad)(float* a, const float* b, const float* c, int64_t bytes);
};

constexpr int64_t kPeakBlock = 512;

// The loops of one of SupportedIsas(); nullptr for any other name.
const PeakLoops* PeakLoopsFor(const std::string& isa);

// How to time: on `threads` threads at once, `repeats` runs of about `seconds` each after a warm-up.
struct PeakTiming {
  int threads;
  double seconds;
  int repeats;
};

// Multiply-accumulates per second of all threads together, one value per run.
std::vector<double> MeasureMacs(const PeakLoop& loop, const PeakTiming& timing);

// Bytes per second of all threads together, one value per run; every thread has arrays of its own of `bytes` each (one for
// read, three for triad, whose bytes count as two reads and one write).
std::vector<double> MeasureRead(const PeakLoops& loops, int64_t bytes, const PeakTiming& timing);
std::vector<double> MeasureTriad(const PeakLoops& loops, int64_t bytes, const PeakTiming& timing);

// What reading the clock costs, in seconds: a step timed by two readings seems to take that much longer.
double ClockSeconds();

namespace portable {
extern const PeakLoops kPeakLoops;
}
namespace avx2 {
extern const PeakLoops kPeakLoops;
}
namespace avx512vnni {
extern const PeakLoops kPeakLoops;
}
namespace amx {
extern const PeakLoops kPeakLoops;
}

}  // namespace hce
