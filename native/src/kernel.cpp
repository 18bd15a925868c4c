// Compiled once for each set of instructions, with -DQPEFT_ISA=<avx512|avx2|neon|baseline> naming the namespace.
// Whatever is defined here must have a name that no other build of this file has: the linker would keep one of two
// inline functions of one name, and with it instructions that the processor at hand may lack. So the headers below put
// everything into that namespace, and templates of the standard library stay out.
#include "kernel.h"

#include <chrono>

#include "amplitudes.h"
#include "samples.h"

namespace qpeft::QPEFT_ISA {
namespace {

template <class R>
size_t shared_bytes(const Plan &plan) {
  return SharedAngles<R>{}.place(plan, nullptr);
}

template <class R>
bool share(const Plan &plan, const double *weights, void *memory) {
  SharedAngles<R> shared;
  shared.place(plan, static_cast<char *>(memory));
  return share_angles<R>(plan, weights, shared);
}

template <class R>
size_t workspace_bytes(const Plan &plan, bool backward) {
  return plan.by_amplitudes ? AmplitudeWorkspace<R>{}.place(plan, backward, nullptr)
                            : SampleWorkspace<R>{}.place(plan, backward, nullptr);
}

template <class R>
SharedAngles<R> shared_in(const Plan &plan, const void *memory) {
  SharedAngles<R> shared;
  shared.place(plan, static_cast<char *>(const_cast<void *>(memory)));
  return shared;
}

template <class R>
int64_t forward(const Call &call, const void *memory, void *workspace, int64_t first, int64_t last) {
  const SharedAngles<R> shared = shared_in<R>(*call.plan, memory);
  char *work = static_cast<char *>(workspace);
  return call.plan->by_amplitudes ? AmplitudeKernel<R>(call, shared, work, false).forward(first, last)
                                  : SampleKernel<R>(call, shared, work, false).forward(first, last);
}

template <class R>
int64_t backward(const Call &call, const void *memory, void *workspace, int64_t first, int64_t last,
                 double *angle_gradient) {
  const SharedAngles<R> shared = shared_in<R>(*call.plan, memory);
  char *work = static_cast<char *>(workspace);
  return call.plan->by_amplitudes ? AmplitudeKernel<R>(call, shared, work, true).backward(first, last, angle_gradient)
                                  : SampleKernel<R>(call, shared, work, true).backward(first, last, angle_gradient);
}

double peak(double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr int kChains = 16;  // enough to hide the latency of a multiply-add
  Vector<float> sums[kChains];
  Vector<float> factor = splat(0.999999f), addend = splat(1e-6f);
  for (int j = 0; j < kChains; ++j) sums[j] = splat(static_cast<float>(j));
  const auto start = Clock::now();
  double elapsed = 0, operations = 0;
  while (elapsed < seconds) {
    for (int i = 0; i < 100000; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kChains; ++j) sums[j] = sums[j] * factor + addend;
    }
    operations += 100000.0 * kChains * kLanes<float> * 2;
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  }
  double total = 0;
  for (int j = 0; j < kChains; ++j) total += sum<float>(sums[j]);
  return total == 0.123456 ? 0 : operations / elapsed * 1e-9;  // depends on the sums, so they are computed
}

template <class R>
constexpr KernelFunctions functions() {
  return {kLanes<R>, shared_bytes<R>, share<R>, workspace_bytes<R>, forward<R>, backward<R>};
}

#define QPEFT_TEXT(x) #x
#define QPEFT_NAME(x) QPEFT_TEXT(x)
const Kernel kKernel = {QPEFT_NAME(QPEFT_ISA), kVectorBytes, kMaxRadix, functions<float>(), functions<double>(), peak};

}  // namespace

const Kernel &kernel() { return kKernel; }

}  // namespace qpeft::QPEFT_ISA
