// Large circuits: one sample at a time, and the lanes of a vector are neighbouring amplitudes.
//
// Layout: slot s is lane s % lanes of row s / lanes; a state is 2^n real parts, then 2^n imaginary parts. A rotation on
// pairs (s, s ^ flip) reads row r ^ (flip / lanes) and moves its lanes by an exclusive or with flip % lanes; which
// element of a pair is the first is a sign by the parity of the row times a sign by that of the lane. Gradients are
// those of samples.h; rotations keep both their numbers, so there is no scale.
#pragma once
#include <type_traits>
#include <utility>

#include "kernel.h"
#include "plan.h"
#include "shared.h"
#include "vectors.h"

namespace qpeft::QPEFT_ISA {

#if defined(__clang__)
template <class R, int kFlip, size_t... kLane>
inline Vector<R> exchange(Vector<R> v, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(v, v, (kLane ^ kFlip)...);
}
#else
template <class R, int kFlip, size_t... kLane>
inline Vector<R> exchange(Vector<R> v, std::index_sequence<kLane...>) {
  return __builtin_shuffle(v, Mask<R>{static_cast<typename Lanes<R>::Integer>(kLane ^ kFlip)...});
}
#endif

// Lane i of the result is lane i ^ kFlip.
template <class R, int kFlip>
inline Vector<R> exchange(Vector<R> v) {
  if constexpr (kFlip == 0) {
    return v;
  } else {
    return exchange<R, kFlip>(v, std::make_index_sequence<kLanes<R>>());
  }
}

// Calls f(std::integral_constant<int, flip>) for a flip of lanes known only now.
template <class R, class F>
inline void with_flip(uint32_t flip, F &&f) {
  auto at_most = [&](auto limit, auto &&self) {
    constexpr int kTop = decltype(limit)::value;
    if (flip == kTop) return f(std::integral_constant<int, kTop>());
    if constexpr (kTop > 0) self(std::integral_constant<int, kTop - 1>(), self);
  };
  at_most(std::integral_constant<int, kLanes<R> - 1>(), at_most);
}

template <class R>
struct AmplitudeWorkspace {
  R *cos, *sin;            // by angle
  double *angle_gradient;  // by angle, of one sample
  double *angle_sum;       // by angle, of all samples
  R *values, *value_gradients;
  R *chain;          // wires * (max_chain + 1) * 4: states of single wires
  R *product;        // product state of the first k wires at 2^k, real then imaginary parts (2 * 2^(n+1))
  R *states;         // buffers of 2 * 2^n
  R *lambda;         // 2 * 2^n
  R *probabilities;  // 2^n
  R *table_gradient;
  double *table_sum;
  size_t state_stride;

  size_t place(const Plan &plan, bool backward, char *base) {
    size_t used = 0;
    auto take = [&](auto *&pointer, size_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + used);
      used += (count * sizeof(*pointer) + 63) / 64 * 64;
    };
    const Part &part = plan.parts[0];
    const size_t d = size_t{1} << part.n_qubits;
    take(cos, plan.n_angles + kLanes<R>);
    take(sin, plan.n_angles + kLanes<R>);
    take(values, plan.n_values);
    take(chain, static_cast<size_t>(part.n_qubits) * (part.max_chain + 1) * 4);
    take(product, 4 * d);
    state_stride = 2 * d;
    take(states, (backward ? part.n_buffers : 1) * state_stride);
    take(probabilities, d);
    if (backward) {
      take(angle_gradient, plan.n_angles);
      take(angle_sum, plan.n_angles);
      take(value_gradients, plan.n_values);
      take(lambda, 2 * d);
      take(table_gradient, plan.table_size);
      take(table_sum, plan.table_size);
    }
    return used;
  }
};

template <class R>
class AmplitudeKernel {
  using V = Vector<R>;
  static constexpr uint32_t kWidth = kLanes<R>;
  static constexpr int kFlush = 32;  // samples between sums in double

 public:
  AmplitudeKernel(const Call &call, const SharedAngles<R> &shared, char *workspace, bool backward)
      : call_(call), plan_(*call.plan), part_(call.plan->parts[0]), shared_(shared) {
    w_.place(plan_, backward, workspace);
    d_ = size_t{1} << part_.n_qubits;
    rows_ = static_cast<uint32_t>(d_ / kWidth);
    for (int j = 0; j < plan_.n_shared; ++j) {
      w_.cos[j] = shared.cos[j];
      w_.sin[j] = shared.sin[j];
    }
  }

