// What all samples of a call share: sines of angles without inputs, and the tables of fused diagonal gates.
//
// A table holds exp(i phi(s)), phi(s) = sum_m a_m (-1)^{parity(s & m)}; phi and, in the other direction, the gradients
// of all a_m come from one fast Walsh-Hadamard transform in double.
#pragma once
#include "plan.h"
#include "vectors.h"

namespace qpeft::QPEFT_ISA {

template <class R>
struct SharedAngles {
  double *alpha;  // by angle: its constant and weights
  R *cos, *sin;   // by angle: of a shared angle, or of what an angle adds to its twin
  R *table_cos, *table_sin;
  double *scratch;  // 2^max_qubits
  // Of polynomials: sines of shared angles in double precision; of a group, slots of vectors of members one after the
  // other; coefficients.
  double *exact_cos, *exact_sin, *slots;
  R *coefficients;

  size_t place(const Plan &plan, char *base) {
    size_t used = 0;
    auto take = [&](auto *&pointer, size_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + used);
      used += (count * sizeof(*pointer) + 63) / 64 * 64;
    };
    take(alpha, plan.n_angles);
    take(cos, plan.n_angles);
    take(sin, plan.n_angles);
    take(table_cos, plan.table_size);
    take(table_sin, plan.table_size);
    take(scratch, plan.n_tables ? size_t{1} << plan.max_qubits : 0);
    take(exact_cos, plan.n_slots ? plan.n_shared : 0);
    take(exact_sin, plan.n_slots ? plan.n_shared : 0);
    take(slots, plan.n_slots);
    take(coefficients, plan.n_coefficients);
    return used;
  }
};

inline void walsh_hadamard(double *values, int bits) {
  const size_t size = size_t{1} << bits;
  for (size_t half = 1; half < size; half *= 2)
    for (size_t block = 0; block < size; block += 2 * half)
      for (size_t i = block; i < block + half; ++i) {
        const double a = values[i], b = values[i + half];
        values[i] = a + b;
        values[i + half] = a - b;
      }
}

template <class R>
void expand(const PolynomialGroup &group, const SharedAngles<R> &shared);

// sin and cos of shared angles and of the phases of tables, and the coefficients of polynomials. False where a weight is not finite.
template <class R>
bool share_angles(const Plan &plan, const double *weights, const SharedAngles<R> &shared) {
  constexpr double kTurn = 6.283185307179586;
  bool finite = true;
  for (int j = 0; j < plan.n_angles; ++j) {
    const Angle &a = plan.angles[j];
    double alpha = a.constant;
    for (int i = 0; i < a.n_weights; ++i) alpha += a.weight_factors[i] * weights[a.weights[i]];
    finite = finite && std::isfinite(alpha);
    // Whole turns are taken off in double: beside a large offset, float would lose the inputs' last digits.
    if (sizeof(R) < sizeof(double) && std::fabs(alpha) > kTurn) alpha = std::remainder(alpha, kTurn);
    shared.alpha[j] = alpha;
  }
  constexpr int kWidth = kLanes<double>;
  for (int j = 0; j < plan.n_angles; j += kWidth) {
    Vector<double> alpha{}, s, c;
    const int lanes = plan.n_angles - j < kWidth ? plan.n_angles - j : kWidth;
    for (int i = 0; i < lanes; ++i) {
      const int twin = plan.angles[j + i].twin;
      alpha[i] = shared.alpha[j + i] - (twin < 0 ? 0.0 : shared.alpha[twin]);
    }
    sincos_any<double>(alpha, s, c);
    for (int i = 0; i < lanes; ++i) {
      shared.cos[j + i] = static_cast<R>(c[i]);
      shared.sin[j + i] = static_cast<R>(s[i]);
      if (plan.n_slots && j + i < plan.n_shared) {
        shared.exact_cos[j + i] = c[i];
        shared.exact_sin[j + i] = s[i];
      }
    }
  }
  for (int p = 0; p < plan.n_parts; ++p) {
    const Part &part = plan.parts[p];
    const size_t d = size_t{1} << part.n_qubits;
    for (int k = 0; k < part.n_ops; ++k) {
      const Op &op = part.ops[k];
      if (op.kind > OP_TABLE) continue;
      std::memset(shared.scratch, 0, d * sizeof(double));
      for (int i = 0; i < op.n_terms; ++i)
        shared.scratch[op.terms[i].mask] += op.terms[i].sign * shared.alpha[op.terms[i].angle];
      walsh_hadamard(shared.scratch, part.n_qubits);
      R *cos = shared.table_cos + plan.table_offsets[op.table], *sin = shared.table_sin + plan.table_offsets[op.table];
      for (size_t s = 0; s < d; s += kWidth) {
        Vector<double> phi{}, sine, cosine;
        const int lanes = d - s < kWidth ? static_cast<int>(d - s) : kWidth;
        for (int i = 0; i < lanes; ++i) phi[i] = shared.scratch[s + i];
        sincos_any<double>(phi, sine, cosine);
        for (int i = 0; i < lanes; ++i) {
          cos[s + i] = static_cast<R>(op.kind == OP_SIGNS ? std::rint(cosine[i]) : cosine[i]);
          sin[s + i] = static_cast<R>(sine[i]);
        }
      }
    }
  }
  for (int p = 0; p < plan.n_parts; ++p)
    for (int g = 0; g < plan.parts[p].n_groups; ++g) expand(plan.parts[p].groups[g], shared);
  return finite;
}

