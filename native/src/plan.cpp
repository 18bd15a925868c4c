#include "plan.h"

#include <climits>
#include <memory>
#include <vector>

#include "plan_reader.h"

namespace qpeft {
namespace {

constexpr int kMaxSlots = 1 << 12;
constexpr int kMostDoubles = 8;  // of any vector
constexpr int kMaxQubits = 26;  // offsets of slots in bytes, 64 for each, are kept in 32 bits

struct NotAPlan {};

// Reads the next numbers. Whatever indexes memory later is checked here, so that the kernels need not do it. Throws
// NotAPlan, so that nothing works with wrong numbers.
class Reader {
 public:
  Reader(OwnedPlan &owner, const int64_t *ints, size_t n_ints, const double *numbers, size_t n_numbers)
      : owner_(owner), next_(ints), end_(ints + n_ints), number_(numbers), number_end_(numbers + n_numbers) {}

  static void require(bool condition) {
    if (!condition) throw NotAPlan();
  }
  int64_t integer() {
    require(next_ != end_);
    return *next_++;
  }
  // A whole number from `least` to `limit` - 1.
  int between(int64_t least, int64_t limit) {
    const int64_t value = integer();
    require(value >= least && value < limit);
    return static_cast<int>(value);
  }
  int below(int64_t limit) { return between(0, limit); }
  uint32_t mask(int n_qubits) { return static_cast<uint32_t>(below(int64_t{1} << n_qubits)); }
  // A count of things that take at least one integer each, so that a wrong one cannot ask for much memory.
  int count() {
    const int64_t value = integer();
    require(value >= 0 && value <= end_ - next_);
    return static_cast<int>(value);
  }
  double number() {
    require(number_ != number_end_);
    return *number_++;
  }
  template <class T>
  T *array(size_t size) {
    return static_cast<T *>(owner_.allocate(size * sizeof(T)));
  }
  const int64_t *indices(int size, int64_t limit) {
    int64_t *values = array<int64_t>(size);
    for (int i = 0; i < size; ++i) values[i] = below(limit);
    return values;
  }
  const uint32_t *slots(int size, int n_qubits) {
    uint32_t *values = array<uint32_t>(size);
    for (int i = 0; i < size; ++i) values[i] = mask(n_qubits);
    return values;
  }
  const int *small_indices(int size, int64_t limit) {
    int *values = array<int>(size);
    for (int i = 0; i < size; ++i) values[i] = below(limit);
    return values;
  }
  const double *numbers(int size) {
    double *values = array<double>(size);
    for (int i = 0; i < size; ++i) values[i] = number();
    return values;
  }
  bool at_end() const { return next_ == end_ && number_ == number_end_; }