  int64_t forward(int64_t first, int64_t last) {
    for (int64_t sample = first; sample < last; ++sample) {
      if (!load(sample)) return sample;
      evolve(false);
      const Place psi = boundary(part_.n_ops, false);
      R *out = static_cast<R *>(call_.outputs) + sample * plan_.n_outputs;
      square(psi);
      if (plan_.probabilities) {
        for (int m = 0; m < plan_.n_outputs; ++m) out[m] = w_.probabilities[part_.order[m]];
        continue;
      }
      measure(psi);
      for (int m = 0; m < plan_.n_outputs; ++m) {  // one part: an output is one value
        out[m] = plan_.row[m + 1] > plan_.row[m] ? w_.values[plan_.factor[plan_.row[m]]] : R{1};
      }
    }
    return -1;
  }

  int64_t backward(int64_t first, int64_t last, double *gradient) {
    std::memset(w_.table_gradient, 0, plan_.table_size * sizeof(R));
    std::memset(w_.table_sum, 0, plan_.table_size * sizeof(double));
    std::memset(w_.angle_sum, 0, plan_.n_angles * sizeof(double));
    for (int64_t sample = first; sample < last; ++sample) {
      if (!load(sample)) return sample;
      std::memset(w_.angle_gradient, 0, plan_.n_angles * sizeof(double));
      evolve(true);
      const R *from = static_cast<const R *>(call_.gradient) + sample * call_.gradient_row;
      start_lambda(from, boundary(part_.n_ops, true));
      differentiate();
      R *out = static_cast<R *>(call_.to_inputs) + sample * plan_.n_inputs;
      for (int i = 0; i < plan_.n_inputs; ++i) out[i] = R{0};
      for (int j = 0; j < plan_.n_angles; ++j) {
        const Angle &a = plan_.angles[j];
        for (int i = 0; i < a.n_inputs; ++i) out[a.inputs[i]] += static_cast<R>(a.input_factors[i] * w_.angle_gradient[j]);
        if (a.n_weights) w_.angle_sum[j] += w_.angle_gradient[j];
      }
      if ((sample - first) % kFlush == kFlush - 1) flush_tables();
    }
    flush_tables();
    for (int j = 0; j < plan_.n_angles; ++j) gradient[j] = w_.angle_sum[j];
    collect_tables(plan_, w_.table_sum, gradient);
    return -1;
  }

 private:
  const Call &call_;
  const Plan &plan_;
  const Part &part_;
  const SharedAngles<R> &shared_;
  AmplitudeWorkspace<R> w_;
  size_t d_;
  uint32_t rows_;

  struct Place {
    R *re, *im;
  };

  static V load(const R *p) { return *reinterpret_cast<const V *>(p); }
  static void store(R *p, V v) { *reinterpret_cast<V *>(p) = v; }
  static bool odd(uint32_t bits) { return __builtin_parity(bits); }
  // +1 or -1 by the parity of lane & mask
  static V lane_signs(uint32_t mask) {
    V signs{};
    for (uint32_t i = 0; i < kWidth; ++i) signs[i] = odd(i & mask) ? R{-1} : R{1};
    return signs;
  }

  bool load(int64_t sample) {
    const R *x = static_cast<const R *>(call_.inputs) + sample * call_.input_row;
    for (int j = plan_.n_shared; j < plan_.n_angles; j += kWidth) {
      V alpha = splat(R{0}), s, c;
      const int lanes = plan_.n_angles - j < static_cast<int>(kWidth) ? plan_.n_angles - j : static_cast<int>(kWidth);
      for (int k = 0; k < lanes; ++k) {
        const Angle &a = plan_.angles[j + k];
        R value = static_cast<R>(shared_.alpha[j + k]);
        for (int i = 0; i < a.n_inputs; ++i)
          value += static_cast<R>(a.input_factors[i]) * x[a.inputs[i] * call_.input_column];
        if (!plan_.pass_nonfinite && !std::isfinite(value)) return false;
        alpha[k] = value;
      }
      sincos_any<R>(alpha, s, c);
      for (int k = 0; k < lanes; ++k) {
        w_.cos[j + k] = c[k];
        w_.sin[j + k] = s[k];
      }
    }
    return true;
  }

  // --- forward ------------------------------------------------------------------------------------------------