// A coefficient of each member of a polynomial, from `first` on, as a vector.
template <class R>
struct Turned {
  Vector<double> cos{}, sin{};
  Turned(const StringRotation &rotation, const SharedAngles<R> &shared, int first, int members) {
    for (int i = 0; i < members; ++i) {
      cos[i] = shared.exact_cos[rotation.angles[first + i]];
      sin[i] = shared.exact_sin[rotation.angles[first + i]];
    }
  }
};

// Observables in the Heisenberg picture: from slot 0 through all rotations to the coefficients.
template <class R>
void expand(const PolynomialGroup &group, const SharedAngles<R> &shared) {
  constexpr int kWidth = kLanes<double>;
  for (int first = 0; first < group.n_members; first += kWidth) {
    const int members = group.n_members - first < kWidth ? group.n_members - first : kWidth;
    auto *slots = reinterpret_cast<Vector<double> *>(shared.slots + group.first_slot) +
                  static_cast<size_t>(first / kWidth) * group.n_slots;
    std::memset(slots, 0, group.n_slots * sizeof(*slots));
    for (int i = 0; i < members; ++i) slots[0][i] = group.starts[first + i];
    for (int k = 0; k < group.n_rotations; ++k) {
      const StringRotation &rotation = group.rotations[k];
      const Turned<R> by(rotation, shared, first, members);
      for (int i = 0; i < rotation.n_pairs; ++i) {
        Vector<double> &a = slots[rotation.pairs[2 * i]], &b = slots[rotation.pairs[2 * i + 1]];
        const Vector<double> old = a;
        a = by.cos * a - by.sin * b;
        b = by.cos * b + by.sin * old;
      }
    }
    for (int i = 0; i < members; ++i) {
      R *coefficients = shared.coefficients + group.first_coefficient + static_cast<size_t>(first + i) * group.n_coefficients;
      for (int k = 0; k < group.n_coefficients; ++k)
        coefficients[k] = static_cast<R>(group.signs[k] * slots[group.slots[k]][i]);
    }
  }
}

// Adds the gradients of the angles of a polynomial, from those of its coefficients. The rotations are undone on the
// slots as the gradient goes back; `work` holds twice as many vectors as a group has slots.
template <class R>
void collect_polynomial(const PolynomialGroup &group, const SharedAngles<R> &shared, const double *to_coefficients,
                        Vector<double> *work, double *angle_gradient) {
  constexpr int kWidth = kLanes<double>;
  Vector<double> *slots = work, *adjoint = work + group.n_slots;
  for (int first = 0; first < group.n_members; first += kWidth) {
    const int members = group.n_members - first < kWidth ? group.n_members - first : kWidth;
    std::memcpy(slots,
                reinterpret_cast<Vector<double> *>(shared.slots + group.first_slot) +
                    static_cast<size_t>(first / kWidth) * group.n_slots,
                group.n_slots * sizeof(*slots));
    std::memset(adjoint, 0, group.n_slots * sizeof(*adjoint));
    for (int i = 0; i < members; ++i) {
      const double *from = to_coefficients + group.first_coefficient + static_cast<size_t>(first + i) * group.n_coefficients;
      for (int k = 0; k < group.n_coefficients; ++k) adjoint[group.slots[k]][i] += group.signs[k] * from[k];
    }
    for (int k = group.n_rotations - 1; k >= 0; --k) {
      const StringRotation &rotation = group.rotations[k];
      const Turned<R> by(rotation, shared, first, members);
      Vector<double> gradient{};
      for (int i = 0; i < rotation.n_pairs; ++i) {
        Vector<double> &a = slots[rotation.pairs[2 * i]], &b = slots[rotation.pairs[2 * i + 1]];
        Vector<double> &to_a = adjoint[rotation.pairs[2 * i]], &to_b = adjoint[rotation.pairs[2 * i + 1]];
        gradient += to_b * a - to_a * b;
        const Vector<double> old = a, old_to = to_a;
        a = by.cos * a + by.sin * b;
        b = by.cos * b - by.sin * old;
        to_a = by.cos * to_a + by.sin * to_b;
        to_b = by.cos * to_b - by.sin * old_to;
      }
      for (int i = 0; i < members; ++i) angle_gradient[rotation.angles[first + i]] += gradient[i];
    }
  }
}

// Adds the gradients of the angles in tables, from the gradients of the tables' phases (which it overwrites).
inline void collect_tables(const Plan &plan, double *phase_gradients, double *angle_gradient) {
  for (int p = 0; p < plan.n_parts; ++p) {
    const Part &part = plan.parts[p];
    for (int k = 0; k < part.n_ops; ++k) {
      const Op &op = part.ops[k];
      if (op.kind != OP_TABLE) continue;
      double *gradient = phase_gradients + plan.table_offsets[op.table];
      walsh_hadamard(gradient, part.n_qubits);
      for (int i = 0; i < op.n_terms; ++i)
        angle_gradient[op.terms[i].angle] += op.terms[i].sign * gradient[op.terms[i].mask];
    }
  }
}

}  // namespace qpeft::QPEFT_ISA
