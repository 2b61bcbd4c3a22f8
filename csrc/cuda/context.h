// What a kernel body sees of the machine: a context with its indices, its shared memory and its barriers.
//
// A body is a template over the context and is compiled twice: by nvcc with DeviceContext, and by a C++ compiler with
// HostContext (HCE_HOST defined), where every thread of a block is a thread of the operating system. So the address
// sanitizer sees an index that leaves a buffer, and the thread sanitizer a barrier that is missing, without a GPU.
// Bodies use nothing of CUDA but what stands here and in warp.h.
#pragma once
#include <cstdint>

#if defined(HCE_HOST)
#include <pthread.h>

#include <cstring>
#include <memory>
#include <vector>
#define device_function inline
#define host_device_function inline
#define HCE_UNROLL
#define HCE_UNROLL_BY(n)
#else
#include <cuda_runtime_api.h>
#if defined(__CUDACC__)
#define device_function __device__ __forceinline__
#define host_device_function __host__ __device__ __forceinline__
#define HCE_PRAGMA(text) _Pragma(#text)
#define HCE_UNROLL _Pragma("unroll")
#define HCE_UNROLL_BY(n) HCE_PRAGMA(unroll n)
#else
#define host_device_function inline
#endif
#endif

namespace hce::cuda {

constexpr int kWarp = 32;

#if defined(__CUDACC__) && !defined(HCE_HOST)

struct DeviceContext {
  device_function int Thread() const { return static_cast<int>(threadIdx.x); }
  device_function int Threads() const { return static_cast<int>(blockDim.x); }
  device_function int Lane() const { return static_cast<int>(threadIdx.x) & (kWarp - 1); }
  // Read from one lane, so that the compiler knows the value to be the same in all and keeps what depends on it in
  // uniform registers. Every lane must call it.
  device_function int Warp() const { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0); }
  device_function int Warps() const { return static_cast<int>(blockDim.x) / kWarp; }
  device_function int BlockX() const { return static_cast<int>(blockIdx.x); }
  device_function int BlockY() const { return static_cast<int>(blockIdx.y); }
  device_function int BlocksX() const { return static_cast<int>(gridDim.x); }
  device_function int BlocksY() const { return static_cast<int>(gridDim.y); }

  // Dynamic shared memory of the block, aligned to 128 bytes; its size is given at the launch.
  template <class T>
  device_function T* Shared() const {
    extern __shared__ __align__(128) unsigned char hce_shared[];
    return reinterpret_cast<T*>(hce_shared);
  }
  device_function void Sync() const { __syncthreads(); }
  device_function void SyncWarp() const { __syncwarp(); }
  device_function void AtomicOr(uint32_t* word, uint32_t bits) const { atomicOr(word, bits); }
};

#endif
#if defined(HCE_HOST)

// One warp of a host block: a barrier for its lanes, and a place where each lane shows words to the others.
struct HostWarp {
  static constexpr int kWords = 16;
  pthread_barrier_t barrier;
  uint32_t words[kWarp][kWords];
};

// One block: shared memory of exactly the size asked for, so that the address sanitizer knows where it ends.
struct HostBlock {
  HostBlock(int threads, int64_t shared_bytes) : warps(threads / kWarp), shared_bytes(shared_bytes) {
    pthread_barrier_init(&barrier, nullptr, static_cast<unsigned>(threads));
    for (HostWarp& warp : warps) pthread_barrier_init(&warp.barrier, nullptr, kWarp);
    shared.reset(static_cast<uint8_t*>(::operator new(static_cast<size_t>(shared_bytes), std::align_val_t{128})));
  }
  ~HostBlock() {
    pthread_barrier_destroy(&barrier);
    for (HostWarp& warp : warps) pthread_barrier_destroy(&warp.barrier);
  }
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;

  struct Free {
    void operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t{128}); }
  };
  std::vector<HostWarp> warps;
  int64_t shared_bytes;
  std::unique_ptr<uint8_t, Free> shared;
  pthread_barrier_t barrier;
};

class HostContext {
 public:
  HostContext(HostBlock& block, int thread, int blocks_x, int blocks_y)
      : block_(block), thread_(thread), blocks_x_(blocks_x), blocks_y_(blocks_y) {}

  int Thread() const { return thread_; }
  int Threads() const { return static_cast<int>(block_.warps.size()) * kWarp; }
  int Lane() const { return thread_ % kWarp; }
  int Warp() const { return thread_ / kWarp; }
  int Warps() const { return static_cast<int>(block_.warps.size()); }
  int BlockX() const { return block_x_; }
  int BlockY() const { return block_y_; }
  int BlocksX() const { return blocks_x_; }
  int BlocksY() const { return blocks_y_; }

  template <class T>
  T* Shared() const {
    return reinterpret_cast<T*>(block_.shared.get());
  }
  void Sync() const { pthread_barrier_wait(&block_.barrier); }
  void SyncWarp() const { pthread_barrier_wait(&block_.warps[Warp()].barrier); }
  void AtomicOr(uint32_t* word, uint32_t bits) const { __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }

  // For the host twins of warp.h. Show() gives this lane's words to the warp; until Done(), Peer(lane) reads those of
  // any lane. Every lane must call both.
  void Show(const void* words, int count) {
    std::memcpy(Words(Lane()), words, static_cast<size_t>(count) * 4);
    SyncWarp();
  }
  const uint32_t* Peer(int lane) const { return Words(lane); }
  void Done() const { SyncWarp(); }

  // For launch.h.
  void Enter(int block_x, int block_y) { block_x_ = block_x, block_y_ = block_y; }

 private:
  uint32_t* Words(int lane) const { return block_.warps[Warp()].words[lane]; }

  HostBlock& block_;
  int thread_, blocks_x_, blocks_y_, block_x_ = 0, block_y_ = 0;
};

#endif

}  // namespace hce::cuda
