#include "plan.h"

#include <memory>
#include <vector>

#include "plan_reader.h"

namespace qpeft {
namespace {

class Reader {
 public:
  Reader(OwnedPlan &owner, const int64_t *ints, size_t n_ints, const double *numbers, size_t n_numbers)
      : owner_(owner), next_(ints), end_(ints + n_ints), number_(numbers), number_end_(numbers + n_numbers) {}

  int64_t integer() {
    if (next_ == end_) {
      failed_ = true;
      return 0;
    }
    return *next_++;
  }
  // A count of things that take at least one integer each, so that a wrong one cannot ask for much memory.
  int count() {
    const int64_t value = integer();
    if (value < 0 || value > end_ - next_) {
      failed_ = true;
      return 0;
    }
    return static_cast<int>(value);
  }
  double number() {
    if (number_ == number_end_) {
      failed_ = true;
      return 0;
    }
    return *number_++;
  }
  template <class T>
  T *array(size_t size) {
    return static_cast<T *>(owner_.allocate(size * sizeof(T)));
  }
  const int64_t *integers(int size) {
    int64_t *values = array<int64_t>(size);
    for (int i = 0; i < size; ++i) values[i] = integer();
    return values;
  }
  const uint32_t *slots(int size) {
    uint32_t *values = array<uint32_t>(size);
    for (int i = 0; i < size; ++i) values[i] = static_cast<uint32_t>(integer());
    return values;
  }
  const double *numbers(int size) {
    double *values = array<double>(size);
    for (int i = 0; i < size; ++i) values[i] = number();
    return values;
  }
  bool ended_well() const { return !failed_ && next_ == end_ && number_ == number_end_; }

 private:
  OwnedPlan &owner_;
  const int64_t *next_, *end_;
  const double *number_, *number_end_;
  bool failed_ = false;
};

void read_angle(Reader &r, Angle &angle) {
  angle.constant = r.number();
  angle.n_inputs = r.count();
  angle.inputs = r.integers(angle.n_inputs);
  angle.input_factors = r.numbers(angle.n_inputs);
  angle.n_weights = r.count();
  angle.weights = r.integers(angle.n_weights);
  angle.weight_factors = r.numbers(angle.n_weights);
}

Turn read_turn(Reader &r) {
  Turn turn;
  turn.angle = static_cast<int>(r.integer());
  turn.flip = static_cast<uint32_t>(r.integer());
  turn.parity = static_cast<uint32_t>(r.integer());
  turn.odd = static_cast<int>(r.integer());
  return turn;
}

void read_op(Reader &r, Op &op, Plan &plan, int n_qubits) {
  op = Op{};
  op.kind = static_cast<int>(r.integer());
  op.complex_in = r.integer();
  op.complex_out = r.integer();
  op.gradient_after = r.integer();
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
        terms[i].mask = static_cast<uint32_t>(r.integer());
        terms[i].angle = static_cast<int>(r.integer());
        terms[i].sign = r.integer() ? -1.0 : 1.0;
      }
      op.terms = terms;
      break;
    }
    default: {
      op.radix = r.count();
      Turn *turns = r.array<Turn>(op.radix);
      for (int i = 0; i < op.radix; ++i) turns[i] = read_turn(r);
      op.turns = turns;
      for (unsigned member = 0; op.radix <= 4 && member < 1u << op.radix; ++member)
        for (int i = 0; i < op.radix; ++i)
          if (member >> i & 1) op.offsets[member] ^= turns[i].flip;
      if (op.kind == OP_CONTROLLED) {
        op.control = static_cast<uint32_t>(r.integer());
        op.control_odd = static_cast<int>(r.integer());
      }
      op.n_bases = r.count();
      op.bases = r.slots(op.n_bases);
    }
  }
}

