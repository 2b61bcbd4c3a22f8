// Kernels with a fault, which the sanitizers and the shim must find. Part of host_kernels.cpp.
#pragma once

namespace {

struct MutantArgs {
  int kind;
  float* out;
};
struct Mutant {
  static constexpr int kThreads = 64, kBlocksPerSm = 1;
  template <class Context>
  static void Run(Context& ctx, const MutantArgs& a) {
    float* shared = ctx.template Shared<float>();
    const int t = ctx.Thread();
    if (a.kind == 0) {  // no barrier between writing and reading
      shared[t] = 1.0f;
      a.out[t] = shared[63 - t];
    } else if (a.kind == 1) {  // one float behind the shared memory
      shared[t + 1] = 1.0f;
    } else {  // a copy that is read before it was waited for
      if (t < 16) CopyAsync16(shared + 4 * t, a.out + 4 * t);
      CopyAsyncCommit();
      ctx.Sync();
      const float v = shared[t];
      ctx.Sync();
      CopyAsyncWait<0>();
      ctx.Sync();
      a.out[t] = v;
    }
  }
};
void RunMutant(int kind) {
  current = "mutant";
  const Buffer out(std::vector<float>(64, 2.0f));
  Launch<Mutant>(1, 1, 64, 64 * 4, MutantArgs{kind, out.data}, nullptr);
  if (kind == 2) Expect(out.data[17] == 2.0f, "the copy was not there yet");
}

}  // namespace