  Place boundary(int b, bool keep) const {
    if (b == 0) return {w_.product + d_, w_.product + 3 * d_};
    const int buffer = keep ? (part_.buffer_of[b] >= 0 ? part_.buffer_of[b] : -1 - part_.buffer_of[b]) : 0;
    R *re = w_.states + buffer * w_.state_stride;
    return {re, re + d_};
  }

  void evolve(bool keep) {
    make_product();
    for (int i = 0; i < part_.n_ops; ++i) {
      const Op &op = part_.ops[i];
      const Place in = boundary(i, keep), out = boundary(i + 1, keep);
      switch (op.kind) {
        case OP_SIGNS:
          multiply_signs(op, in, out);
          break;
        case OP_TABLE:
          multiply_table(op, in, out);
          break;
        case OP_LANE_PHASE:
          copy(in, out, op.complex_in);
          if (!op.complex_in) std::memset(out.im, 0, d_ * sizeof(R));
          for (int k = 0; k < op.n_terms; ++k) turn_phase(op.terms[k], out, false);
          break;
        default:
          copy(in, out, op.complex_in);
          for (int k = 0; k < op.radix; ++k) rotate(op, op.turns[k], out, false);
      }
    }
  }

  void copy(Place in, Place out, bool complex) const {
    if (in.re == out.re) return;
    std::memcpy(out.re, in.re, d_ * sizeof(R));
    if (complex) std::memcpy(out.im, in.im, d_ * sizeof(R));
  }

  void make_product() {
    const size_t imaginary = 2 * d_;
    const int stride = (part_.max_chain + 1) * 4;
    for (int wire = 0; wire < part_.n_qubits; ++wire) {
      const Chain &chain = part_.chains[wire];
      R *v = w_.chain + wire * stride;  // (re0, im0, re1, im1) after each element
      v[0] = R{1};
      v[1] = v[2] = v[3] = R{0};
      for (int e = 0; e < chain.n_elements; ++e, v += 4) {
        const R c = w_.cos[chain.elements[e].angle], s = w_.sin[chain.elements[e].angle];
        if (chain.elements[e].kind == CHAIN_TURN) {
          v[4] = c * v[0] - s * v[2];
          v[5] = c * v[1] - s * v[3];
          v[6] = s * v[0] + c * v[2];
          v[7] = s * v[1] + c * v[3];
        } else {
          v[4] = c * v[0] - s * v[1];
          v[5] = s * v[0] + c * v[1];
          v[6] = c * v[2] + s * v[3];
          v[7] = c * v[3] - s * v[2];
        }
      }
    }
    R *level = w_.product + 1;
    level[0] = R{1};
    level[imaginary] = R{0};
    for (int wire = 0; wire < part_.n_qubits; ++wire) {
      const R *v = w_.chain + wire * stride + part_.chains[wire].n_elements * 4;
      const size_t half = size_t{1} << wire;
      R *next = level + half;
      const R r0 = v[0], i0 = v[1], r1 = v[2], i1 = v[3];
      if (part_.complex_product) {
        for (size_t b = 0; b < half; ++b) {
          const R re = level[b], im = level[b + imaginary];
          next[b] = re * r0 - im * i0;
          next[b + imaginary] = re * i0 + im * r0;
          next[b + half] = re * r1 - im * i1;
          next[b + half + imaginary] = re * i1 + im * r1;
        }
      } else {
        for (size_t b = 0; b < half; ++b) {
          next[b] = level[b] * r0;
          next[b + half] = level[b] * r1;
        }
      }
      level = next;
    }
  }

  void multiply_signs(const Op &op, Place in, Place out) const {
    const R *signs = shared_.table_cos + plan_.table_offsets[op.table];
    for (size_t s = 0; s < d_; ++s) out.re[s] = in.re[s] * signs[s];
    if (op.complex_in)
      for (size_t s = 0; s < d_; ++s) out.im[s] = in.im[s] * signs[s];
  }

  void multiply_table(const Op &op, Place in, Place out) const {
    const R *cos = shared_.table_cos + plan_.table_offsets[op.table];
    const R *sin = shared_.table_sin + plan_.table_offsets[op.table];
    for (size_t s = 0; s < d_; s += kWidth) {
      const V c = load(cos + s), t = load(sin + s), re = load(in.re + s);
      if (op.complex_in) {
        const V im = load(in.im + s);
        store(out.re + s, re * c - im * t);
        store(out.im + s, re * t + im * c);
      } else {
        store(out.re + s, re * c);
        store(out.im + s, re * t);
      }
    }
  }