void read_part(Reader &r, Part &part, Plan &plan) {
  part = Part{};
  part.n_qubits = r.count();
  part.complex_product = r.integer();
  part.complex_end = r.integer();
  Chain *chains = r.array<Chain>(part.n_qubits);
  for (int wire = 0; wire < part.n_qubits; ++wire) {
    const int size = r.count();
    ChainElement *elements = r.array<ChainElement>(size);
    for (int i = 0; i < size; ++i) {
      elements[i].kind = static_cast<int>(r.integer());
      elements[i].angle = static_cast<int>(r.integer());
    }
    chains[wire] = {size, elements};
    if (size > part.max_chain) part.max_chain = size;
  }
  part.chains = chains;
  part.n_ops = r.count();
  Op *ops = r.array<Op>(part.n_ops);
  for (int i = 0; i < part.n_ops; ++i) read_op(r, ops[i], plan, part.n_qubits);
  part.ops = ops;
  part.n_buffers = static_cast<int>(r.integer());
  int *buffer_of = r.array<int>(part.n_ops + 1);
  for (int i = 0; i <= part.n_ops; ++i) buffer_of[i] = static_cast<int>(r.integer());
  part.buffer_of = buffer_of;
  part.first_value = plan.n_values;
  part.n_values = r.count();
  plan.n_values += part.n_values;
  Value *values = r.array<Value>(part.n_values);
  for (int i = 0; i < part.n_values; ++i) {
    values[i].flips = static_cast<uint32_t>(r.integer());
    values[i].signs = static_cast<uint32_t>(r.integer());
    values[i].n_y = static_cast<int>(r.integer());
    values[i].sign = r.integer() ? -1.0 : 1.0;
    values[i].basis_bit = static_cast<int>(r.integer());
    if (values[i].basis_bit < 0) ++part.n_signs_values;
  }
  part.values = values;
  part.basis_rank = static_cast<int>(r.integer());
  const int n_order = r.count();
  part.order = r.slots(n_order);
  if (part.n_qubits > plan.max_qubits) plan.max_qubits = part.n_qubits;
}

}  // namespace

void *OwnedPlan::allocate(size_t bytes) {
  blocks_.push_back(std::make_unique<char[]>(bytes ? bytes : 1));
  return blocks_.back().get();
}

std::unique_ptr<OwnedPlan> read_plan(const int64_t *ints, size_t n_ints, const double *numbers, size_t n_numbers) {
  auto owner = std::make_unique<OwnedPlan>();
  Plan &plan = owner->plan;
  Reader r(*owner, ints, n_ints, numbers, n_numbers);
  plan.n_inputs = static_cast<int>(r.integer());
  plan.n_weights = static_cast<int>(r.integer());
  plan.by_amplitudes = r.integer();
  plan.probabilities = r.integer();
  plan.n_shared = static_cast<int>(r.integer());
  plan.n_angles = r.count();
  Angle *angles = r.array<Angle>(plan.n_angles);
  for (int i = 0; i < plan.n_angles; ++i) read_angle(r, angles[i]);
  plan.angles = angles;
  plan.n_parts = r.count();
  Part *parts = r.array<Part>(plan.n_parts);
  for (int i = 0; i < plan.n_parts; ++i) read_part(r, parts[i], plan);
  plan.parts = parts;
  plan.n_outputs = r.count();
  int64_t *row = r.array<int64_t>(plan.n_outputs + 1);
  std::vector<int64_t> factors;
  plan.simple_outputs = !plan.probabilities;
  row[0] = 0;
  for (int m = 0; m < plan.n_outputs; ++m) {
    const int size = r.count();
    for (int i = 0; i < size; ++i) factors.push_back(r.integer());
    row[m + 1] = static_cast<int64_t>(factors.size());
    if (size != 1 || factors.back() != m) plan.simple_outputs = false;
  }
  plan.row = row;
  int64_t *factor = r.array<int64_t>(factors.size());
  for (size_t i = 0; i < factors.size(); ++i) factor[i] = factors[i];
  plan.factor = factor;
  if (!r.ended_well()) return nullptr;
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
}

}  // namespace qpeft
