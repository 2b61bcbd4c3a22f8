#include "peaks.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "aligned_buffer.h"
#include "cpu_features.h"
#include "thread_pool.h"

namespace hce {
namespace {

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void Require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// work(worker, iterations) on every thread at once; units: what one iteration of one thread counts for.
std::vector<double> Measure(const PeakTiming& timing, ThreadPool& pool, double units,
                            const std::function<void(int, int64_t)>& work) {
  auto run = [&](int64_t iterations) {
    const double start = Seconds();
    pool.Run(timing.threads, [&](int64_t task, int) { work(static_cast<int>(task), iterations); });
    return Seconds() - start;
  };
  // Doubling until a run is long enough to scale from is the warm-up, too: clocks rise within a few milliseconds.
  int64_t iterations = 1;
  double taken = run(iterations);
  while (taken < timing.seconds / 2) {
    iterations *= 2;
    taken = run(iterations);
  }
  iterations = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(iterations) * timing.seconds / taken));
  run(iterations);
  std::vector<double> rates;
  for (int i = 0; i < timing.repeats; ++i)
    rates.push_back(units * static_cast<double>(iterations) * timing.threads / run(iterations));
  return rates;
}

void CheckTiming(const PeakTiming& timing) {
  Require(timing.threads >= 1 && timing.threads <= 1024, "peaks: 1 to 1024 threads expected");
  Require(timing.seconds > 0 && timing.seconds <= 10, "peaks: runs of up to 10 seconds expected");
  Require(timing.repeats >= 1 && timing.repeats <= 1000, "peaks: 1 to 1000 repeats expected");
}

// `count` arrays per thread. The thread that will use them writes them first, so that their pages lie near it, and so that
// they are pages at all: memory that was never written is one page of zeros.
std::vector<std::vector<AlignedBuffer>> Arrays(ThreadPool& pool, int threads, int64_t bytes, int count) {
  Require(bytes > 0 && bytes % kPeakBlock == 0 && bytes <= int64_t{1} << 40, "peaks: arrays of whole blocks expected");
  std::vector<std::vector<AlignedBuffer>> arrays(threads);
  for (auto& of_thread : arrays)
    for (int i = 0; i < count; ++i) of_thread.emplace_back(bytes);
  pool.Run(threads, [&](int64_t task, int) {
    for (const AlignedBuffer& array : arrays[task]) std::memset(array.data(), 0, bytes);
  });
  return arrays;
}

}  // namespace

const PeakLoops* PeakLoopsFor(const std::string& isa) {
  if (!KernelsFor(isa)) return nullptr;
#if defined(__x86_64__)
  if (isa == "amx") return &amx::kPeakLoops;
  if (isa == "avx512vnni") return &avx512vnni::kPeakLoops;
  if (isa == "avx2") return &avx2::kPeakLoops;
#endif
  return &portable::kPeakLoops;
}

std::vector<double> MeasureMacs(const PeakLoop& loop, const PeakTiming& timing) {
  CheckTiming(timing);
  ThreadPool pool(timing.threads);
  return Measure(timing, pool, static_cast<double>(loop.macs), [&](int, int64_t iterations) { loop.run(iterations); });
}

std::vector<double> MeasureRead(const PeakLoops& loops, int64_t bytes, const PeakTiming& timing) {
  CheckTiming(timing);
  ThreadPool pool(timing.threads);
  const auto arrays = Arrays(pool, timing.threads, bytes, 1);
  return Measure(timing, pool, static_cast<double>(bytes), [&](int task, int64_t iterations) {
    for (int64_t i = 0; i < iterations; ++i) loops.read(arrays[task][0].data(), bytes);
  });
}

std::vector<double> MeasureTriad(const PeakLoops& loops, int64_t bytes, const PeakTiming& timing) {
  CheckTiming(timing);
  ThreadPool pool(timing.threads);
  const auto arrays = Arrays(pool, timing.threads, bytes, 3);
  return Measure(timing, pool, 3.0 * static_cast<double>(bytes), [&](int task, int64_t iterations) {
    const auto& own = arrays[task];
    for (int64_t i = 0; i < iterations; ++i)
      loops.triad(reinterpret_cast<float*>(own[0].data()), reinterpret_cast<const float*>(own[1].data()),
                  reinterpret_cast<const float*>(own[2].data()), bytes);
  });
}

double ClockSeconds() {
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::duration> gaps;
  for (int i = 0; i < 1001; ++i) {
    const auto start = Clock::now();
    gaps.push_back(Clock::now() - start);
  }
  std::nth_element(gaps.begin(), gaps.begin() + 500, gaps.end());
  return std::chrono::duration<double>(gaps[500]).count();
}

}  // namespace hce
