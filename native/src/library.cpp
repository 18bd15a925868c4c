// The C interface, loaded from Python with ctypes: plans, calls, threads; it picks the build of the kernel for the
// processor at hand.
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "kernel.h"
#include "plan_reader.h"

#if defined(_WIN32)
#include <malloc.h>
#define QPEFT_EXPORT extern "C" __declspec(dllexport)
#else
#define QPEFT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(QPEFT_HAS_AVX2) && defined(_WIN32)
#include <intrin.h>

#include <immintrin.h>
#endif

namespace {

using qpeft::Call;
using qpeft::Kernel;
using qpeft::KernelFunctions;
using qpeft::OwnedPlan;

#ifdef QPEFT_HAS_AVX2
#ifdef _WIN32
// __builtin_cpu_supports needs a run-time library of clang's that Microsoft's linker does not add.
__attribute__((target("xsave"))) bool supports(bool avx512) {
  int leaf[4];
  __cpuid(leaf, 0);
  if (leaf[0] < 7) return false;
  __cpuid(leaf, 1);
  constexpr int fma = 1 << 12, osxsave = 1 << 27;
  if ((leaf[2] & (fma | osxsave)) != (fma | osxsave)) return false;
  const unsigned long long kept = _xgetbv(0);  // the registers that the operating system keeps across switches
  const unsigned long long needed = avx512 ? 0xe6 : 0x6;
  if ((kept & needed) != needed) return false;
  __cpuidex(leaf, 7, 0);
  const unsigned avx2 = 1u << 5, f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
  const unsigned bits = avx512 ? avx2 | f_dq_bw_vl : avx2;
  return (static_cast<unsigned>(leaf[1]) & bits) == bits;
}
#else
bool supports(bool avx512) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return avx2 && (!avx512 || (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")));
}
#endif
#endif

// The best kernel, or a lesser one that QPEFT_ISA names (to test it).
const Kernel &choose_kernel() {
  const char *wanted = std::getenv("QPEFT_ISA");
  auto allowed = [&](const Kernel &kernel) {
    if (!wanted || !*wanted) return true;
    const char *name = kernel.name;
    for (const char *w = wanted;; ++w, ++name) {
      if (*w != *name) return false;
      if (!*w) return true;
    }
  };
#ifdef QPEFT_HAS_AVX512
  if (supports(true) && allowed(qpeft::avx512::kernel())) return qpeft::avx512::kernel();
#endif
#ifdef QPEFT_HAS_AVX2
  if (supports(false) && allowed(qpeft::avx2::kernel())) return qpeft::avx2::kernel();
#endif
#ifdef QPEFT_HAS_NEON
  return qpeft::neon::kernel();
#else
  return qpeft::baseline::kernel();
#endif
}

const Kernel &kernel() {
  static const Kernel &chosen = choose_kernel();
  return chosen;
}

// Memory that a thread keeps from call to call.
class Arena {
 public:
  ~Arena() { release(); }
  void *reserve(size_t bytes) {
    if (bytes == 0) bytes = 1;  // null stands for lack of memory
    if (bytes > size_) {
      release();
#if defined(_WIN32)
      memory_ = _aligned_malloc(bytes, kAlignment);
#else
      if (posix_memalign(&memory_, kAlignment, bytes) != 0) memory_ = nullptr;
#endif
      size_ = memory_ ? bytes : 0;
    }
    return memory_;
  }
  // After a call that needed much: gives it back.
  void trim() {
    if (size_ > kKept) release();
  }

 private:
  static constexpr size_t kAlignment = 4096, kKept = size_t{64} << 20;
  void *memory_ = nullptr;
  size_t size_ = 0;
  void release() {
#if defined(_WIN32)
    _aligned_free(memory_);
#else
    std::free(memory_);
#endif
    memory_ = nullptr;
    size_ = 0;
  }
};

thread_local Arena shared_arena, work_arena;

// Threads come from the OpenMP library that torch has loaded, if Python found one: a second pool of threads beside it
// would compete for the same cores. The interface is that of GCC's library, which LLVM's offers too.
using GompParallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
using ThreadNumber = int (*)();
GompParallel gomp_parallel = nullptr;
ThreadNumber thread_number = nullptr;

struct Job {
  void (*run)(void *, int, int);
  void *context;
  int n_threads;
};

void run_member(void *data) {
  const Job &job = *static_cast<Job *>(data);
  const int mine = thread_number();
  if (mine < job.n_threads) job.run(job.context, mine, job.n_threads);
}

// Runs shares 0 ... n_threads - 1, each at most once: a nested region may be given fewer threads than it asks for.
void parallel(void (*run)(void *, int, int), void *context, int n_threads) {
  if (n_threads <= 1) return run(context, 0, 1);
  if (gomp_parallel) {
    Job job{run, context, n_threads};
    return gomp_parallel(run_member, &job, static_cast<unsigned>(n_threads), 0);
  }
  std::vector<std::thread> threads;
  int started = 1;
  try {
    for (; started < n_threads; ++started) threads.emplace_back(run, context, started, n_threads);
  } catch (...) {  // no thread to be had: this one does the rest
  }
  run(context, 0, n_threads);
  for (; started < n_threads; ++started) run(context, started, n_threads);
  for (std::thread &thread : threads) thread.join();
}

enum Status : int64_t { kDone = -1, kWeights = -2, kMemory = -3, kNotRun = -4 };

struct Work {
  const Call *call;
  const KernelFunctions *functions;
  const void *shared;
  bool backward;
  int64_t n_blocks;
  size_t workspace;
  std::vector<int64_t> status;        // by thread
  std::vector<double> angle_gradient;  // by thread and angle
};

void run_share(void *context, int share, int n_shares) {
  Work &work = *static_cast<Work *>(context);
  const int64_t first = work.n_blocks * share / n_shares, last = work.n_blocks * (share + 1) / n_shares;
  void *memory = work_arena.reserve(work.workspace);
  if (!memory) {
    work.status[share] = kMemory;
    return;
  }
  work.status[share] =
      work.backward ? work.functions->backward(*work.call, work.shared, memory, first, last,
                                               work.angle_gradient.data() + share * work.call->plan->n_angles)
                    : work.functions->forward(*work.call, work.shared, memory, first, last);
  work_arena.trim();
}

// Weights and their gradients, of either type.
double read_weight(const void *weights, bool is_double, int k) {
  return is_double ? static_cast<const double *>(weights)[k] : static_cast<const float *>(weights)[k];
}

int64_t run(Call &call, bool is_double, bool backward, int n_threads, const void *weights, bool double_weights,
            void *to_weights) {
  const qpeft::Plan &plan = *call.plan;
  std::vector<double> exact_weights(plan.n_weights);
  for (int k = 0; k < plan.n_weights; ++k) exact_weights[k] = read_weight(weights, double_weights, k);
  call.weights = exact_weights.data();
  const KernelFunctions &functions = is_double ? kernel().f64 : kernel().f32;
  void *shared = shared_arena.reserve(functions.shared_bytes(plan));
  if (!shared) return kMemory;
  if (!functions.share(plan, call.weights, shared) && !plan.pass_nonfinite) return kWeights;
  const int64_t block = plan.by_amplitudes ? 1 : functions.lanes;
  const int64_t n_blocks = (call.batch + block - 1) / block;
  // A thread is worth its start from some tens of microseconds of work on.
  const double amplitudes =
      static_cast<double>(n_blocks) * plan.block_work * (plan.by_amplitudes ? 1.0 / functions.lanes : 1.0);
  if (amplitudes < 4096) n_threads = 1;
  if (n_threads > n_blocks) n_threads = n_blocks > 0 ? static_cast<int>(n_blocks) : 1;
  Work work{&call, &functions, shared, backward, n_blocks, functions.workspace_bytes(plan, backward), {}, {}};
  work.status.assign(n_threads, kNotRun);
  if (backward) work.angle_gradient.assign(static_cast<size_t>(n_threads) * plan.n_angles, 0.0);
  parallel(run_share, &work, n_threads);
  for (int share = 0; share < n_threads; ++share)
    if (work.status[share] == kNotRun) run_share(&work, share, n_threads);
  for (const int64_t status : work.status)
    if (status != kDone) return status;
  if (backward) {
    exact_weights.assign(plan.n_weights, 0.0);  // from here on their gradients
    for (int j = 0; j < plan.n_angles; ++j) {
      const qpeft::Angle &angle = plan.angles[j];
      if (!angle.n_weights) continue;
      double gradient = 0;
      for (int share = 0; share < n_threads; ++share)
        gradient += work.angle_gradient[static_cast<size_t>(share) * plan.n_angles + j];
      for (int i = 0; i < angle.n_weights; ++i) exact_weights[angle.weights[i]] += angle.weight_factors[i] * gradient;
    }
    for (int k = 0; k < plan.n_weights; ++k) {
      if (double_weights) {
        static_cast<double *>(to_weights)[k] = exact_weights[k];
      } else {
        static_cast<float *>(to_weights)[k] = static_cast<float>(exact_weights[k]);
      }
    }
  }
  shared_arena.trim();
  return kDone;
}

}  // namespace

/// Number of this interface; it grows when a function's arguments or meaning change.
QPEFT_EXPORT int qpeft_native_abi() { return 6; }

/// Name of the instruction set in use.
QPEFT_EXPORT const char *qpeft_native_isa() { return kernel().name; }

/// Bytes in one vector, and the largest number of rotations that one sweep carries out.
QPEFT_EXPORT int qpeft_native_vector_bytes() { return kernel().vector_bytes; }
QPEFT_EXPORT int qpeft_native_max_radix() { return kernel().max_radix; }

/// Multiply-adds of float32 that one core does in registers, as GFLOP/s: the roof of every simulator.
QPEFT_EXPORT double qpeft_native_peak(double seconds) { return kernel().peak(seconds); }

/// Take threads from the loaded OpenMP library: its GOMP_parallel and omp_get_thread_num.
QPEFT_EXPORT void qpeft_native_use_openmp(void *parallel, void *number) {
  gomp_parallel = reinterpret_cast<GompParallel>(parallel);
  thread_number = reinterpret_cast<ThreadNumber>(number);
}

/// A plan from the arrays of simulators/plan.py; null where they are not a plan.
QPEFT_EXPORT void *qpeft_plan_create(const int64_t *ints, int64_t n_ints, const double *numbers, int64_t n_numbers) {
  try {
    return qpeft::read_plan(ints, static_cast<size_t>(n_ints), numbers, static_cast<size_t>(n_numbers)).release();
  } catch (const std::bad_alloc &) {
    return nullptr;
  }
}

/// From now on NaN and infinity in angles make what depends on them NaN, instead of ending the call.
QPEFT_EXPORT void qpeft_plan_pass_nonfinite(void *plan) { static_cast<OwnedPlan *>(plan)->plan.pass_nonfinite = true; }

/// Bytes that one thread works in, and those shared by all.
QPEFT_EXPORT int64_t qpeft_plan_bytes(const void *plan, int is_double, int backward, int n_threads) {
  const qpeft::Plan &read = static_cast<const OwnedPlan *>(plan)->plan;
  const KernelFunctions &functions = is_double ? kernel().f64 : kernel().f32;
  return static_cast<int64_t>(functions.shared_bytes(read) + n_threads * functions.workspace_bytes(read, backward != 0));
}

QPEFT_EXPORT void qpeft_plan_destroy(void *plan) { delete static_cast<OwnedPlan *>(plan); }

/// Expectations (batch, n_outputs) of inputs (batch, n_inputs) with strides in elements. Weights are dense, and double or
/// float whatever the inputs are.
/// Returns -1; else the first sample with an angle that is not finite, -2 for such weights, -3 for lack of memory.
QPEFT_EXPORT int64_t qpeft_forward(const void *plan, int is_double, int64_t batch, const void *inputs,
                                   int64_t input_row, int64_t input_column, int double_weights,
                                   const void *weights, void *outputs, int n_threads) {
  try {
    Call call{&static_cast<const OwnedPlan *>(plan)->plan, batch, inputs, input_row, input_column, nullptr,
              nullptr, 0, 0, outputs, nullptr};
    return run(call, is_double != 0, false, n_threads, weights, double_weights != 0, nullptr);
  } catch (const std::bad_alloc &) {
    return kMemory;
  }
}

/// Gradients for inputs (batch, n_inputs) and weights (n_weights) from those of the outputs; returns as forward does.
QPEFT_EXPORT int64_t qpeft_backward(const void *plan, int is_double, int64_t batch, const void *gradient,
                                    int64_t gradient_row, int64_t gradient_column, const void *inputs,
                                    int64_t input_row, int64_t input_column, int double_weights,
                                    const void *weights, void *to_inputs, void *to_weights, int n_threads) {
  try {
    Call call{&static_cast<const OwnedPlan *>(plan)->plan, batch, inputs, input_row, input_column, nullptr,
              gradient, gradient_row, gradient_column, nullptr, to_inputs};
    return run(call, is_double != 0, true, n_threads, weights, double_weights != 0, to_weights);
  } catch (const std::bad_alloc &) {
    return kMemory;
  }
}