  void turn_phase(const PhaseTerm &term, Place state, bool inverse) const {
    const V c = splat(w_.cos[term.angle]);
    const V lane = lane_signs(term.mask % kWidth) * (w_.sin[term.angle] * static_cast<R>(inverse ? -term.sign : term.sign));
    const uint32_t row_mask = term.mask / kWidth;
    for (uint32_t r = 0; r < rows_; ++r) {
      R *re = state.re + size_t{r} * kWidth, *im = state.im + size_t{r} * kWidth;
      const V t = odd(r & row_mask) ? -lane : lane, a = load(re), b = load(im);
      store(re, c * a - t * b);
      store(im, t * a + c * b);
    }
  }

  // How a rotation acts on a row, by parities of the row: new = own[control] * row - other[control][first] * partner.
  struct Coefficients {
    V own[2], other[2][2];
    uint32_t row_flip, row_parity, row_control;
  };

  Coefficients coefficients(const Op &op, const Turn &turn, R c, R s) const {
    Coefficients k;
    const bool controlled = op.kind == OP_CONTROLLED;
    const V first = lane_signs(turn.parity % kWidth) * (turn.odd ? -s : s);
    for (int row = 0; row < 2; ++row) {
      for (uint32_t i = 0; i < kWidth; ++i) {
        const bool on = !controlled || (row ^ odd(i & op.control)) != (op.control_odd != 0);
        k.own[row][i] = on ? c : R{1};
        k.other[row][0][i] = on ? first[i] : R{0};
      }
      k.other[row][1] = -k.other[row][0];
    }
    k.row_flip = turn.flip / kWidth;
    k.row_parity = turn.parity / kWidth;
    k.row_control = controlled ? op.control / kWidth : 0;
    return k;
  }

  void rotate(const Op &op, const Turn &turn, Place state, bool inverse) const {
    const R c = w_.cos[turn.angle], s = w_.sin[turn.angle];
    const Coefficients k = coefficients(op, turn, c, inverse ? -s : s);
    with_flip<R>(turn.flip % kWidth, [&](auto flip) {
      constexpr int kFlip = decltype(flip)::value;
      for (int plane = 0; plane < (op.complex_in ? 2 : 1); ++plane) {
        R *at = plane ? state.im : state.re;
        if (k.row_control || k.row_flip == 0) {
          rotate<kFlip>(k, at);
        } else {
          rotate_rows<kFlip>(k, at);
        }
      }
    });
  }

  // Pairs of rows, all of which take part in the same way but for the sign of the row's parity.
  template <int kFlip>
  void rotate_rows(const Coefficients &k, R *state) const {
    const V own = k.own[0], first = k.other[0][0], second = k.other[0][odd(k.row_flip & k.row_parity)];
    const uint32_t low = k.row_flip & -k.row_flip;
    for (uint32_t block = 0; block < rows_; block += 2 * low) {
      for (uint32_t r = block; r < block + low; ++r) {
        R *p = state + size_t{r} * kWidth, *q = state + size_t{r ^ k.row_flip} * kWidth;
        const V a = load(p), b = load(q), sign = splat(row_sign(r, k.row_parity));
        store(p, own * a - first * (sign * exchange<R, kFlip>(b)));
        store(q, own * b - second * (sign * exchange<R, kFlip>(a)));
      }
    }
  }

  template <int kFlip>
  void rotate(const Coefficients &k, R *state) const {
    if (k.row_flip == 0) {
      for (uint32_t r = 0; r < rows_; ++r) {
        R *p = state + size_t{r} * kWidth;
        const V a = load(p);
        const bool control = odd(r & k.row_control);
        store(p, k.own[control] * a - k.other[control][odd(r & k.row_parity)] * exchange<R, kFlip>(a));
      }
      return;
    }
    const uint32_t low = k.row_flip & -k.row_flip;
    for (uint32_t block = 0; block < rows_; block += 2 * low) {
      for (uint32_t r = block; r < block + low; ++r) {
        const uint32_t t = r ^ k.row_flip;
        R *p = state + size_t{r} * kWidth, *q = state + size_t{t} * kWidth;
        const V a = load(p), b = load(q);
        const bool control_a = odd(r & k.row_control), control_b = odd(t & k.row_control);
        store(p, k.own[control_a] * a - k.other[control_a][odd(r & k.row_parity)] * exchange<R, kFlip>(b));
        store(q, k.own[control_b] * b - k.other[control_b][odd(t & k.row_parity)] * exchange<R, kFlip>(a));
      }
    }
  }

