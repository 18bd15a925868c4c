// Reads a plan from the flat arrays that simulators/plan.py writes, and owns its memory.
#pragma once
#include <memory>
#include <vector>

#include "plan.h"

namespace qpeft {

class OwnedPlan {
 public:
  Plan plan{};
  void *allocate(size_t bytes);

 private:
  std::vector<std::unique_ptr<char[]>> blocks_;
};

// Null where the arrays are not a plan.
std::unique_ptr<OwnedPlan> read_plan(const int64_t *ints, size_t n_ints, const double *numbers, size_t n_numbers);

}  // namespace qpeft