 private:
  OwnedPlan &owner_;
  const int64_t *next_, *end_;
  const double *number_, *number_end_;
};

void read_angle(Reader &r, Angle &angle, const Plan &plan) {
  angle.twin = -1;
  angle.in_sweeps = false;
  angle.constant = r.number();
  angle.n_inputs = r.count();
  angle.inputs = r.indices(angle.n_inputs, plan.n_inputs);
  angle.input_factors = r.numbers(angle.n_inputs);
  angle.n_weights = r.count();
  angle.weights = r.indices(angle.n_weights, plan.n_weights);
  angle.weight_factors = r.numbers(angle.n_weights);
}

bool same_inputs(const Angle &a, const Angle &b) {
  if (a.n_inputs != b.n_inputs) return false;
  for (int i = 0; i < a.n_inputs; ++i)
    if (a.inputs[i] != b.inputs[i] || a.input_factors[i] != b.input_factors[i]) return false;
  return true;
}

Turn read_turn(Reader &r, const Plan &plan, int n_qubits) {
  Turn turn;
  turn.angle = r.below(plan.n_angles);
  turn.flip = r.mask(n_qubits);
  turn.parity = r.mask(n_qubits);
  turn.odd = r.below(2);
  return turn;
}

void read_op(Reader &r, Op &op, Plan &plan, Angle *angles, int n_qubits) {
  op = Op{};
  op.kind = r.below(OP_CONTROLLED + 1);
  op.complex_in = r.below(2);
  op.complex_out = r.below(2);
  op.gradient_after = r.below(2);
  switch (op.kind) {
    case OP_SIGNS:
    case OP_TABLE:
      op.table = plan.n_tables++;
      plan.table_size += size_t{1} << n_qubits;
      [[fallthrough]];
    case OP_LANE_PHASE: {
      op.n_terms = r.count();
      PhaseTerm *terms = r.array<PhaseTerm>(op.n_terms);
      for (int i = 0; i < op.n_terms; ++i) {
        terms[i].mask = r.mask(n_qubits);
        terms[i].angle = r.below(plan.n_angles);
        terms[i].sign = r.below(2) ? -1.0 : 1.0;
      }
      op.terms = terms;
      for (int i = 0; op.kind == OP_LANE_PHASE && i < op.n_terms; ++i) angles[terms[i].angle].in_sweeps = true;
      break;
    }
    default: {
      op.radix = r.count();
      const int most = op.kind == OP_CONTROLLED ? 1 : plan.by_amplitudes ? op.radix : 4;
      r.require(op.radix >= 1 && op.radix <= most);
      Turn *turns = r.array<Turn>(op.radix);
      for (int i = 0; i < op.radix; ++i) turns[i] = read_turn(r, plan, n_qubits);
      op.turns = turns;
      for (int i = 0; i < op.radix; ++i) angles[turns[i].angle].in_sweeps = true;
      for (unsigned member = 0; op.radix <= 4 && member < 1u << op.radix; ++member)
        for (int i = 0; i < op.radix; ++i)
          if (member >> i & 1) op.offsets[member] ^= turns[i].flip;
      if (op.kind == OP_CONTROLLED) {
        op.control = r.mask(n_qubits);
        op.control_odd = r.below(2);
      }
      op.n_bases = r.count();
      op.bases = r.slots(op.n_bases, n_qubits);
    }
  }
}

void read_level(Reader &r, Level &level, int n_in) {
  level.n_in = n_in;
  level.n_runs = r.count();
  LetterRun *runs = r.array<LetterRun>(level.n_runs);
  int64_t entering = 0, leaving = 0;
  for (int i = 0; i < level.n_runs; ++i) {
    runs[i] = LetterRun{};
    runs[i].n_letters = r.between(1, 5);
    for (int k = 0; k < runs[i].n_letters; ++k) runs[i].letters[k] = r.between(k ? runs[i].letters[k - 1] + 1 : 0, 4);
    runs[i].n_sums = r.count();
    leaving += runs[i].n_sums;
    entering += int64_t{runs[i].n_letters} * runs[i].n_sums;
    r.require(entering <= n_in);
  }
  r.require(entering == n_in);
  level.runs = runs;
  level.n_out = static_cast<int>(leaving);
  level.targets = r.small_indices(level.n_out, level.n_out);
  std::vector<bool> filled(level.n_out);
  for (int i = 0; i < level.n_out; ++i) filled[level.targets[i]] = true;
  for (const bool is_filled : filled) r.require(is_filled);
}

void read_group(Reader &r, PolynomialGroup &group, const Part &part, Plan &plan, std::vector<bool> &covered) {
  group.n_members = r.count();
  group.n_coefficients = r.count();
  group.n_slots = r.between(1, kMaxSlots);
  group.n_levels = r.below(part.n_qubits + 1);
  Level *levels = r.array<Level>(group.n_levels);
  int n_in = group.n_coefficients;
  size_t partial = 0;
  for (int i = 0; i < group.n_levels; ++i) {
    read_level(r, levels[i], n_in);
    n_in = levels[i].n_out;
    partial += n_in;
  }
  r.require(n_in <= 1 && (n_in == 1 || group.n_levels == 0));  // no coefficient at all: the value is zero
  group.levels = levels;
  group.n_rotations = r.count();
  StringRotation *rotations = r.array<StringRotation>(group.n_rotations);
  for (int i = 0; i < group.n_rotations; ++i) {
    rotations[i].n_pairs = r.count();
    r.require(rotations[i].n_pairs <= group.n_slots);
    rotations[i].pairs = r.small_indices(2 * rotations[i].n_pairs, group.n_slots);
    rotations[i].angles = r.small_indices(group.n_members, plan.n_shared);
    for (int k = 0; k < rotations[i].n_pairs; ++k)
      r.require(rotations[i].pairs[2 * k] != rotations[i].pairs[2 * k + 1]);
  }
  group.rotations = rotations;
  int *values = r.array<int>(group.n_members);
  double *starts = r.array<double>(group.n_members);
  int *wires = r.array<int>(static_cast<size_t>(group.n_members) * group.n_levels);
  for (int m = 0; m < group.n_members; ++m) {
    values[m] = r.below(part.n_values);
    r.require(!covered[values[m]]);
    covered[values[m]] = true;
    starts[m] = r.below(2) ? -1.0 : 1.0;
    for (int i = 0; i < group.n_levels; ++i) wires[m * group.n_levels + i] = r.below(part.n_qubits);
  }
  group.values = values;
  group.starts = starts;
  group.wires = wires;
  int *slots = r.array<int>(group.n_coefficients);
  double *signs = r.array<double>(group.n_coefficients);
  for (int i = 0; i < group.n_coefficients; ++i) {
    slots[i] = r.below(group.n_slots);
    signs[i] = r.below(2) ? -1.0 : 1.0;
  }
  group.slots = slots;
  group.signs = signs;
  group.first_coefficient = plan.n_coefficients;
  group.first_slot = plan.n_slots;
  plan.n_coefficients += static_cast<size_t>(group.n_members) * group.n_coefficients;
  plan.n_slots += static_cast<size_t>((group.n_members + kMostDoubles - 1) / kMostDoubles * kMostDoubles) * group.n_slots;
  if (static_cast<size_t>(group.n_slots) > plan.max_slots) plan.max_slots = group.n_slots;
  if (partial > plan.max_partial) plan.max_partial = partial;
  plan.block_work += static_cast<double>(group.n_members) * group.n_coefficients / 8;
}

void read_part(Reader &r, Part &part, Plan &plan, Angle *angles) {
  part = Part{};
  part.n_qubits = r.between(plan.by_amplitudes ? 4 : 1, kMaxQubits + 1);  // 4: at least one vector of any kind
  part.complex_product = r.below(2);
  part.complex_end = r.below(2);
  Chain *chains = r.array<Chain>(part.n_qubits);
  for (int wire = 0; wire < part.n_qubits; ++wire) {
    const int size = r.count();
    ChainElement *elements = r.array<ChainElement>(size);
    for (int i = 0; i < size; ++i) {
      elements[i].kind = r.below(CHAIN_PHASE + 1);
      elements[i].angle = r.below(plan.n_angles);
    }
    chains[wire] = {size, elements};
    if (size > part.max_chain) part.max_chain = size;
  }
  part.chains = chains;
  part.n_ops = r.count();
  Op *ops = r.array<Op>(part.n_ops);
  for (int i = 0; i < part.n_ops; ++i) read_op(r, ops[i], plan, angles, part.n_qubits);
  part.ops = ops;
  part.n_buffers = r.between(1, int64_t{part.n_ops} + 2);
  int *buffer_of = r.array<int>(part.n_ops + 1);
  for (int i = 0; i <= part.n_ops; ++i) buffer_of[i] = r.between(-part.n_buffers, part.n_buffers);
  part.ends_in_pass = r.below(2);
  const int last = part.n_ops - part.ends_in_pass;
  r.require(last >= 0 && (last == 0 || buffer_of[last] >= 0));  // the search for a kept state ends there
  part.buffer_of = buffer_of;
  part.first_value = plan.n_values;
  part.n_values = r.count();
  plan.n_values += part.n_values;
  Value *values = r.array<Value>(part.n_values);
  for (int i = 0; i < part.n_values; ++i) {
    values[i].flips = r.mask(part.n_qubits);
    values[i].signs = r.mask(part.n_qubits);
    values[i].n_y = r.below(4);
    values[i].sign = r.below(2) ? -1.0 : 1.0;
    values[i].basis_bit = r.between(-1, part.n_qubits);
    if (values[i].basis_bit < 0) ++part.n_signs_values;
  }
  part.values = values;
  part.basis_rank = r.below(part.n_qubits + 1);
  const int n_order = r.count();
  const bool ordered = part.basis_rank > 0 || plan.probabilities;
  r.require(!ordered || n_order == int64_t{1} << part.n_qubits);
  part.order = r.slots(n_order, part.n_qubits);
  if (part.ends_in_pass) {
    const Op &pass = ops[last];
    r.require(pass.kind == OP_PASS && part.basis_rank > 0 && part.n_signs_values == 0 && !plan.by_amplitudes);
    r.require(int64_t{pass.n_bases} << pass.radix == int64_t{1} << part.n_qubits && !plan.probabilities);
    part.end_members = r.slots(1 << pass.radix, pass.radix);
    part.end_starts = r.slots(static_cast<int>(pass.n_bases), pass.radix);
  }
  part.n_groups = r.count();
  PolynomialGroup *groups = r.array<PolynomialGroup>(part.n_groups);
  std::vector<bool> covered(part.n_values);
  for (int i = 0; i < part.n_groups; ++i) read_group(r, groups[i], part, plan, covered);
  part.groups = groups;
  if (part.n_qubits > plan.max_wires) plan.max_wires = part.n_qubits;
  if (part.n_groups > 0) {
    for (const bool is_there : covered) r.require(is_there);
    r.require(part.n_ops == 0 && part.basis_rank == 0 && !plan.by_amplitudes && !plan.probabilities);
    return;
  }
  if (part.n_qubits > plan.max_qubits) plan.max_qubits = part.n_qubits;
  plan.block_work += static_cast<double>(size_t{1} << part.n_qubits);
}

}  // namespace

void *OwnedPlan::allocate(size_t bytes) {
  blocks_.push_back(std::make_unique<char[]>(bytes ? bytes : 1));
  return blocks_.back().get();
}

std::unique_ptr<OwnedPlan> read_plan(const int64_t *ints, size_t n_ints, const double *numbers,
                                     size_t n_numbers) try {
  auto owner = std::make_unique<OwnedPlan>();
  Plan &plan = owner->plan;
  Reader r(*owner, ints, n_ints, numbers, n_numbers);
  plan.n_inputs = r.below(INT_MAX);
  plan.n_weights = r.below(INT_MAX);
  plan.by_amplitudes = r.below(2);
  plan.probabilities = r.below(2);
  plan.n_shared = r.below(INT_MAX);
  plan.n_angles = r.count();
  r.require(plan.n_shared <= plan.n_angles);
  Angle *angles = r.array<Angle>(plan.n_angles);
  for (int i = 0; i < plan.n_angles; ++i) {
    read_angle(r, angles[i], plan);
    r.require(i >= plan.n_shared || angles[i].n_inputs == 0);
  }
  for (int i = 0; i < plan.n_angles; ++i)
    for (int j = 0; j < i && angles[i].twin < 0; ++j)
      if (angles[i].n_inputs && same_inputs(angles[i], angles[j])) angles[i].twin = angles[j].twin < 0 ? j : angles[j].twin;
  plan.angles = angles;
  plan.n_parts = r.count();
  r.require(plan.n_parts == 1 || !(plan.by_amplitudes || plan.probabilities));
  Part *parts = r.array<Part>(plan.n_parts);
  for (int i = 0; i < plan.n_parts; ++i) read_part(r, parts[i], plan, angles);
  plan.parts = parts;
  plan.n_outputs = r.count();
  r.require(!plan.probabilities || plan.n_outputs == int64_t{1} << plan.max_qubits);
  int64_t *row = r.array<int64_t>(plan.n_outputs + 1);
  std::vector<int64_t> factors;
  plan.simple_outputs = !plan.probabilities && plan.n_outputs == plan.n_values;
  row[0] = 0;
  for (int m = 0; m < plan.n_outputs; ++m) {
    const int size = r.count();
    r.require(size <= 1 || !plan.by_amplitudes);
    for (int i = 0; i < size; ++i) factors.push_back(r.below(plan.n_values));
    row[m + 1] = static_cast<int64_t>(factors.size());
    if (size != 1 || factors.back() != m) plan.simple_outputs = false;
  }
  plan.row = row;
  int64_t *factor = r.array<int64_t>(factors.size());
  for (size_t i = 0; i < factors.size(); ++i) factor[i] = factors[i];
  plan.factor = factor;
  r.require(r.at_end());
  // tables stand in the order of their operations
  plan.table_offsets = r.array<size_t>(plan.n_tables);
  size_t offset = 0;
  int table = 0;
  for (int p = 0; p < plan.n_parts; ++p)
    for (int i = 0; i < plan.parts[p].n_ops; ++i)
      if (plan.parts[p].ops[i].kind <= OP_TABLE) {
        plan.table_offsets[table++] = offset;
        offset += size_t{1} << plan.parts[p].n_qubits;
      }
  return owner;
} catch (const NotAPlan &) {
  return nullptr;
}

}  // namespace qpeft
