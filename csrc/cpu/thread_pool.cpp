#include "thread_pool.h"

#include <unistd.h>

#include <stdexcept>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace hce {
namespace {

constexpr int kSpins = 20000;  // looks, some tens of microseconds

// Between two looks at an atomic. PAUSE leaves the core to its other thread, but hypervisors take a loop of PAUSEs for a thread
// that waits for one that does not run, and stop the virtual processor for microseconds. They count PAUSEs that are about a hundred
// cycles apart.
void Pause(int spins) {
#if defined(__x86_64__)
  if (spins % 1024 == 1023) _mm_pause();
#else
  static_cast<void>(spins);
#endif
}

// Results must not depend on the caller's rounding or denormal mode, and the caller's mode must not change.
class DefaultFloatMode {
 public:
#if defined(__x86_64__)
  DefaultFloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

}  // namespace

void Barrier::Wait() {
  const uint32_t round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
    if (spins < kSpins)
      Pause(spins);
    else
      std::this_thread::yield();
  }
}

ThreadPool::ThreadPool(int threads) : owner_pid_(getpid()) {
  try {
    for (int i = 1; i < threads; ++i) threads_->workers.emplace_back([this, i] { Worker(i); });
  } catch (...) {
    Stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (getpid() == owner_pid_)
    Stop();
  else
    static_cast<void>(threads_.release());  // the workers live in the parent process
}

void ThreadPool::Stop() {
  {
    std::lock_guard<std::mutex> lock(threads_->mutex);
    stop_ = true;
  }
  threads_->start.notify_all();
  for (auto& t : threads_->workers) t.join();
}

void ThreadPool::TakeTasks(int index) {
  const DefaultFloatMode mode;
  for (int64_t task = next_.fetch_add(1); task < tasks_; task = next_.fetch_add(1)) (*work_)(task, index);
}

void ThreadPool::Worker(int index) {
  uint64_t seen = 0;
  std::unique_lock<std::mutex> lock(threads_->mutex, std::defer_lock);
  for (;;) {
    for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen && !stop_; ++i) Pause(i);
    lock.lock();
    threads_->start.wait(lock, [&] { return stop_ || generation_ != seen; });
    if (stop_) return;
    seen = generation_;
    lock.unlock();
    TakeTasks(index);
    lock.lock();
    if (--busy_ == 0) threads_->done.notify_one();
    lock.unlock();
  }
}

void ThreadPool::CheckProcess() const {
  if (getpid() != owner_pid_)
    throw std::runtime_error("this engine was created before a fork, and its worker threads live in the parent process");
}

void ThreadPool::Run(int64_t tasks, const std::function<void(int64_t, int)>& work) {
  const bool alone = tasks < 2 || threads_->workers.empty();
  {
    std::lock_guard<std::mutex> lock(threads_->mutex);
    work_ = &work;
    tasks_ = tasks;
    next_ = 0;
    if (!alone) {
      busy_ = static_cast<int>(threads_->workers.size());
      ++generation_;
    }
  }
  if (!alone) threads_->start.notify_all();
  TakeTasks(0);
  if (!alone) {
    for (int i = 0; i < kSpins && busy_.load(std::memory_order_acquire) != 0; ++i) Pause(i);
    std::unique_lock<std::mutex> lock(threads_->mutex);
    threads_->done.wait(lock, [&] { return busy_ == 0; });
  }
}

}  // namespace hce
