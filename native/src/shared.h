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

// sin and cos of shared angles and of the phases of tables. False where a weight is not finite.
template <class R>
bool share_angles(const Plan &plan, const double *weights, const SharedAngles<R> &shared) {
  bool finite = true;
  for (int j = 0; j < plan.n_angles; ++j) {
    const Angle &a = plan.angles[j];
    double alpha = a.constant;
    for (int i = 0; i < a.n_weights; ++i) alpha += a.weight_factors[i] * weights[a.weights[i]];
    finite = finite && std::isfinite(alpha);
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
  return finite;
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