  // --- measurement --------------------------------------------------------------------------------------------

  void square(Place psi) {
    for (size_t s = 0; s < d_; s += kWidth) {
      const V re = load(psi.re + s);
      V p = re * re;
      if (part_.complex_end) {
        const V im = load(psi.im + s);
        p += im * im;
      }
      store(w_.probabilities + s, p);
    }
  }

  static R row_sign(uint32_t row, uint32_t mask) { return odd(row & mask) ? R{-1} : R{1}; }

  // Sums over the rows of a block, signed by parities: h[m] becomes the sum over r of (-1)^{parity(r & m)} h[r].
  static constexpr uint32_t kBlockRows = 16;
  uint32_t block_rows() const { return rows_ < kBlockRows ? rows_ : kBlockRows; }
  static void transform(V *h, uint32_t rows) {
    for (uint32_t half = 1; half < rows; half *= 2)
      for (uint32_t start = 0; start < rows; start += 2 * half)
        for (uint32_t r = start; r < start + half; ++r) {
          const V a = h[r], b = h[r + half];
          h[r] = a + b;
          h[r + half] = a - b;
        }
  }

  void measure(Place psi) {
    constexpr int kValues = 64;
    for (int start = 0; start < part_.n_values; start += kValues)
      measure_strings(start, part_.n_values - start < kValues ? part_.n_values : start + kValues);
    for (int v = 0; v < part_.n_values; ++v)
      if (part_.values[v].flips) measure_flipped(v, psi);
  }

  // Values first ... last - 1, at most 64, as far as they are strings of Z: from each block of rows, transformed once.
  void measure_strings(int first, int last) {
    constexpr uint32_t kRows = 256;  // rows whose sum stays in one vector, so that large sums keep their digits
    V sums[64], h[kBlockRows];
    double totals[64] = {};
    const uint32_t rows = block_rows();
    for (uint32_t start = 0; start < rows_; start += kRows) {
      for (V &sum : sums) sum = splat(R{0});
      for (uint32_t block = start; block < start + kRows && block < rows_; block += rows) {
        for (uint32_t r = 0; r < rows; ++r) h[r] = load(w_.probabilities + size_t{block + r} * kWidth);
        transform(h, rows);
        for (int v = first; v < last; ++v) {
          const uint32_t mask = part_.values[v].signs / kWidth;
          sums[v - first] += row_sign(block, mask) * h[mask & (rows - 1)];
        }
      }
      for (int v = first; v < last; ++v)
        totals[v - first] += sum<R>(sums[v - first] * lane_signs(part_.values[v].signs % kWidth));
    }
    for (int v = first; v < last; ++v) w_.values[v] = static_cast<R>(totals[v - first] * pauli_sign(part_.values[v]));
  }

  void measure_flipped(int v, Place psi) {
    constexpr uint32_t kRows = 64;
    const Value &value = part_.values[v];
    const V lanes = lane_signs(value.signs % kWidth);
    double total = 0;
    for (uint32_t start = 0; start < rows_; start += kRows) {
      V part_sum = splat(R{0});
      for (uint32_t r = start; r < start + kRows && r < rows_; ++r)
        part_sum += row_sign(r, value.signs / kWidth) * flipped_product(value, psi, r);
      total += sum<R>(part_sum * lanes);
    }
    w_.values[v] = static_cast<R>(total * pauli_sign(value));
  }

  static double pauli_sign(const Value &value) { return value.n_y & 2 ? -value.sign : value.sign; }

  // Re of i^(n_y % 2) conj(psi[s ^ flips]) psi[s] of a row.
  V flipped_product(const Value &value, Place psi, uint32_t r) const {
    const size_t s = size_t{r} * kWidth, t = size_t{r ^ value.flips / kWidth} * kWidth;
    const V re = load(psi.re + s);
    V other_re, other_im = splat(R{0});
    with_flip<R>(value.flips % kWidth, [&](auto flip) {
      other_re = exchange<R, decltype(flip)::value>(load(psi.re + t));
      if (part_.complex_end) other_im = exchange<R, decltype(flip)::value>(load(psi.im + t));
    });
    if (!part_.complex_end) return value.n_y & 1 ? splat(R{0}) : other_re * re;
    const V im = load(psi.im + s);
    return value.n_y & 1 ? other_im * re - other_re * im : other_re * re + other_im * im;
  }

