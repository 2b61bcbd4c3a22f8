// Starts a kernel: on the GPU, or under HCE_HOST on threads of the operating system.
//
// A kernel is a class with
//   static constexpr int kThreads       most threads per block
//   static constexpr int kBlocksPerSm   blocks per multiprocessor that its registers must leave room for
//   template <class Context> static device_function void Run(Context& ctx, const Args& args)
#pragma once
#include "context.h"

#if defined(HCE_HOST)
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "warp.h"
#endif

namespace hce::cuda {

// `blocks` of a launch: 0 for as many thread blocks as the device runs at once, n > 0 for n along the first dimension of the
// grid, and n < 0 for -n of kGridShares parts of as many as it runs at once, which leaves room for those of other streams.
// The bytes of a result do not depend on it.
constexpr int kGridShares = 64;
constexpr bool ValidBlocks(int blocks) { return blocks >= -kGridShares; }

constexpr int64_t kMaxBlocksY = 65535;  // of any grid

#if defined(HCE_HOST)

using Stream = void*;
using Status = int;
constexpr Status kSuccess = 0, kInvalidValue = 1;

// Blocks run one after the other, the threads of a block all at once. Shared memory holds NaN when a block begins.
template <class Kernel, class Args>
Status Launch(int blocks_x, int blocks_y, int threads, int64_t shared_bytes, const Args& args, Stream) {
  HostBlock block(threads, shared_bytes);
  const auto run = [&](int thread) {
    HostContext ctx(block, thread, blocks_x, blocks_y);
    for (int y = 0; y < blocks_y; ++y)
      for (int x = 0; x < blocks_x; ++x) {
        ctx.Sync();
        if (thread == 0) std::memset(block.shared.get(), 0xff, static_cast<size_t>(shared_bytes));
        ctx.Sync();
        ctx.Enter(x, y);
        Kernel::Run(ctx, args);
        if (!PendingCopies::OfThisThread().None()) {
          std::fputs("a kernel ended before its asynchronous copies\n", stderr);
          std::abort();
        }
      }
  };
  std::vector<std::thread> pool;
  for (int thread = 1; thread < threads; ++thread) pool.emplace_back(run, thread);
  run(0);
  for (std::thread& thread : pool) thread.join();
  return kSuccess;
}

// Fewer than the work, so that the loops over it run more than once.
template <class Kernel, class Args>
int BlocksAtOnce(int, int64_t) {
  return 2;
}
inline Status ClearAsync(void* data, int64_t bytes, Stream) {
  std::memset(data, 0, static_cast<size_t>(bytes));
  return kSuccess;
}

#else

using Stream = cudaStream_t;
using Status = cudaError_t;
constexpr Status kSuccess = cudaSuccess, kInvalidValue = cudaErrorInvalidValue;

#if defined(__CUDACC__)

template <class Kernel, class Args>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocksPerSm) Entry(const __grid_constant__ Args args) {
  DeviceContext ctx;
  Kernel::Run(ctx, args);
}

constexpr int64_t kSharedBytesByDefault = 48 * 1024;

// Raises the limit of shared memory where a kernel needs more than every GPU gives unasked: to what the device has, not to what
// this launch needs. The limit belongs to the kernel, so a launch of another layer, perhaps on another thread, would lower it
// for one that is about to start or lies in a captured graph.
template <class Kernel, class Args>
Status AllowShared(int64_t shared_bytes) {
  if (shared_bytes <= kSharedBytesByDefault) return cudaSuccess;
  int device = 0, most = 0;
  Status status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status != cudaSuccess) return status;
  if (shared_bytes > most) return cudaErrorInvalidValue;
  return cudaFuncSetAttribute(Entry<Kernel, Args>, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

template <class Kernel, class Args>
Status Launch(int blocks_x, int blocks_y, int threads, int64_t shared_bytes, const Args& args, Stream stream) {
  const Status status = AllowShared<Kernel, Args>(shared_bytes);
  if (status != cudaSuccess) return status;
  Entry<Kernel, Args><<<dim3(blocks_x, blocks_y), threads, shared_bytes, stream>>>(args);
  return cudaGetLastError();
}

// Blocks of this kernel that the current device holds at the same time.
template <class Kernel, class Args>
int BlocksAtOnce(int threads, int64_t shared_bytes) {
  int device = 0, multiprocessors = 1, per_multiprocessor = 1;
  if (AllowShared<Kernel, Args>(shared_bytes) != cudaSuccess || cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, Entry<Kernel, Args>, threads, shared_bytes) !=
          cudaSuccess)
    return 1;  // the launch that follows reports the error
  return multiprocessors * (per_multiprocessor > 0 ? per_multiprocessor : 1);
}
inline Status ClearAsync(void* data, int64_t bytes, Stream stream) { return cudaMemsetAsync(data, 0, bytes, stream); }

#endif
#endif

#if defined(__CUDACC__) || defined(HCE_HOST)

// Blocks along x for `jobs` pieces of work of which a block does `per_block` at a time, as `asked` (ValidBlocks).
template <class Kernel, class Args>
int GridBlocks(int64_t jobs, int per_block, int blocks_y, int asked, int threads, int64_t shared_bytes) {
  const int64_t needed = (jobs + per_block - 1) / per_block;
  int64_t blocks = asked;
  if (asked <= 0) {
    blocks = BlocksAtOnce<Kernel, Args>(threads, shared_bytes);
    if (asked < 0) blocks = blocks * -asked / kGridShares;
    blocks /= blocks_y;
    if (blocks < 1) blocks = 1;
  }
  return static_cast<int>(blocks < needed ? blocks : needed);
}

// Starts a kernel whose threads share `jobs` pieces of work, one at a time each.
template <class Kernel, class Args>
Status LaunchPieces(int64_t jobs, const Args& a, Stream stream) {
  const int blocks = GridBlocks<Kernel, Args>(jobs, Kernel::kThreads, 1, a.blocks, Kernel::kThreads, 0);
  return Launch<Kernel>(blocks, 1, Kernel::kThreads, 0, a, stream);
}

#endif

}  // namespace hce::cuda
