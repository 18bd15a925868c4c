// What the builds of kernel.cpp offer to library.cpp: one table of functions for each set of instructions.
#pragma once
#include <cstddef>
#include <cstdint>

#include "plan.h"

namespace qpeft {

// One evaluation of a plan on a batch; R stands for float or double. Strides are in elements.
struct Call {
  const Plan *plan;
  int64_t batch;
  const void *inputs;  // R, (batch, n_inputs)
  int64_t input_row, input_column;
  const double *weights;
  const void *gradient;  // R, (batch, n_outputs); backward only
  int64_t gradient_row, gradient_column;
  void *outputs;     // R, (batch, n_outputs), dense; forward only
  void *to_inputs;   // R, (batch, n_inputs), dense; backward only
};

// The functions for one type of numbers. A block is `lanes` samples, or one sample where the plan says so.
struct KernelFunctions {
  int lanes;
  // What is the same for all samples: sines of shared angles, tables of phases. Returns whether all is finite.
  size_t (*shared_bytes)(const Plan &);
  bool (*share)(const Plan &, const double *weights, void *shared);
  size_t (*workspace_bytes)(const Plan &, bool backward);
  // Blocks first ... last - 1. Return the first sample with an angle that is not finite, or -1.
  int64_t (*forward)(const Call &, const void *shared, void *workspace, int64_t first, int64_t last);
  // As forward; gradients of the angles that hold weights, summed over these blocks, go to angle_gradient (n_angles).
  int64_t (*backward)(const Call &, const void *shared, void *workspace, int64_t first, int64_t last,
                      double *angle_gradient);
};

struct Kernel {
  const char *name;
  int vector_bytes, max_radix;
  KernelFunctions f32, f64;
  double (*peak)(double seconds);  // multiply-adds of float32 as GFLOP/s of one core
};

}  // namespace qpeft

#define QPEFT_DECLARE_KERNEL(isa) \
  namespace qpeft::isa {          \
  const Kernel &kernel();         \
  }
#ifdef QPEFT_HAS_AVX512
QPEFT_DECLARE_KERNEL(avx512)
#endif
#ifdef QPEFT_HAS_AVX2
QPEFT_DECLARE_KERNEL(avx2)
#endif
#ifdef QPEFT_HAS_NEON
QPEFT_DECLARE_KERNEL(neon)
#endif
#ifdef QPEFT_HAS_BASELINE
QPEFT_DECLARE_KERNEL(baseline)
#endif