  // --- backward -----------------------------------------------------------------------------------------------

  void start_lambda(const R *gradient, Place psi) {
    R *re = w_.lambda, *im = w_.lambda + d_;
    if (plan_.probabilities) {
      for (int m = 0; m < plan_.n_outputs; ++m) {
        const uint32_t s = part_.order[m];
        const R g = R{2} * gradient[m * call_.gradient_column];
        re[s] = g * psi.re[s];
        im[s] = part_.complex_end ? g * psi.im[s] : R{0};
      }
      return;
    }
    for (int v = 0; v < part_.n_values; ++v) w_.value_gradients[v] = R{0};
    for (int m = 0; m < plan_.n_outputs; ++m)
      if (plan_.row[m + 1] > plan_.row[m])
        w_.value_gradients[plan_.factor[plan_.row[m]]] += R{2} * gradient[m * call_.gradient_column];
    V lanes[64];
    uint32_t masks[64];
    for (int start = 0; start == 0 || start < part_.n_values; start += 64) {
      const int count = part_.n_values - start < 64 ? part_.n_values - start : 64;
      int used = 0;
      for (int v = start; v < start + count; ++v) {
        const Value &value = part_.values[v];
        if (value.flips) continue;
        lanes[used] = lane_signs(value.signs % kWidth) * (w_.value_gradients[v] * static_cast<R>(pauli_sign(value)));
        masks[used++] = value.signs / kWidth;
      }
      const uint32_t rows = block_rows();
      for (uint32_t block = 0; block < rows_; block += rows) {
        V c[kBlockRows];  // of each row of the block: what Lambda is times psi
        for (V &row : c) row = splat(R{0});
        for (int k = 0; k < used; ++k) c[masks[k] & (rows - 1)] += row_sign(block, masks[k]) * lanes[k];
        transform(c, rows);
        for (uint32_t r = 0; r < rows; ++r) {
          const size_t s = size_t{block + r} * kWidth;
          const V a = c[r] * load(psi.re + s), b = part_.complex_end ? c[r] * load(psi.im + s) : splat(R{0});
          store(re + s, start ? load(re + s) + a : a);
          store(im + s, start ? load(im + s) + b : b);
        }
      }
    }
    for (int v = 0; v < part_.n_values; ++v) {
      const Value &value = part_.values[v];
      if (!value.flips) continue;
      const R g = w_.value_gradients[v] * static_cast<R>(pauli_sign(value));
      const V signs = lane_signs(value.signs % kWidth) * g;
      with_flip<R>(value.flips % kWidth, [&](auto flip) {  // (P psi)[t] = i^n_y sign(s) psi[s], t = s ^ flips
        for (uint32_t r = 0; r < rows_; ++r) {
          const size_t s = size_t{r} * kWidth, t = size_t{r ^ value.flips / kWidth} * kWidth;
          const V sign = signs * row_sign(r, value.signs / kWidth);
          const V a = exchange<R, decltype(flip)::value>(sign * load(psi.re + s));
          const V b = part_.complex_end ? exchange<R, decltype(flip)::value>(sign * load(psi.im + s)) : splat(R{0});
          if (value.n_y & 1) {
            store(re + t, load(re + t) - b);
            store(im + t, load(im + t) + a);
          } else {
            store(re + t, load(re + t) + a);
            store(im + t, load(im + t) + b);
          }
        }
      });
    }
  }

  void differentiate() {
    const Place lambda{w_.lambda, w_.lambda + d_};
    int at_boundary = part_.n_ops;
    Place cursor{nullptr, nullptr};  // the state that earlier ones are computed back from
    for (int i = part_.n_ops - 1; i >= 0; --i) {
      const Op &op = part_.ops[i];
      const int wanted = i + op.gradient_after;
      Place psi = boundary(wanted, true);
      if (op.kind != OP_SIGNS && wanted > 0 && part_.buffer_of[wanted] < 0) {
        if (!cursor.re) {
          at_boundary = wanted + 1;
          while (part_.buffer_of[at_boundary] < 0) ++at_boundary;
          cursor = boundary(at_boundary, true);
        }
        for (; at_boundary > wanted; --at_boundary)
          take_back(part_.ops[at_boundary - 1], cursor, part_.ops[at_boundary - 1].complex_in);
        psi = cursor;
      }
      switch (op.kind) {
        case OP_SIGNS:
          take_back(op, lambda, op.complex_in);
          break;
        case OP_TABLE:
          if (op.gradient_after) table_gradient(op, lambda, psi);
          take_back(op, lambda, true);
          if (!op.gradient_after) table_gradient(op, lambda, psi);
          break;
        case OP_LANE_PHASE:
          take_back(op, lambda, true);
          if (op.gradient_after) {
            // The product of Lambda and the state is the same before and after, so the state goes back as well.
            phase_gradients_after(op, lambda, psi);
          } else {
            phase_gradients(op, lambda, psi, op.complex_in);
          }
          break;
        default:
          if (op.gradient_after) rotation_gradients(op, lambda, psi);
          take_back(op, lambda, op.complex_in);
          if (!op.gradient_after) rotation_gradients(op, lambda, psi);
      }
    }
    product_backward(lambda);
  }

