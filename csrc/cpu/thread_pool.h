// A small pool: the caller and `threads - 1` workers take tasks 0, 1, 2, ... until none is left.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace hce {

class ThreadPool {
 public:
  // Throws std::system_error when the system refuses that many threads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Throws std::runtime_error in a forked child, where the workers do not exist.
  void CheckProcess() const;

  // Calls work(task, worker) for every task, worker in [0, threads()); returns when all are done. One Run at a time
  // (the caller sees to it); work must not throw.
  void Run(int64_t tasks, const std::function<void(int64_t, int)>& work);

  int threads() const { return static_cast<int>(threads_->workers.size()) + 1; }

 private:
  // What cannot be destroyed in a forked child: destroying a condition waits for the threads that wait on it.
  struct Threads {
    std::mutex mutex;
    std::condition_variable start, done;
    std::vector<std::thread> workers;
  };

  void Worker(int index);
  void TakeTasks(int index);
  void Stop();

  std::unique_ptr<Threads> threads_ = std::make_unique<Threads>();
  const std::function<void(int64_t, int)>* work_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t tasks_ = 0;
  uint64_t generation_ = 0;
  int busy_ = 0;
  bool stop_ = false;
  int64_t owner_pid_;
};

}  // namespace hce
