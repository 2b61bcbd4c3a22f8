// A small pool: the caller and `threads - 1` workers take tasks 0, 1, 2, ... until none is left.
//
// To wake a sleeping thread takes longer than a small network does. So whoever waits looks for what it waits for a while
// (some tens of microseconds) before it sleeps: a caller that runs batch after batch finds its workers awake.
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

// Where `count` threads wait for each other, as often as they like. They spin, since they are about equally far; a thread that
// waits long gives its core away, in case the one it waits for needs it.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void Wait();

 private:
  const int count_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> round_{0};
};

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
  std::atomic<uint64_t> generation_{0};  // changed under the mutex, as are busy_ and stop_
  std::atomic<int> busy_{0};
  std::atomic<bool> stop_{false};
  int64_t owner_pid_;
};

}  // namespace hce