  void take_back(const Op &op, Place state, bool complex) const {
    switch (op.kind) {
      case OP_SIGNS:
        multiply_signs(op, state, state);
        break;
      case OP_TABLE: {
        const R *cos = shared_.table_cos + plan_.table_offsets[op.table];
        const R *sin = shared_.table_sin + plan_.table_offsets[op.table];
        for (size_t s = 0; s < d_; s += kWidth) {
          const V c = load(cos + s), t = load(sin + s), a = load(state.re + s), b = load(state.im + s);
          store(state.re + s, a * c + b * t);
          if (complex) store(state.im + s, b * c - a * t);
        }
        break;
      }
      case OP_LANE_PHASE:
        for (int k = 0; k < op.n_terms; ++k) turn_phase(op.terms[k], state, true);
        break;
      default:
        for (int k = 0; k < op.radix; ++k) rotate(op, op.turns[k], state, true);
    }
  }

  // Lambda_im psi_re - Lambda_re psi_im; a state that is real has no imaginary part.
  V phase_gradient(Place lambda, Place psi, size_t s, bool complex) const {
    V g = load(lambda.im + s) * load(psi.re + s);
    if (complex) g -= load(lambda.re + s) * load(psi.im + s);
    return g;
  }

  void table_gradient(const Op &op, Place lambda, Place psi) const {
    R *gradient = w_.table_gradient + plan_.table_offsets[op.table];
    for (size_t s = 0; s < d_; s += kWidth)
      store(gradient + s, load(gradient + s) + phase_gradient(lambda, psi, s, op.complex_in));
  }

  void phase_gradients(const Op &op, Place lambda, Place psi, bool complex) const {
    for (int k = 0; k < op.n_terms; ++k) {
      const PhaseTerm &term = op.terms[k];
      V total = splat(R{0});
      for (uint32_t r = 0; r < rows_; ++r)
        total += row_sign(r, term.mask / kWidth) * phase_gradient(lambda, psi, size_t{r} * kWidth, complex);
      w_.angle_gradient[term.angle] += term.sign * sum<R>(total * lane_signs(term.mask % kWidth));
    }
  }

  // With the state after the phases: Lambda, which is back before them, is sent through them and back once more.
  void phase_gradients_after(const Op &op, Place lambda, Place psi) const {
    for (int k = 0; k < op.n_terms; ++k) turn_phase(op.terms[k], lambda, false);
    phase_gradients(op, lambda, psi, true);
    for (int k = 0; k < op.n_terms; ++k) turn_phase(op.terms[k], lambda, true);
  }

  // Re <Lambda| -iY psi> of every rotation: a sum over slots of sign(s) Lambda[s ^ flip] psi[s].
  void rotation_gradients(const Op &op, Place lambda, Place psi) const {
    for (int k = 0; k < op.radix; ++k) {
      const Turn &turn = op.turns[k];
      const Coefficients c = coefficients(op, turn, R{0}, R{1});
      double total = 0;
      with_flip<R>(turn.flip % kWidth, [&](auto flip) {
        total = rotation_gradient<decltype(flip)::value>(c, lambda.re, psi.re);
        if (op.complex_in) total += rotation_gradient<decltype(flip)::value>(c, lambda.im, psi.im);
      });
      w_.angle_gradient[turn.angle] += total;
    }
  }

