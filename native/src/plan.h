// A plan: one circuit as the kernels execute it. Built once from the numbers that simulators/plan.py writes.
//
// A plan has angles (affine functions of inputs and weights), parts (small state vectors that are evaluated on their
// own) and outputs (each a product of values measured on parts). A part is a product state, a list of operations and
// the values measured at the end. All of it refers to *slots*, the places of amplitudes in memory: permutations of
// basis states (CNOT, X, SWAP) have been turned into other slots and cost nothing.
#pragma once
#include <cstddef>
#include <cstdint>

namespace qpeft {

// alpha = constant + sum inputs[i] c_i + sum weights[k] c_k; a plan's shared angles come first.
struct Angle {
  double constant;
  int n_inputs, n_weights;
  int twin;        // an earlier angle with the same inputs and factors, which are not none; or -1
  bool in_sweeps;  // whether a rotation or a phase of a whole state turns by it
  const int64_t *inputs, *weights;
  const double *input_factors, *weight_factors;
};

enum ChainKind { CHAIN_TURN = 0, CHAIN_PHASE = 1 };

struct ChainElement {
  int kind, angle;
};

// The single-qubit gates that act on one wire before anything entangles it.
struct Chain {
  int n_elements;
  const ChainElement *elements;
};

enum OpKind {
  OP_SIGNS,        // multiply by a constant table of +-1
  OP_TABLE,        // multiply by exp(i phi(slot)), phi shared by all samples
  OP_LANE_PHASE,   // multiply by exp(+-i alpha), alpha of each sample, sign by parity
  OP_PASS,         // up to 4 commuting rotations [[cos, -sin], [sin, cos]] on pairs (slot, slot ^ flip)
  OP_CONTROLLED,   // one such rotation where a parity is 1
};

struct PhaseTerm {
  uint32_t mask;
  int angle;
  double sign;
};

struct Turn {
  int angle;
  uint32_t flip, parity;  // pairs are (s, s ^ flip); the element with parity(s & parity) == odd comes first
  int odd;
};

struct Op {
  int kind;
  bool complex_in, complex_out;
  int n_terms;  // OP_TABLE, OP_LANE_PHASE
  const PhaseTerm *terms;
  int table;  // OP_TABLE, OP_SIGNS: number of its table
  int radix;  // OP_PASS: log2 of the amplitudes that a group holds, the number of turns
  const Turn *turns;
  const uint32_t *bases;  // OP_PASS: first slot of each group. OP_CONTROLLED: first slot of each pair
  uint32_t n_bases;
  uint32_t offsets[16];  // OP_PASS: slot of a group's member is base ^ offset
  uint32_t control;      // OP_CONTROLLED
  int control_odd;
  // Where the backward pass finds the state. Boundary b is the state after b operations.
  bool gradient_after;  // OP_PASS, OP_CONTROLLED: its gradient uses the state after it, not the one before
};

// A measured Pauli string: sign * sum_s i^n_y (-1)^{parity(s & signs)} conj(psi[s ^ flips]) psi[s].
struct Value {
  uint32_t flips, signs;
  int n_y;
  double sign;
  int basis_bit;  // >= 0: this bit of the measuring order carries it; -1: summed on its own
};

// A Pauli rotation by `angles` in the Heisenberg picture, on the coefficients of strings that do not commute with it:
// slots (a, b) become (cos a - sin b, cos b + sin a).
struct StringRotation {
  int n_pairs;
  const int *pairs;   // 2 * n_pairs
  const int *angles;  // by member
};

// So many sums over the same letters of a wire, 0 to 3 for I, Z, X and Y; I, whose expectation is 1, is first if at all.
struct LetterRun {
  int n_letters;
  int letters[4];
  int n_sums;
};

// A sum over one wire for all that is left of a polynomial then. Numbers go in one by one, sum after sum, and come out
// in the order in which they go into the next level.
struct Level {
  int n_runs, n_in, n_out;
  const LetterRun *runs;
  const int *targets;
};

// Values that are polynomials in the expectations of single wires, of one structure: the members differ in angles and
// wires.
struct PolynomialGroup {
  int n_members, n_coefficients, n_slots, n_levels, n_rotations;
  const Level *levels;
  const StringRotation *rotations;
  const int *values;         // by member: number of the value in the part
  const double *starts;      // by member: what slot 0 starts from
  const int *wires;          // by member and level
  const int *slots;          // by coefficient
  const double *signs;       // by coefficient
  size_t first_coefficient;  // of member 0 among those of all groups; members follow one another
  size_t first_slot;         // the same for slots, members filled up to whole vectors
};

struct Part {
  int n_qubits;
  const Chain *chains;   // of wires: bit k of a slot, where lanes are samples exclusive-or bit k + n / 2 for k < n / 2
  bool complex_product;  // whether a chain holds phases
  bool complex_end;      // whether the state is complex when measured
  int n_ops;
  const Op *ops;
  int n_values, first_value;
  const Value *values;
  int basis_rank;         // number of values carried by bits of the measuring order
  const uint32_t *order;  // slot measured at each place of that order
  // Whether the backward pass runs the last operation, an OP_PASS, and begins in it. The measuring order goes through the
  // groups of that pass: at place k of group g stands its member end_members[k] ^ end_starts[g].
  bool ends_in_pass;
  const uint32_t *end_members, *end_starts;
  int n_signs_values;  // values with basis_bit < 0
  // History for the backward pass, in state buffers of 2 * 2^n_qubits vectors.
  int n_buffers;
  const int *buffer_of;  // boundary -> buffer that holds it, or -1 where it has to be computed back
  int max_chain;
  // Where there are groups, all values are polynomials, and there is no state.
  int n_groups;
  const PolynomialGroup *groups;
};

struct Plan {
  int n_inputs, n_weights, n_outputs, n_angles, n_shared, n_parts, n_values, n_tables;
  const Angle *angles;
  const Part *parts;
  // outputs in compressed rows: output m is the product of values factor[row[m]] ... factor[row[m + 1] - 1]
  const int64_t *row, *factor;
  bool simple_outputs;    // output m is value m, for every m
  bool probabilities;     // outputs are |psi|^2 of the only part instead of values
  bool by_amplitudes;     // lanes are amplitudes of one sample instead of samples
  bool pass_nonfinite;    // NaN and infinity make what depends on them NaN, instead of ending the call
  size_t *table_offsets;  // in elements of cos or sin
  size_t table_size;
  int max_qubits;  // of parts with a state
  int max_wires;   // of all parts
  size_t n_coefficients, n_slots;  // of all polynomials
  size_t max_slots, max_partial;   // of one group: slots, and numbers that leave its levels
  double block_work;               // of one block of samples: amplitudes, or as much work
};

}  // namespace qpeft