  template <int kFlip>
  double rotation_gradient(const Coefficients &k, const R *lambda, const R *psi) const {
    constexpr uint32_t kRows = 64;
    double total = 0;
    for (uint32_t start = 0; start < rows_; start += kRows) {
      V even = splat(R{0}), uneven = splat(R{0});
      for (uint32_t r = start; r < start + kRows && r < rows_; ++r) {
        const V partner = exchange<R, kFlip>(load(lambda + size_t{r ^ k.row_flip} * kWidth));
        const V signs = k.other[odd(r & k.row_control)][odd(r & k.row_parity)];
        (r & 1 ? uneven : even) += signs * partner * load(psi + size_t{r} * kWidth);
      }
      total += sum<R>(even + uneven);
    }
    return total;
  }

  void product_backward(Place lambda) {
    R *re = lambda.re, *im = lambda.im;
    const size_t imaginary = 2 * d_;
    const int stride = (part_.max_chain + 1) * 4;
    const bool complex = part_.complex_product;
    for (int wire = part_.n_qubits - 1; wire >= 0; --wire) {
      const size_t half = size_t{1} << wire;
      const Chain &chain = part_.chains[wire];
      const R *v = w_.chain + wire * stride + chain.n_elements * 4;
      const R *lre = w_.product + half, *lim = lre + imaginary;
      const R r0 = v[0], i0 = v[1], r1 = v[2], i1 = v[3];
      double m0r = 0, m0i = 0, m1r = 0, m1i = 0;
      size_t b = 0;
      while (b + kWidth <= half) {
        V sum0r = splat(R{0}), sum0i = sum0r, sum1r = sum0r, sum1i = sum0r;  // of 64 rows at most, to keep their digits
        const size_t end = half - b < 64 * kWidth ? half : b + 64 * kWidth;
        for (; b < end; b += kWidth) {
          const V a0 = load(re + b), a1 = load(re + b + half), lr = load(lre + b);
          if (!complex) {
            sum0r += lr * a0;
            sum1r += lr * a1;
            store(re + b, r0 * a0 + r1 * a1);
            continue;
          }
          const V b0 = load(im + b), b1 = load(im + b + half), li = load(lim + b);
          sum0r += lr * a0 + li * b0;
          sum0i += lr * b0 - li * a0;
          sum1r += lr * a1 + li * b1;
          sum1i += lr * b1 - li * a1;
          store(re + b, (r0 * a0 + i0 * b0) + (r1 * a1 + i1 * b1));
          store(im + b, (r0 * b0 - i0 * a0) + (r1 * b1 - i1 * a1));
        }
        m0r += sum<R>(sum0r);
        m0i += sum<R>(sum0i);
        m1r += sum<R>(sum1r);
        m1i += sum<R>(sum1i);
      }
      for (; b < half; ++b) {
        const R a0 = re[b], a1 = re[b + half], b0 = complex ? im[b] : R{0}, b1 = complex ? im[b + half] : R{0};
        const R lr = lre[b], li = complex ? lim[b] : R{0};
        m0r += lr * a0 + li * b0;
        m0i += lr * b0 - li * a0;
        m1r += lr * a1 + li * b1;
        m1i += lr * b1 - li * a1;
        re[b] = (r0 * a0 + i0 * b0) + (r1 * a1 + i1 * b1);
        if (complex) im[b] = (r0 * b0 - i0 * a0) + (r1 * b1 - i1 * a1);
      }
      chain_backward(chain, v, m0r, m0i, m1r, m1i);
    }
  }

  void chain_backward(const Chain &chain, const R *v, double m0r, double m0i, double m1r, double m1i) {
    for (int e = chain.n_elements - 1; e >= 0; --e, v -= 4) {
      const int j = chain.elements[e].angle;
      const double c = w_.cos[j], s = w_.sin[j];
      const double a = m0r, b = m0i, f = m1r, g = m1i;
      if (chain.elements[e].kind == CHAIN_TURN) {
        w_.angle_gradient[j] += (f * v[0] - a * v[2]) + (g * v[1] - b * v[3]);
        m0r = c * a + s * f;
        m1r = c * f - s * a;
        m0i = c * b + s * g;
        m1i = c * g - s * b;
      } else {
        w_.angle_gradient[j] += (b * v[0] - a * v[1]) - (g * v[2] - f * v[3]);
        m0r = c * a + s * b;
        m0i = c * b - s * a;
        m1r = c * f - s * g;
        m1i = c * g + s * f;
      }
    }
  }

  void flush_tables() {
    for (size_t s = 0; s < plan_.table_size; ++s) {
      w_.table_sum[s] += static_cast<double>(w_.table_gradient[s]);
      w_.table_gradient[s] = R{0};
    }
  }
};

}  // namespace qpeft::QPEFT_ISA
