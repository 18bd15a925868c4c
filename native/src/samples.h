// Small circuits: every lane of a vector is one sample, and the state of a block of samples stays in the cache.
//
// Layout: an amplitude of a block is a vector; a state is 2^n vectors of real parts, then 2^n of imaginary parts, which
// are left alone while the state is real. The angles of a block are vectors too, whether they differ between samples
// or not, so rotations need no second form.
//
// A rotation [[c, -s], [s, c]] is carried out as [[1, -t], [t, 1]], one multiply-add for each real number, and the
// product of the c is kept aside (`scale`): state = scale * what is stored. Lanes with small c take (c, s) themselves,
// and powers of two are taken out of `scale` where it gets small; both leave the other lanes' bits as they are.
//
// The product state that a circuit starts from is held as the products of two halves of the wires, which also carry its
// gradient: Lambda contracted with one half is the gradient of the other.
//
// Backward: with Lambda = 2 dE/d(conj psi), which starts as 2 sum_m g_m P_m psi and is carried back through inverse
// operations, dE/dalpha is Re <Lambda| -iY psi> for a rotation by 2 alpha about Y and -Im <Lambda| chi psi> for a phase
// exp(i chi alpha). Stored Lambda is Lambda * scale, so that scales cancel in every product with a stored state.
#pragma once
#include <type_traits>

#include "kernel.h"
#include "plan.h"
#include "shared.h"
#include "vectors.h"

namespace qpeft::QPEFT_ISA {

// Memory of one thread, laid out once for a plan.
template <class R>
struct SampleWorkspace {
  using V = Vector<R>;
  V *cos, *sin, *ratio;        // by angle; ratio is y of the rotation (x a - y b, x b + y a)
  bool *small;                 // by angle: some lane takes (c, s)
  V *x;                        // by input
  V *angle_gradient;           // by angle; of shared angles since the last flush, of others of this block
  V *lane_sum;                 // by angle: sums of the latter that a weight needs, since the last flush
  V *values, *value_gradients;
  V *outputs;                  // of a block, or their gradients
  V *factors;                  // scratch for products of values
  V *chain;                    // wires * (max_chain + 1) * 4: states of single wires
  V *halves[2];                // product states of the first k of the lower and of the upper wires at 2^k, real parts
                               // and, half_size later, imaginary parts
  V *half_gradients[2];
  V *product;                  // 2 * 2^n
  V *states;                   // buffers of 2 * 2^n
  V *lambda;                   // 2 * 2^n
  V *measured;                 // sums over groups of amplitudes, or their weights
  V *rescale;                  // by operation: power of two taken out there
  bool *rescaled;
  V *table_gradient;           // by element of the tables, since the last flush
  double *table_sum;           // by element of the tables
  double *angle_sum;           // by angle
  // Of polynomials: expectations of Z, X and Y by wire and their gradients; partial sums; gradients of the coefficients
  // since the last flush, and their sums; scratch for the way back through the rotations of a group.
  V *bloch, *to_bloch, *partial;
  V *coefficient_gradient;
  double *coefficient_sum;
  Vector<double> *slots;
  size_t state_stride, half_size;

  // Lays the memory out from `base`; returns the bytes it takes.
  size_t place(const Plan &plan, bool backward, char *base) {
    size_t used = 0;
    auto take = [&](auto *&pointer, size_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + used);
      used += (count * sizeof(*pointer) + 63) / 64 * 64;
    };
    size_t chain_size = 1, n_buffers = 1, n_ops = 1, max_factors = 1;
    for (int p = 0; p < plan.n_parts; ++p) {
      const Part &part = plan.parts[p];
      const size_t chains = static_cast<size_t>(part.n_qubits) * (part.max_chain + 1) * 4;
      if (chains > chain_size) chain_size = chains;
      if (backward && static_cast<size_t>(part.n_buffers) > n_buffers) n_buffers = part.n_buffers;
      if (static_cast<size_t>(part.n_ops) > n_ops) n_ops = part.n_ops;
    }
    if (!plan.simple_outputs)
      for (int m = 0; m < plan.n_outputs; ++m)
        if (static_cast<size_t>(plan.row[m + 1] - plan.row[m]) > max_factors) max_factors = plan.row[m + 1] - plan.row[m];
    const size_t d = size_t{1} << plan.max_qubits;
    take(cos, plan.n_angles);
    take(sin, plan.n_angles);
    take(ratio, plan.n_angles);
    take(small, plan.n_angles);
    take(x, plan.n_inputs);
    take(values, plan.n_values);
    take(outputs, plan.n_outputs);
    take(factors, max_factors + 1);
    take(chain, chain_size);
    half_size = size_t{2} << (plan.max_qubits + 1) / 2;
    take(halves[0], 2 * half_size);
    take(halves[1], 2 * half_size);
    take(product, 2 * d);
    state_stride = 2 * d;
    take(states, n_buffers * state_stride);
    take(measured, d);
    take(bloch, plan.n_slots ? 3 * static_cast<size_t>(plan.max_wires) : 0);
    take(partial, plan.max_partial);
    take(rescale, n_ops);
    take(rescaled, n_ops);
    if (backward) {
      take(angle_gradient, plan.n_angles);
      take(value_gradients, plan.n_values);
      take(half_gradients[0], 2 * half_size);
      take(half_gradients[1], 2 * half_size);
      take(lambda, 2 * d);
      take(table_gradient, plan.table_size);
      take(table_sum, plan.table_size);
      take(lane_sum, plan.n_angles);
      take(angle_sum, plan.n_angles);
      take(to_bloch, plan.n_slots ? 3 * static_cast<size_t>(plan.max_wires) : 0);
      take(coefficient_gradient, plan.n_coefficients);
      take(coefficient_sum, plan.n_coefficients);
      take(slots, 2 * plan.max_slots);
    }
    return used;
  }
};

template <class R>
class SampleKernel {
  using V = Vector<R>;
  using L = Lanes<R>;
  static constexpr int kWidth = kLanes<R>;
  static constexpr R kSmallCosine = static_cast<R>(1e-4);
  static constexpr R kSmallScale = sizeof(R) == 4 ? static_cast<R>(1e-15) : static_cast<R>(1e-100);
  static constexpr int kFlush = 32;  // blocks between sums in double

 public:
  SampleKernel(const Call &call, const SharedAngles<R> &shared, char *workspace, bool backward)
      : call_(call), plan_(*call.plan), shared_(shared) {
    w_.place(plan_, backward, workspace);
    for (int j = 0; j < plan_.n_shared; ++j) set_angle(j, splat(shared.cos[j]), splat(shared.sin[j]));
  }

  int64_t forward(int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t wrong = load(block);
      if (wrong >= 0) return wrong;
      for (int p = 0; p < plan_.n_parts; ++p) find_values(plan_.parts[p]);
      store_outputs(block);
    }
    return -1;
  }

  int64_t backward(int64_t first, int64_t last, double *gradient) {
    std::memset(w_.table_gradient, 0, plan_.table_size * sizeof(V));
    std::memset(w_.table_sum, 0, plan_.table_size * sizeof(double));
    std::memset(w_.angle_gradient, 0, plan_.n_angles * sizeof(V));
    std::memset(w_.lane_sum, 0, plan_.n_angles * sizeof(V));
    std::memset(w_.angle_sum, 0, plan_.n_angles * sizeof(double));
    std::memset(w_.coefficient_gradient, 0, plan_.n_coefficients * sizeof(V));
    std::memset(w_.coefficient_sum, 0, plan_.n_coefficients * sizeof(double));
    for (int64_t block = first; block < last; ++block) {
      const int64_t wrong = load(block);
      if (wrong >= 0) return wrong;
      std::memset(w_.angle_gradient + plan_.n_shared, 0, (plan_.n_angles - plan_.n_shared) * sizeof(V));
      load_gradient(block);
      for (int p = 0; p < plan_.n_parts; ++p) {
        if (plan_.parts[p].n_groups) {
          differentiate_polynomials(plan_.parts[p]);
        } else {
          evolve(plan_.parts[p], true);
          differentiate(plan_.parts[p]);
        }
      }
      store_gradient(block);
      if ((block - first) % kFlush == kFlush - 1) flush();
    }
    flush();
    for (int j = 0; j < plan_.n_angles; ++j) gradient[j] = w_.angle_sum[j];
    collect_tables(plan_, w_.table_sum, gradient);
    for (int p = 0; p < plan_.n_parts; ++p)
      for (int g = 0; g < plan_.parts[p].n_groups; ++g)
        collect_polynomial(plan_.parts[p].groups[g], shared_, w_.coefficient_sum, w_.slots, gradient);
    return -1;
  }

 private:
  const Call &call_;
  const Plan &plan_;
  const SharedAngles<R> &shared_;
  SampleWorkspace<R> w_;
  V scale_;

  // --- angles -------------------------------------------------------------------------------------------------

  void set_angle(int j, V c, V s) {
    w_.cos[j] = c;
    w_.sin[j] = s;
    if (!plan_.angles[j].in_sweeps) return;
    const Mask<R> small = (c < R{0} ? -c : c) < kSmallCosine;
    w_.small[j] = any<R>(small);
    w_.ratio[j] = w_.small[j] ? (small ? s : s / c) : s / c;
  }
  V own_factor(int j) const { return small_lanes(j) ? w_.cos[j] : splat(R{1}); }    // x of the rotation
  // x a. As a choice, since a compiler that fuses x a - y b as it likes would change the bits of lanes where x is 1.
  static V own(V x, V a) { return x == R{1} ? a : x * a; }
  V scale_factor(int j) const { return small_lanes(j) ? splat(R{1}) : w_.cos[j]; }  // what `scale` takes
  Mask<R> small_lanes(int j) const { return (w_.cos[j] < R{0} ? -w_.cos[j] : w_.cos[j]) < kSmallCosine; }

  int64_t load(int64_t block) {
    const int64_t start = block * kWidth, left = call_.batch - start;
    const int lanes = left < kWidth ? static_cast<int>(left) : kWidth;
    const R *inputs = static_cast<const R *>(call_.inputs) + start * call_.input_row;
    if (lanes == kWidth && call_.input_column == 1) {
      load_columns<R>(inputs, call_.input_row, plan_.n_inputs, w_.x);
    } else {
      for (int i = 0; i < plan_.n_inputs; ++i) {
        R *to = reinterpret_cast<R *>(w_.x + i);
        const R *from = inputs + i * call_.input_column;
        for (int k = 0; k < kWidth; ++k) to[k] = from[(k < lanes ? k : 0) * call_.input_row];
      }
    }
    Mask<R> wide{};
    for (int j = plan_.n_shared; j < plan_.n_angles; ++j) {
      V s, c;
      if (plan_.angles[j].twin < 0) {
        sincos<R>(angle(j), s, c, wide);
      } else {
        turn_twin(j, s, c);
      }
      set_angle(j, c, s);
    }
    return any<R>(wide) ? load_wide(start, lanes) : -1;
  }

  // Angles that differ by what the batch shares: a rotation instead of another sine.
  void turn_twin(int j, V &s, V &c) const {
    const V twin_s = w_.sin[plan_.angles[j].twin], twin_c = w_.cos[plan_.angles[j].twin];
    c = twin_c * shared_.cos[j] - twin_s * shared_.sin[j];
    s = twin_s * shared_.cos[j] + twin_c * shared_.sin[j];
  }

  V angle(int j) const {
    const Angle &a = plan_.angles[j];
    V alpha = splat(static_cast<R>(shared_.alpha[j]));
    for (int i = 0; i < a.n_inputs; ++i) alpha += static_cast<R>(a.input_factors[i]) * w_.x[a.inputs[i]];
    return alpha;
  }

  __attribute__((noinline)) int64_t load_wide(int64_t start, int lanes) {
    int wrong = lanes;  // first lane with an angle that is not finite
    for (int j = plan_.n_shared; j < plan_.n_angles; ++j) {
      V s, c;
      const V alpha = angle(j);
      for (int i = 0; i < wrong; ++i)
        if (!plan_.pass_nonfinite && !std::isfinite(alpha[i])) wrong = i;
      if (plan_.angles[j].twin < 0) {
        sincos_any<R>(alpha, s, c);
      } else {
        turn_twin(j, s, c);
      }
      set_angle(j, c, s);
    }
    return wrong < lanes ? start + wrong : -1;
  }

  // --- forward ------------------------------------------------------------------------------------------------

  V *state(int buffer) const { return w_.states + buffer * w_.state_stride; }

  struct Place {
    V *re, *im;
  };
  Place boundary(const Part &part, int b, bool keep) const {
    V *re = b == 0 ? w_.product : state(keep ? part.buffer_of[b] >= 0 ? part.buffer_of[b] : -1 - part.buffer_of[b] : 0);
    return {re, re + (size_t{1} << part.n_qubits)};
  }

  void find_values(const Part &part) {
    if (part.n_groups) {
      evaluate_polynomials(part);
    } else {
      evolve(part, false);
      measure(part);
    }
  }

  // Runs a part. With `keep`, states that the backward pass needs stay in their buffers, and a last pass that it begins
  // with is left to it.
  void evolve(const Part &part, bool keep) {
    make_product(part);
    scale_ = splat(R{1});
    for (int i = 0; i < part.n_ops; ++i) {
      const Op &op = part.ops[i];
      const Place in = boundary(part, i, keep), out = boundary(part, i + 1, keep);
      const uint32_t d = 1u << part.n_qubits;
      w_.rescaled[i] = false;
      switch (op.kind) {
        case OP_SIGNS:
          multiply_real(shared_.table_cos + plan_.table_offsets[op.table], d, in, out, op.complex_in);
          break;
        case OP_TABLE:
          multiply_table(op, d, in, out);
          break;
        case OP_LANE_PHASE:
          for (int k = 0; k < op.n_terms; ++k) scale_ *= scale_factor(op.terms[k].angle);
          lane_phase(op, i, d, in, out);
          break;
        case OP_PASS:
          for (int k = 0; k < op.radix; ++k) scale_ *= scale_factor_fast(op.turns[k].angle);
          take_out_power(i);
          if (!(keep && part.ends_in_pass && i == part.n_ops - 1))
            pass(op, w_.rescaled[i] ? &w_.rescale[i] : nullptr, in, out);
          break;
        case OP_CONTROLLED:
          controlled(op, d, in, out);
          break;
      }
    }
  }

  V scale_factor_fast(int j) const { return w_.small[j] ? scale_factor(j) : w_.cos[j]; }

  void take_out_power(int i) {
    const V magnitude = scale_ < R{0} ? -scale_ : scale_;
    if (!any<R>(magnitude < kSmallScale)) return;
    w_.rescaled[i] = true;
    w_.rescale[i] = power_of_two<R>(scale_);
    scale_ /= w_.rescale[i];
  }

  // Single wires, then the products of the lower and of the upper half of them, then the product of both. Column b of
  // row h, the amplitude of these numbers in the halves, stands in slot (h << lower wires) + (b ^ h), where only lower
  // bits of h count: amplitudes that differ in upper wires alone would otherwise compete for a few lines of the caches.
  void make_product(const Part &part) {
    run_chains(part);
    const int low = part.n_qubits / 2;
    const Place lower = half_product(part, 0), upper = half_product(part, 1);
    const uint32_t rows = 1u << (part.n_qubits - low), columns = 1u << low;
    for (uint32_t h = 0; h < rows; ++h) {
      V *re = w_.product + h * columns, *im = re + (size_t{1} << part.n_qubits);
      const V hr = upper.re[h], hi = upper.im[h];
      const uint32_t shift = h & (columns - 1);
      if (part.complex_product) {
        for (uint32_t b = 0; b < columns; ++b) {
          const V lr = lower.re[b ^ shift], li = lower.im[b ^ shift];
          re[b] = hr * lr - hi * li;
          im[b] = hr * li + hi * lr;
        }
      } else {
        for (uint32_t b = 0; b < columns; ++b) re[b] = hr * lower.re[b ^ shift];
      }
    }
  }

  void run_chains(const Part &part) {
    const int stride = (part.max_chain + 1) * 4;
    for (int wire = 0; wire < part.n_qubits; ++wire) {
      const Chain &chain = part.chains[wire];
      V *v = w_.chain + wire * stride;  // (re0, im0, re1, im1) after each element
      v[0] = splat(R{1});
      v[1] = v[2] = v[3] = splat(R{0});
      for (int e = 0; e < chain.n_elements; ++e, v += 4) {
        const V c = w_.cos[chain.elements[e].angle], s = w_.sin[chain.elements[e].angle];
        if (chain.elements[e].kind == CHAIN_TURN) {
          v[4] = c * v[0] - s * v[2];
          v[6] = s * v[0] + c * v[2];
          if (part.complex_product) {
            v[5] = c * v[1] - s * v[3];
            v[7] = s * v[1] + c * v[3];
          }
        } else {
          v[4] = c * v[0] - s * v[1];
          v[5] = s * v[0] + c * v[1];
          v[6] = c * v[2] + s * v[3];
          v[7] = c * v[3] - s * v[2];
        }
      }
    }
  }

  // Wires first ... last - 1 are the lower (0) or the upper (1) half.
  static int half_first(const Part &part, int half) { return half ? part.n_qubits / 2 : 0; }
  static int half_last(const Part &part, int half) { return half ? part.n_qubits : part.n_qubits / 2; }

  // The product of a half's wires, doubling from the lowest.
  Place half_product(const Part &part, int which) const {
    const int first = half_first(part, which), last = half_last(part, which);
    const int stride = (part.max_chain + 1) * 4;
    V *level = w_.halves[which] + 1;
    level[0] = splat(R{1});
    level[w_.half_size] = splat(R{0});
    for (int wire = first; wire < last; ++wire) {
      const V *v = w_.chain + wire * stride + part.chains[wire].n_elements * 4;
      const uint32_t half = 1u << (wire - first);
      V *next = level + half;
      if (!part.complex_product) {
        const V v0 = v[0], v1 = v[2];
        for (uint32_t b = 0; b < half; ++b) {
          next[b] = level[b] * v0;
          next[b + half] = level[b] * v1;
        }
      } else {
        const V r0 = v[0], i0 = v[1], r1 = v[2], i1 = v[3];
        const V *lre = level, *lim = level + w_.half_size;
        V *nre = next, *nim = next + w_.half_size;
        for (uint32_t b = 0; b < half; ++b) {
          const V re = lre[b], im = lim[b];
          nre[b] = re * r0 - im * i0;
          nim[b] = re * i0 + im * r0;
          nre[b + half] = re * r1 - im * i1;
          nim[b + half] = re * i1 + im * r1;
        }
      }
      level = next;
    }
    return {level, level + w_.half_size};
  }

  static void multiply_real(const R *table, uint32_t d, Place in, Place out, bool complex) {
    for (uint32_t s = 0; s < d; ++s) out.re[s] = in.re[s] * table[s];
    if (complex)
      for (uint32_t s = 0; s < d; ++s) out.im[s] = in.im[s] * table[s];
  }

  void multiply_table(const Op &op, uint32_t d, Place in, Place out) const {
    const R *cos = shared_.table_cos + plan_.table_offsets[op.table];
    const R *sin = shared_.table_sin + plan_.table_offsets[op.table];
    if (!op.complex_in) {
      for (uint32_t s = 0; s < d; ++s) {
        const V re = in.re[s];
        out.re[s] = re * cos[s];
        out.im[s] = re * sin[s];
      }
      return;
    }
    for (uint32_t s = 0; s < d; ++s) {
      const V re = in.re[s], im = in.im[s];
      out.re[s] = re * cos[s] - im * sin[s];
      out.im[s] = re * sin[s] + im * cos[s];
    }
  }

  // exp(i chi alpha) as (x, chi y) for each term in turn; `inverse` takes the conjugate.
  template <bool kInverse>
  void turn_phases(const Op &op, uint32_t s, V &re, V &im) const {
    for (int k = 0; k < op.n_terms; ++k) {
      const PhaseTerm &term = op.terms[k];
      const bool minus = (__builtin_parity(s & term.mask) != 0) ^ (term.sign < 0) ^ kInverse;
      const V y = minus ? -w_.ratio[term.angle] : w_.ratio[term.angle];
      V a = re, b = im;
      if (w_.small[term.angle]) {
        const V x = own_factor(term.angle);
        a = own(x, a);
        b = own(x, b);
      }
      const V old = re;
      re = a - y * im;
      im = b + y * old;
    }
  }

  void lane_phase(const Op &op, int i, uint32_t d, Place in, Place out) {
    take_out_power(i);
    const bool rescaled = w_.rescaled[i];
    for (uint32_t s = 0; s < d; ++s) {
      V re = in.re[s], im = op.complex_in ? in.im[s] : splat(R{0});
      turn_phases<false>(op, s, re, im);
      out.re[s] = rescaled ? re * w_.rescale[i] : re;
      out.im[s] = rescaled ? im * w_.rescale[i] : im;
    }
  }

  // --- rotations ----------------------------------------------------------------------------------------------

  static V &at(V *base, uint32_t bytes) { return *reinterpret_cast<V *>(reinterpret_cast<char *>(base) + bytes); }
  static const V &at(const V *base, uint32_t bytes) {
    return *reinterpret_cast<const V *>(reinterpret_cast<const char *>(base) + bytes);
  }

  void pass(const Op &op, const V *rescale, Place in, Place out) const {
    bool plain = rescale == nullptr;
    for (int k = 0; k < op.radix; ++k) plain = plain && !w_.small[op.turns[k].angle];
    switch (op.radix * 2 + plain) {
      case 2: return pass<1, false>(op, rescale, in, out);
      case 3: return pass<1, true>(op, rescale, in, out);
      case 4: return pass<2, false>(op, rescale, in, out);
      case 5: return pass<2, true>(op, rescale, in, out);
      case 6: return pass<3, false>(op, rescale, in, out);
      case 7: return pass<3, true>(op, rescale, in, out);
      case 8: return pass<4, false>(op, rescale, in, out);
      case 9: return pass<4, true>(op, rescale, in, out);
    }
  }

  template <int kRadix, bool kPlain>
  __attribute__((noinline)) void pass(const Op &op, const V *rescale, Place in, Place out, bool inverse = false) const {
    constexpr int kGroup = 1 << kRadix;
    V y[kRadix], x[kRadix];
    for (int k = 0; k < kRadix; ++k) {
      y[k] = inverse ? -w_.ratio[op.turns[k].angle] : w_.ratio[op.turns[k].angle];
      if (!kPlain) x[k] = own_factor(op.turns[k].angle);
    }
    const V factor = kPlain || !rescale ? splat(R{1}) : *rescale;
    uint32_t offsets[kGroup];
    for (int j = 0; j < kGroup; ++j) offsets[j] = op.offsets[j] * static_cast<uint32_t>(sizeof(V));
    for (int plane = 0; plane < (op.complex_in ? 2 : 1); ++plane) {
      const V *from = plane ? in.im : in.re;
      V *to = plane ? out.im : out.re;
      for (uint32_t g = 0; g < op.n_bases; ++g) {
        const uint32_t base = op.bases[g] * static_cast<uint32_t>(sizeof(V));
        V a[kGroup];
#pragma GCC unroll 16
        for (int j = 0; j < kGroup; ++j) a[j] = at(from, base ^ offsets[j]);
        turn<kRadix, kPlain, false>(a, x, y);
#pragma GCC unroll 16
        for (int j = 0; j < kGroup; ++j) at(to, base ^ offsets[j]) = kPlain ? a[j] : a[j] * factor;
      }
    }
  }

  // Gradients of a pass from Lambda and the state, and Lambda carried back, in one sweep. The state is the one after
  // the pass (kAfter: gradients come before Lambda is carried back) or the one before it.
  void pass_backward(const Op &op, const V *rescale, Place lambda, Place psi) {
    bool plain = rescale == nullptr;
    for (int k = 0; k < op.radix; ++k) plain = plain && !w_.small[op.turns[k].angle];
    switch ((op.radix * 2 + plain) * 2 + op.gradient_after) {
#define QPEFT_CASES(radix)                                                                 \
  case radix * 4: return pass_backward<radix, false, false>(op, rescale, lambda, psi);     \
  case radix * 4 + 1: return pass_backward<radix, false, true>(op, rescale, lambda, psi);  \
  case radix * 4 + 2: return pass_backward<radix, true, false>(op, rescale, lambda, psi);  \
  case radix * 4 + 3: return pass_backward<radix, true, true>(op, rescale, lambda, psi);
      QPEFT_CASES(1)
      QPEFT_CASES(2)
      QPEFT_CASES(3)
      QPEFT_CASES(4)
#undef QPEFT_CASES
    }
  }

  template <int kRadix, bool kPlain, bool kAfter>
  __attribute__((noinline)) void pass_backward(const Op &op, const V *rescale, Place lambda, Place psi) {
    constexpr int kGroup = 1 << kRadix;
    V y[kRadix], x[kRadix], plus[kRadix], minus[kRadix];
    for (int k = 0; k < kRadix; ++k) {
      y[k] = w_.ratio[op.turns[k].angle];
      if (!kPlain) x[k] = own_factor(op.turns[k].angle);
      plus[k] = minus[k] = splat(R{0});
    }
    const V factor = kPlain || !rescale ? splat(R{1}) : *rescale;
    uint32_t offsets[kGroup];
    for (int j = 0; j < kGroup; ++j) offsets[j] = op.offsets[j] * static_cast<uint32_t>(sizeof(V));
    for (int plane = 0; plane < (op.complex_in ? 2 : 1); ++plane) {
      V *adjoint = plane ? lambda.im : lambda.re;
      const V *state = plane ? psi.im : psi.re;
      for (uint32_t g = 0; g < op.n_bases; ++g) {
        const uint32_t base = op.bases[g] * static_cast<uint32_t>(sizeof(V));
        V a[kGroup];
#pragma GCC unroll 16
        for (int j = 0; j < kGroup; ++j) a[j] = at(adjoint, base ^ offsets[j]);
        if (kAfter) gradients<kRadix>(a, state, base, offsets, plus, minus);
        turn<kRadix, kPlain, true>(a, x, y);
        if (!kPlain) {
#pragma GCC unroll 16
          for (int j = 0; j < kGroup; ++j) a[j] *= factor;
        }
        if (!kAfter) gradients<kRadix>(a, state, base, offsets, plus, minus);
#pragma GCC unroll 16
        for (int j = 0; j < kGroup; ++j) at(adjoint, base ^ offsets[j]) = a[j];
      }
    }
    for (int k = 0; k < kRadix; ++k) w_.angle_gradient[op.turns[k].angle] += plus[k] - minus[k];
  }

  // The last pass of a circuit and the way back through it: Lambda is a multiple of the state after the pass, which is
  // found and left in registers. Member j of group g has (high[g] + low[j ^ end_starts[g]]) psi.
  void pass_end(const Part &part, const V *rescale, const V *low, const V *high, Place psi, Place lambda) {
    const Op &op = part.ops[part.n_ops - 1];
    bool plain = rescale == nullptr;
    for (int k = 0; k < op.radix; ++k) plain = plain && !w_.small[op.turns[k].angle];
    switch (op.radix * 2 + plain) {
      case 2: return pass_end<1, false>(part, rescale, low, high, psi, lambda);
      case 3: return pass_end<1, true>(part, rescale, low, high, psi, lambda);
      case 4: return pass_end<2, false>(part, rescale, low, high, psi, lambda);
      case 5: return pass_end<2, true>(part, rescale, low, high, psi, lambda);
      case 6: return pass_end<3, false>(part, rescale, low, high, psi, lambda);
      case 7: return pass_end<3, true>(part, rescale, low, high, psi, lambda);
      case 8: return pass_end<4, false>(part, rescale, low, high, psi, lambda);
      case 9: return pass_end<4, true>(part, rescale, low, high, psi, lambda);
    }
  }

  template <int kRadix, bool kPlain>
  __attribute__((noinline)) void pass_end(const Part &part, const V *rescale, const V *low, const V *high, Place psi,
                                          Place lambda) {
    constexpr int kGroup = 1 << kRadix;
    const Op &op = part.ops[part.n_ops - 1];
    V y[kRadix], x[kRadix], plus[kRadix], minus[kRadix];
    for (int k = 0; k < kRadix; ++k) {
      y[k] = w_.ratio[op.turns[k].angle];
      if (!kPlain) x[k] = own_factor(op.turns[k].angle);
      plus[k] = minus[k] = splat(R{0});
    }
    const V factor = kPlain || !rescale ? splat(R{1}) : *rescale;
    uint32_t offsets[kGroup];
    for (int j = 0; j < kGroup; ++j) offsets[j] = op.offsets[j] * static_cast<uint32_t>(sizeof(V));
    for (int plane = 0; plane < (op.complex_in ? 2 : 1); ++plane) {
      const V *from = plane ? psi.im : psi.re;
      V *to = plane ? lambda.im : lambda.re;
      for (uint32_t g = 0; g < op.n_bases; ++g) {
        const uint32_t base = op.bases[g] * static_cast<uint32_t>(sizeof(V));
        V a[kGroup], b[kGroup];
#pragma GCC unroll 16
        for (int j = 0; j < kGroup; ++j) a[j] = at(from, base ^ offsets[j]);
        turn<kRadix, kPlain, false>(a, x, y);
        if (!kPlain) {
#pragma GCC unroll 16
          for (int j = 0; j < kGroup; ++j) a[j] *= factor;
        }
#pragma GCC unroll 16
        for (int j = 0; j < kGroup; ++j) b[j] = (high[g] + low[j ^ part.end_starts[g]]) * a[j];
#pragma GCC unroll 16
        for (int j = 0; j < kGroup; ++j) {
#pragma GCC unroll 4
          for (int k = 0; k < kRadix; ++k) {
            if (j >> k & 1) {
              minus[k] += b[j ^ 1 << k] * a[j];
            } else {
              plus[k] += b[j ^ 1 << k] * a[j];
            }
          }
        }
        turn<kRadix, kPlain, true>(b, x, y);
#pragma GCC unroll 16
        for (int j = 0; j < kGroup; ++j) at(to, base ^ offsets[j]) = kPlain ? b[j] : b[j] * factor;
      }
    }
    for (int k = 0; k < kRadix; ++k) w_.angle_gradient[op.turns[k].angle] += plus[k] - minus[k];
  }

  // All turns of a group of amplitudes in registers.
  template <int kRadix, bool kPlain, bool kInverse>
  static inline __attribute__((always_inline)) void turn(V *a, const V *x, const V *y) {
#pragma GCC unroll 4
    for (int k = 0; k < kRadix; ++k) {
#pragma GCC unroll 16
      for (int j = 0; j < 1 << kRadix; ++j) {
        if (j >> k & 1) continue;
        const V first = a[j], second = a[j | 1 << k];
        const V own_first = kPlain ? first : own(x[k], first), own_second = kPlain ? second : own(x[k], second);
        a[j] = kInverse ? own_first + y[k] * second : own_first - y[k] * second;
        a[j | 1 << k] = kInverse ? own_second - y[k] * first : own_second + y[k] * first;
      }
    }
  }

  template <int kRadix>
  static inline __attribute__((always_inline)) void gradients(const V *a, const V *psi, uint32_t base,
                                                              const uint32_t *offsets, V *plus, V *minus) {
#pragma GCC unroll 16
    for (int j = 0; j < 1 << kRadix; ++j) {
      const V p = at(psi, base ^ offsets[j]);
#pragma GCC unroll 4
      for (int k = 0; k < kRadix; ++k) {
        if (j >> k & 1) {
          minus[k] += a[j ^ 1 << k] * p;
        } else {
          plus[k] += a[j ^ 1 << k] * p;
        }
      }
    }
  }

  void controlled(const Op &op, uint32_t d, Place in, Place out) const {
    const V c = w_.cos[op.turns[0].angle], s = w_.sin[op.turns[0].angle];
    for (int plane = 0; plane < (op.complex_in ? 2 : 1); ++plane) {
      const V *from = plane ? in.im : in.re;
      V *to = plane ? out.im : out.re;
      if (from != to) std::memcpy(to, from, d * sizeof(V));
      for (uint32_t g = 0; g < op.n_bases; ++g) {
        const uint32_t first = op.bases[g], second = first ^ op.turns[0].flip;
        const V a = to[first], b = to[second];
        to[first] = c * a - s * b;
        to[second] = s * a + c * b;
      }
    }
  }

  void controlled_backward(const Op &op, V *lambda, const V *psi) {
    const V c = w_.cos[op.turns[0].angle], s = w_.sin[op.turns[0].angle];
    V gradient = splat(R{0});
    for (uint32_t g = 0; g < op.n_bases; ++g) {
      const uint32_t first = op.bases[g], second = first ^ op.turns[0].flip;
      const V a = lambda[first], b = lambda[second];
      const V a_before = c * a + s * b, b_before = c * b - s * a;
      gradient += op.gradient_after ? b * psi[first] - a * psi[second] : b_before * psi[first] - a_before * psi[second];
      lambda[first] = a_before;
      lambda[second] = b_before;
    }
    w_.angle_gradient[op.turns[0].angle] += gradient;
  }

  // --- measurement --------------------------------------------------------------------------------------------

  // sums[0] += everything, sums[1 + k] += the sum signed by bit k of the place, over 2^kRadix places.
  template <int kRadix>
  static inline __attribute__((always_inline)) V signed_sums(V *p, V *sums) {
#pragma GCC unroll 4
    for (int k = 0; k < kRadix; ++k) {
      V difference = p[0] - p[1];
      p[0] = p[0] + p[1];
#pragma GCC unroll 8
      for (int j = 1; j < 1 << (kRadix - 1 - k); ++j) {
        difference += p[2 * j] - p[2 * j + 1];
        p[j] = p[2 * j] + p[2 * j + 1];
      }
      sums[k] += difference;
    }
    return p[0];
  }

  // Signed sums over `count` = 2^bits vectors, bit by bit.
  static void fold(V *p, int bits, V *sums) {
    for (int k = 0; k < bits; ++k) {
      V difference = splat(R{0});
      const uint32_t half = 1u << (bits - 1 - k);
      for (uint32_t j = 0; j < half; ++j) {
        difference += p[2 * j] - p[2 * j + 1];
        p[j] = p[2 * j] + p[2 * j + 1];
      }
      sums[k] = difference;
    }
  }

  template <int kRadix, bool kComplex>
  __attribute__((noinline)) void probabilities_by_bit(const uint32_t *order, uint32_t groups, Place place, V *sums,
                                                      V *totals) const {
    V low[4] = {};
    for (uint32_t g = 0; g < groups; ++g) {
      V p[1 << kRadix];
#pragma GCC unroll 16
      for (int j = 0; j < 1 << kRadix; ++j) {
        const uint32_t s = order[(g << kRadix) + j];
        p[j] = place.re[s] * place.re[s];
        if (kComplex) p[j] += place.im[s] * place.im[s];
      }
      totals[g] = signed_sums<kRadix>(p, low);
    }
    for (int k = 0; k < kRadix; ++k) sums[k] = low[k];
  }

  void measure(const Part &part) {
    const uint32_t d = 1u << part.n_qubits;
    const Place place = boundary(part, part.n_ops, false);
    if (plan_.probabilities) return;  // store_outputs reads the state
    const V square = scale_ * scale_;
    V *values = w_.values + part.first_value;
    if (part.basis_rank > 0) {
      V sums[32];
      const int radix = part.n_qubits < 4 ? part.n_qubits : 4;
      V *totals = w_.measured;
      switch (radix * 2 + part.complex_end) {
        case 2: probabilities_by_bit<1, false>(part.order, d >> 1, place, sums, totals); break;
        case 3: probabilities_by_bit<1, true>(part.order, d >> 1, place, sums, totals); break;
        case 4: probabilities_by_bit<2, false>(part.order, d >> 2, place, sums, totals); break;
        case 5: probabilities_by_bit<2, true>(part.order, d >> 2, place, sums, totals); break;
        case 6: probabilities_by_bit<3, false>(part.order, d >> 3, place, sums, totals); break;
        case 7: probabilities_by_bit<3, true>(part.order, d >> 3, place, sums, totals); break;
        case 8: probabilities_by_bit<4, false>(part.order, d >> 4, place, sums, totals); break;
        case 9: probabilities_by_bit<4, true>(part.order, d >> 4, place, sums, totals); break;
      }
      fold(totals, part.n_qubits - radix, sums + radix);
      for (int v = 0; v < part.n_values; ++v)
        if (part.values[v].basis_bit >= 0)
          values[v] = square * sums[part.values[v].basis_bit] * static_cast<R>(part.values[v].sign);
    }
    if (part.n_signs_values)
      for (int v = 0; v < part.n_values; ++v)
        if (part.values[v].basis_bit < 0) values[v] = square * pauli(part, part.values[v], place);
  }

  // i^n_y (-1)^{parity} as a sign and whether it is imaginary.
  static R pauli_sign(const Value &value, uint32_t s) {
    const bool minus = (__builtin_parity(s & value.signs) != 0) ^ (value.sign < 0) ^ ((value.n_y & 2) != 0);
    return minus ? R{-1} : R{1};
  }

  V pauli(const Part &part, const Value &value, Place place) const {
    V result = splat(R{0});
    for (uint32_t s = 0; s < 1u << part.n_qubits; ++s) {
      const uint32_t t = s ^ value.flips;
      const R sign = pauli_sign(value, s);
      V product;  // Re of conj(psi[t]) psi[s], or of i times it
      if (value.n_y & 1) {
        if (!part.complex_end) break;
        product = place.im[t] * place.re[s] - place.re[t] * place.im[s];
      } else {
        product = place.re[t] * place.re[s];
        if (part.complex_end) product += place.im[t] * place.im[s];
      }
      result += sign * product;
    }
    return result;
  }

  void store_outputs(int64_t block) {
    const int64_t start = block * kWidth, left = call_.batch - start;
    const int lanes = left < kWidth ? static_cast<int>(left) : kWidth;
    R *out = static_cast<R *>(call_.outputs) + start * plan_.n_outputs;
    const V *outputs = w_.outputs;
    if (plan_.probabilities) {
      const Part &part = plan_.parts[0];
      const Place place = boundary(part, part.n_ops, false);
      const V square = scale_ * scale_;
      for (int m = 0; m < plan_.n_outputs; ++m) {
        const uint32_t s = part.order[m];
        V p = place.re[s] * place.re[s];
        if (part.complex_end) p += place.im[s] * place.im[s];
        w_.outputs[m] = p * square;
      }
    } else if (plan_.simple_outputs) {
      outputs = w_.values;
    } else {
      for (int m = 0; m < plan_.n_outputs; ++m) {
        V value = splat(R{1});
        for (int64_t f = plan_.row[m]; f < plan_.row[m + 1]; ++f) value *= w_.values[plan_.factor[f]];
        w_.outputs[m] = value;
      }
    }
    store_rows(outputs, out, plan_.n_outputs, lanes);
  }

  static void store_rows(const V *lanes, R *out, int columns, int rows) {
    if (rows == kWidth) return store_columns<R>(lanes, out, columns, columns);
    for (int m = 0; m < columns; ++m)
      for (int k = 0; k < rows; ++k) out[k * columns + m] = lanes[m][k];
  }

  // --- backward -----------------------------------------------------------------------------------------------

  // Gradients of values; where outputs are products of values, the parts are evaluated for that first.
  void load_gradient(int64_t block) {
    const int64_t start = block * kWidth, left = call_.batch - start;
    const R *from = static_cast<const R *>(call_.gradient) + start * call_.gradient_row;
    V *gradients = plan_.simple_outputs ? w_.value_gradients : w_.outputs;
    if (left >= kWidth && call_.gradient_column == 1) {
      load_columns<R>(from, call_.gradient_row, plan_.n_outputs, gradients);
    } else {
      for (int m = 0; m < plan_.n_outputs; ++m) {
        gradients[m] = splat(R{0});  // lanes beyond the batch have no gradient
        R *to = reinterpret_cast<R *>(gradients + m);
        for (int k = 0; k < (left < kWidth ? left : kWidth); ++k)
          to[k] = from[k * call_.gradient_row + m * call_.gradient_column];
      }
    }
    if (plan_.simple_outputs || plan_.probabilities) return;
    for (int p = 0; p < plan_.n_parts; ++p) find_values(plan_.parts[p]);
    std::memset(w_.value_gradients, 0, plan_.n_values * sizeof(V));
    for (int m = 0; m < plan_.n_outputs; ++m) {
      const int64_t *factor = plan_.factor + plan_.row[m];
      const int size = static_cast<int>(plan_.row[m + 1] - plan_.row[m]);
      w_.factors[0] = w_.outputs[m];
      for (int f = 0; f + 1 < size; ++f) w_.factors[f + 1] = w_.factors[f] * w_.values[factor[f]];
      V after = splat(R{1});
      for (int f = size - 1; f >= 0; --f) {
        w_.value_gradients[factor[f]] += w_.factors[f] * after;
        after *= w_.values[factor[f]];
      }
    }
  }

  void differentiate(const Part &part) {
    const uint32_t d = 1u << part.n_qubits;
    V *re = w_.lambda, *im = w_.lambda + d;
    if (part.ends_in_pass) {
      end(part, {re, im});
    } else {
      start_lambda(part);
    }
    int at_boundary = part.n_ops;  // where states have to be computed back: the boundary of the state in `cursor`
    Place cursor{nullptr, nullptr};
    for (int i = part.n_ops - 1 - part.ends_in_pass; i >= 0; --i) {
      const Op &op = part.ops[i];
      const V *rescale = w_.rescaled[i] ? &w_.rescale[i] : nullptr;
      Place psi = boundary(part, i + op.gradient_after, true);
      if (op.kind != OP_SIGNS && i + op.gradient_after > 0 && part.buffer_of[i + op.gradient_after] < 0) {
        if (!cursor.re) {
          at_boundary = i + op.gradient_after + 1;
          while (part.buffer_of[at_boundary] < 0) ++at_boundary;
          cursor = boundary(part, at_boundary, true);
        }
        while (at_boundary > i + op.gradient_after) undo(part, --at_boundary, cursor);
        psi = cursor;
      }
      switch (op.kind) {
        case OP_SIGNS:
          multiply_real(shared_.table_cos + plan_.table_offsets[op.table], d, {re, im}, {re, im}, op.complex_in);
          break;
        case OP_TABLE:
          table_backward(op, d, re, im, psi);
          break;
        case OP_LANE_PHASE:
          lane_phase_backward(op, rescale, d, re, im, psi);
          break;
        case OP_PASS:
          pass_backward(op, rescale, {re, im}, psi);
          break;
        case OP_CONTROLLED:
          controlled_backward(op, re, psi.re);
          if (op.complex_in) controlled_backward(op, im, psi.im);
          break;
      }
    }
    product_backward(part, re, im);
  }

  // Takes operation i back on the stored state at its end.
  void undo(const Part &part, int i, Place at) {
    const Op &op = part.ops[i];
    const uint32_t d = 1u << part.n_qubits;
    switch (op.kind) {
      case OP_SIGNS:
        multiply_real(shared_.table_cos + plan_.table_offsets[op.table], d, at, at, op.complex_in);
        break;
      case OP_TABLE: {
        const R *cos = shared_.table_cos + plan_.table_offsets[op.table];
        const R *sin = shared_.table_sin + plan_.table_offsets[op.table];
        for (uint32_t s = 0; s < d; ++s) {
          const V a = at.re[s], b = at.im[s];
          at.re[s] = a * cos[s] + b * sin[s];
          at.im[s] = b * cos[s] - a * sin[s];
        }
        break;
      }
      case OP_LANE_PHASE: {
        V factor = splat(R{1});
        for (int k = 0; k < op.n_terms; ++k) factor *= scale_factor(op.terms[k].angle);
        factor *= factor;
        if (w_.rescaled[i]) factor /= w_.rescale[i];
        for (uint32_t s = 0; s < d; ++s) {
          V a = at.re[s], b = at.im[s];
          turn_phases<true>(op, s, a, b);
          at.re[s] = a * factor;
          at.im[s] = b * factor;
        }
        break;
      }
      case OP_PASS: {
        V factor = splat(R{1});
        for (int k = 0; k < op.radix; ++k) factor *= scale_factor(op.turns[k].angle);
        factor *= factor;
        if (w_.rescaled[i]) factor /= w_.rescale[i];
        switch (op.radix) {
          case 1: pass<1, false>(op, &factor, at, at, true); break;
          case 2: pass<2, false>(op, &factor, at, at, true); break;
          case 3: pass<3, false>(op, &factor, at, at, true); break;
          case 4: pass<4, false>(op, &factor, at, at, true); break;
        }
        break;
      }
      case OP_CONTROLLED: {
        const V c = w_.cos[op.turns[0].angle], s = w_.sin[op.turns[0].angle];
        for (int plane = 0; plane < (op.complex_in ? 2 : 1); ++plane) {
          V *psi = plane ? at.im : at.re;
          for (uint32_t g = 0; g < op.n_bases; ++g) {
            const uint32_t first = op.bases[g], second = first ^ op.turns[0].flip;
            const V a = psi[first], b = psi[second];
            psi[first] = c * a + s * b;
            psi[second] = c * b - s * a;
          }
        }
        break;
      }
    }
  }

  template <int kRadix, bool kComplex>
  __attribute__((noinline)) void scale_by_bits(const uint32_t *order, uint32_t groups, const V *low, const V *high,
                                               Place psi, V *re, V *im) const {
    for (uint32_t g = 0; g < groups; ++g) {
#pragma GCC unroll 16
      for (int j = 0; j < 1 << kRadix; ++j) {
        const uint32_t s = order[(g << kRadix) + j];
        const V c = high[g] + low[j];
        re[s] = c * psi.re[s];
        if (kComplex) im[s] = c * psi.im[s];
      }
    }
  }

  // Lambda = 2 scale^2 sum_m g_m P_m psi (psi as stored).
  void start_lambda(const Part &part) {
    const uint32_t d = 1u << part.n_qubits;
    const Place psi = boundary(part, part.n_ops, true);
    V *re = w_.lambda, *im = w_.lambda + d;
    const V twice = R{2} * scale_ * scale_;
    if (plan_.probabilities) {
      for (uint32_t m = 0; m < d; ++m) {
        const uint32_t s = part.order[m];
        const V c = twice * w_.outputs[m];
        re[s] = c * psi.re[s];
        if (part.complex_end) im[s] = c * psi.im[s];
      }
      return;
    }
    const V *g = w_.value_gradients + part.first_value;
    if (part.basis_rank > 0) {
      start_lambda_by_bits(part, g, twice, psi, re, im);
    } else {
      std::memset(re, 0, d * sizeof(V));
      std::memset(im, 0, d * sizeof(V));
    }
    if (part.n_signs_values) add_to_lambda(part, g, twice, psi, re, im);
  }

  void start_lambda_by_bits(const Part &part, const V *g, V twice, Place psi, V *re, V *im) {
    const uint32_t d = 1u << part.n_qubits;
    const int radix = part.n_qubits < 4 ? part.n_qubits : 4;
    V low[16], *high = w_.measured;
    weights_by_bits(part, g, twice, radix, low, high);
    switch (radix * 2 + part.complex_end) {
      case 2: scale_by_bits<1, false>(part.order, d >> 1, low, high, psi, re, im); break;
      case 3: scale_by_bits<1, true>(part.order, d >> 1, low, high, psi, re, im); break;
      case 4: scale_by_bits<2, false>(part.order, d >> 2, low, high, psi, re, im); break;
      case 5: scale_by_bits<2, true>(part.order, d >> 2, low, high, psi, re, im); break;
      case 6: scale_by_bits<3, false>(part.order, d >> 3, low, high, psi, re, im); break;
      case 7: scale_by_bits<3, true>(part.order, d >> 3, low, high, psi, re, im); break;
      case 8: scale_by_bits<4, false>(part.order, d >> 4, low, high, psi, re, im); break;
      case 9: scale_by_bits<4, true>(part.order, d >> 4, low, high, psi, re, im); break;
    }
  }

  // Lambda = (high[place >> radix] + low[place % 2^radix]) psi, at places of the measuring order.
  void weights_by_bits(const Part &part, const V *g, V twice, int radix, V *low, V *high) const {
    V by_bit[32];
    for (int k = 0; k < part.n_qubits; ++k) by_bit[k] = splat(R{0});
    for (int v = 0; v < part.n_values; ++v)
      if (part.values[v].basis_bit >= 0)
        by_bit[part.values[v].basis_bit] += twice * g[v] * static_cast<R>(part.values[v].sign);
    low[0] = splat(R{0});
    for (int k = 0; k < radix; ++k)
      for (int j = 0; j < 1 << k; ++j) {
        low[j | 1 << k] = low[j] - by_bit[k];
        low[j] += by_bit[k];
      }
    high[0] = splat(R{0});
    for (int k = radix; k < part.n_qubits; ++k)
      for (uint32_t j = 0; j < 1u << (k - radix); ++j) {
        high[j | 1u << (k - radix)] = high[j] - by_bit[k];
        high[j] += by_bit[k];
      }
  }

  void end(const Part &part, Place lambda) {
    const int i = part.n_ops - 1, radix = part.ops[i].radix;
    V places[16], low[16], *high = w_.measured;
    weights_by_bits(part, w_.value_gradients + part.first_value, R{2} * scale_ * scale_, radix, places, high);
    for (int k = 0; k < 1 << radix; ++k) low[part.end_members[k]] = places[k];
    pass_end(part, w_.rescaled[i] ? &w_.rescale[i] : nullptr, low, high, boundary(part, i, true), lambda);
  }

  void add_to_lambda(const Part &part, const V *g, V twice, Place psi, V *re, V *im) const {
    const uint32_t d = 1u << part.n_qubits;
    for (int v = 0; v < part.n_values; ++v) {
      const Value &value = part.values[v];
      if (value.basis_bit >= 0) continue;
      const V weight = twice * g[v];
      for (uint32_t s = 0; s < d; ++s) {  // (P psi)[t] = i^n_y sign(s) psi[s]
        const uint32_t t = s ^ value.flips;
        const V c = pauli_sign(value, s) * weight;
        if (!(value.n_y & 1)) {
          re[t] += c * psi.re[s];
          if (part.complex_end) im[t] += c * psi.im[s];
        } else if (part.complex_end) {
          re[t] -= c * psi.im[s];
          im[t] += c * psi.re[s];
        }
      }
    }
  }

  // Gradient for the phase of every slot: Lambda_im psi_re - Lambda_re psi_im, the same before and after the phases.
  void table_backward(const Op &op, uint32_t d, V *re, V *im, Place psi) {
    const R *cos = shared_.table_cos + plan_.table_offsets[op.table];
    const R *sin = shared_.table_sin + plan_.table_offsets[op.table];
    V *gradient = w_.table_gradient + plan_.table_offsets[op.table];
    if (!op.complex_in) {  // the state before is real, and so is all of Lambda that matters from here on
      for (uint32_t s = 0; s < d; ++s) {
        const V a = re[s], b = im[s];
        re[s] = a * cos[s] + b * sin[s];
        gradient[s] += (b * cos[s] - a * sin[s]) * psi.re[s];
      }
      return;
    }
    if (op.gradient_after) {
      for (uint32_t s = 0; s < d; ++s) {
        const V a = re[s], b = im[s];
        gradient[s] += b * psi.re[s] - a * psi.im[s];
        re[s] = a * cos[s] + b * sin[s];
        im[s] = b * cos[s] - a * sin[s];
      }
      return;
    }
    for (uint32_t s = 0; s < d; ++s) {
      const V a = re[s], b = im[s];
      const V a_before = a * cos[s] + b * sin[s], b_before = b * cos[s] - a * sin[s];
      gradient[s] += b_before * psi.re[s] - a_before * psi.im[s];
      re[s] = a_before;
      im[s] = b_before;
    }
  }

  void lane_phase_backward(const Op &op, const V *rescale, uint32_t d, V *re, V *im, Place psi) {
    for (uint32_t s = 0; s < d; ++s) {
      V a = re[s], b = im[s], slot_gradient;
      if (op.gradient_after) slot_gradient = b * psi.re[s] - a * psi.im[s];
      turn_phases<true>(op, s, a, b);
      if (rescale) {
        a *= *rescale;
        b *= *rescale;
      }
      if (!op.gradient_after) {
        slot_gradient = b * psi.re[s];
        if (op.complex_in) slot_gradient -= a * psi.im[s];
      }
      for (int k = 0; k < op.n_terms; ++k) {
        const PhaseTerm &term = op.terms[k];
        const bool minus = (__builtin_parity(s & term.mask) != 0) ^ (term.sign < 0);
        w_.angle_gradient[term.angle] += minus ? -slot_gradient : slot_gradient;
      }
      re[s] = a;
      im[s] = b;
    }
  }

  // The gradient of a half's product state is Lambda contracted with the other half.
  void product_backward(const Part &part, V *re, V *im) {
    const Place lower = top_level(part, 0), upper = top_level(part, 1);
    const Place to_lower{w_.half_gradients[0], w_.half_gradients[0] + w_.half_size};
    const Place to_upper{w_.half_gradients[1], w_.half_gradients[1] + w_.half_size};
    if (part.n_qubits < 3) {
      contract<2>(part, {re, im}, lower, upper, to_lower, to_upper);
    } else {
      contract<4>(part, {re, im}, lower, upper, to_lower, to_upper);
    }
    half_backward(part, 0, to_lower);
    half_backward(part, 1, to_upper);
  }

  Place top_level(const Part &part, int which) const {
    V *re = w_.halves[which] + (size_t{1} << (half_last(part, which) - half_first(part, which)));
    return {re, re + w_.half_size};
  }

  template <int kRows>
  void contract(const Part &part, Place lambda, Place lower, Place upper, Place to_lower, Place to_upper) const {
    const uint32_t columns = 1u << half_last(part, 0), rows = 1u << (part.n_qubits - half_last(part, 0));
    for (uint32_t h = 0; h < rows; h += kRows) {
      V ur[kRows], ui[kRows], sum_r[kRows], sum_i[kRows];
      for (int k = 0; k < kRows; ++k) {
        ur[k] = upper.re[h + k];
        ui[k] = upper.im[h + k];
        sum_r[k] = sum_i[k] = splat(R{0});
      }
      const V *re = lambda.re + h * columns, *im = lambda.im + h * columns;
      for (uint32_t b = 0; b < columns; ++b) {
        V total_r = h ? to_lower.re[b] : splat(R{0});
        const V lr = lower.re[b];
        if (!part.complex_product) {
#pragma GCC unroll 4
          for (int k = 0; k < kRows; ++k) {
            const V a = re[k * columns + (b ^ ((h + k) & (columns - 1)))];
            total_r += ur[k] * a;
            sum_r[k] += lr * a;
          }
          to_lower.re[b] = total_r;
          continue;
        }
        V total_i = h ? to_lower.im[b] : splat(R{0});
        const V li = lower.im[b];
#pragma GCC unroll 4
        for (int k = 0; k < kRows; ++k) {  // conj(product) Lambda
          const uint32_t s = k * columns + (b ^ ((h + k) & (columns - 1)));
          const V a = re[s], c = im[s];
          total_r += ur[k] * a;
          total_r += ui[k] * c;
          total_i += ur[k] * c;
          total_i -= ui[k] * a;
          sum_r[k] += lr * a;
          sum_r[k] += li * c;
          sum_i[k] += lr * c;
          sum_i[k] -= li * a;
        }
        to_lower.re[b] = total_r;
        to_lower.im[b] = total_i;
      }
      for (int k = 0; k < kRows; ++k) {
        to_upper.re[h + k] = sum_r[k];
        to_upper.im[h + k] = sum_i[k];
      }
    }
  }

  // From the top wire down: contract the gradient with the wire's state, and its gradient with the product below.
  void half_backward(const Part &part, int which, Place gradient) {
    V *re = gradient.re, *im = gradient.im;
    const int stride = (part.max_chain + 1) * 4, first = half_first(part, which);
    for (int wire = half_last(part, which) - 1; wire >= first; --wire) {
      const uint32_t half = 1u << (wire - first);
      const Chain &chain = part.chains[wire];
      const V *v = w_.chain + wire * stride + chain.n_elements * 4;
      const V *lre = w_.halves[which] + half, *lim = lre + w_.half_size;
      V m0r = splat(R{0}), m0i = m0r, m1r = m0r, m1i = m0r;
      if (!part.complex_product) {
        const V v0 = v[0], v1 = v[2];
        for (uint32_t b = 0; b < half; ++b) {
          const V a0 = re[b], a1 = re[b + half];
          m0r += lre[b] * a0;
          m1r += lre[b] * a1;
          re[b] = v0 * a0 + v1 * a1;
        }
      } else {
        const V r0 = v[0], i0 = v[1], r1 = v[2], i1 = v[3];
        for (uint32_t b = 0; b < half; ++b) {
          const V a0 = re[b], b0 = im[b], a1 = re[b + half], b1 = im[b + half], lr = lre[b], li = lim[b];
          m0r += lr * a0 + li * b0;  // conj(product) Lambda
          m0i += lr * b0 - li * a0;
          m1r += lr * a1 + li * b1;
          m1i += lr * b1 - li * a1;
          re[b] = (r0 * a0 + i0 * b0) + (r1 * a1 + i1 * b1);  // conj(v) Lambda
          im[b] = (r0 * b0 - i0 * a0) + (r1 * b1 - i1 * a1);
        }
      }
      chain_backward(part, chain, v, m0r, m0i, m1r, m1i);
    }
  }

  void chain_backward(const Part &part, const Chain &chain, const V *v, V m0r, V m0i, V m1r, V m1i) {
    for (int e = chain.n_elements - 1; e >= 0; --e, v -= 4) {  // v: the wire's state after element e
      const int j = chain.elements[e].angle;
      const V c = w_.cos[j], s = w_.sin[j];
      if (chain.elements[e].kind == CHAIN_TURN) {
        V gradient = m1r * v[0] - m0r * v[2];
        if (part.complex_product) gradient += m1i * v[1] - m0i * v[3];
        w_.angle_gradient[j] += gradient;
        V old = m0r;
        m0r = c * m0r + s * m1r;
        m1r = c * m1r - s * old;
        if (part.complex_product) {
          old = m0i;
          m0i = c * m0i + s * m1i;
          m1i = c * m1i - s * old;
        }
      } else {
        w_.angle_gradient[j] += (m0i * v[0] - m0r * v[1]) - (m1i * v[2] - m1r * v[3]);
        V old = m0r;
        m0r = c * m0r + s * m0i;
        m0i = c * m0i - s * old;
        old = m1r;
        m1r = c * m1r - s * m1i;
        m1i = c * m1i + s * old;
      }
    }
  }

  // --- polynomials --------------------------------------------------------------------------------------------

  // Expectations of Z, X and Y on every wire.
  void find_bloch(const Part &part) {
    run_chains(part);
    const int stride = (part.max_chain + 1) * 4;
    for (int wire = 0; wire < part.n_qubits; ++wire) {
      const V *v = w_.chain + wire * stride + part.chains[wire].n_elements * 4;
      V *bloch = w_.bloch + 3 * wire;
      bloch[0] = v[0] * v[0] - v[2] * v[2];
      bloch[1] = R{2} * v[0] * v[2];
      bloch[2] = splat(R{0});
      if (!part.complex_product) continue;
      bloch[0] += v[1] * v[1] - v[3] * v[3];
      bloch[1] += R{2} * v[1] * v[3];
      bloch[2] = R{2} * (v[0] * v[3] - v[1] * v[2]);
    }
  }

  // Lambda = 2 dE/d(conj v) of every wire, and through its chain.
  void bloch_backward(const Part &part) {
    const int stride = (part.max_chain + 1) * 4;
    for (int wire = 0; wire < part.n_qubits; ++wire) {
      const Chain &chain = part.chains[wire];
      const V *v = w_.chain + wire * stride + chain.n_elements * 4;
      const V z = R{2} * w_.to_bloch[3 * wire], x = R{2} * w_.to_bloch[3 * wire + 1];
      V m0r = z * v[0] + x * v[2], m1r = x * v[0] - z * v[2], m0i = splat(R{0}), m1i = m0i;
      if (part.complex_product) {
        const V y = R{2} * w_.to_bloch[3 * wire + 2];
        m0r += y * v[3];
        m0i = z * v[1] + x * v[3] - y * v[2];
        m1r -= y * v[1];
        m1i = x * v[1] - z * v[3] + y * v[0];
      }
      chain_backward(part, chain, v, m0r, m0i, m1r, m1i);
    }
  }

  // One level: sums of `kSize` numbers each, times expectations f; the first of these is 1 with kIdentity.
  template <int kSize, bool kIdentity, class T>
  static void add_run(const LetterRun &run, const T *from, const int *targets, const V *bloch, V *out) {
    V f[kSize];
    for (int k = kIdentity; k < kSize; ++k) f[k] = bloch[run.letters[k] - 1];
    for (int j = 0; j < run.n_sums; ++j, from += kSize) {
      V total;
      if constexpr (!kIdentity) {
        total = f[0] * from[0];
      } else if constexpr (std::is_same_v<T, R>) {
        total = splat(from[0]);
      } else {
        total = from[0];
      }
#pragma GCC unroll 4
      for (int k = 1; k < kSize; ++k) total += f[k] * from[k];
      out[targets[j]] = total;
    }
  }

  template <class T>
  static void add_level(const Level &level, const T *from, const V *bloch, V *out) {
    const int *targets = level.targets;
    for (int i = 0; i < level.n_runs; ++i) {
      const LetterRun &run = level.runs[i];
      switch (2 * run.n_letters + (run.letters[0] == 0)) {
        case 2: add_run<1, false>(run, from, targets, bloch, out); break;
        case 3: add_run<1, true>(run, from, targets, bloch, out); break;
        case 4: add_run<2, false>(run, from, targets, bloch, out); break;
        case 5: add_run<2, true>(run, from, targets, bloch, out); break;
        case 6: add_run<3, false>(run, from, targets, bloch, out); break;
        case 7: add_run<3, true>(run, from, targets, bloch, out); break;
        case 9: add_run<4, true>(run, from, targets, bloch, out); break;
      }
      from += run.n_letters * run.n_sums;
      targets += run.n_sums;
    }
  }

  // The way back: gradients of expectations are added to `to_bloch`; those of what went in are set (in its own place,
  // where these are vectors) or, for coefficients, added.
  template <int kSize, bool kIdentity, class T>
  static void run_backward(const LetterRun &run, const T *from, const int *targets, const V *bloch, V *to_bloch,
                           const V *to, V *to_from) {
    V f[kSize], sums[kSize];
    for (int k = kIdentity; k < kSize; ++k) {
      f[k] = bloch[run.letters[k] - 1];
      sums[k] = splat(R{0});
    }
    for (int j = 0; j < run.n_sums; ++j, from += kSize, to_from += kSize) {
      const V gradient = to[targets[j]];
#pragma GCC unroll 4
      for (int k = 0; k < kSize; ++k) {
        const bool one = kIdentity && k == 0;
        if (!one) sums[k] += gradient * from[k];
        if constexpr (std::is_same_v<T, R>) {
          if (one) {
            to_from[k] += gradient;
          } else {
            to_from[k] += gradient * f[k];
          }
        } else {
          to_from[k] = one ? gradient : gradient * f[k];
        }
      }
    }
    for (int k = kIdentity; k < kSize; ++k) to_bloch[run.letters[k] - 1] += sums[k];
  }

  template <class T>
  static void level_backward(const Level &level, const T *from, const V *bloch, V *to_bloch, const V *to, V *to_from) {
    const int *targets = level.targets;
    for (int i = 0; i < level.n_runs; ++i) {
      const LetterRun &run = level.runs[i];
      switch (2 * run.n_letters + (run.letters[0] == 0)) {
        case 2: run_backward<1, false>(run, from, targets, bloch, to_bloch, to, to_from); break;
        case 3: run_backward<1, true>(run, from, targets, bloch, to_bloch, to, to_from); break;
        case 4: run_backward<2, false>(run, from, targets, bloch, to_bloch, to, to_from); break;
        case 5: run_backward<2, true>(run, from, targets, bloch, to_bloch, to, to_from); break;
        case 6: run_backward<3, false>(run, from, targets, bloch, to_bloch, to, to_from); break;
        case 7: run_backward<3, true>(run, from, targets, bloch, to_bloch, to, to_from); break;
        case 9: run_backward<4, true>(run, from, targets, bloch, to_bloch, to, to_from); break;
      }
      from += run.n_letters * run.n_sums;
      to_from += run.n_letters * run.n_sums;
      targets += run.n_sums;
    }
  }

  const R *coefficients(const PolynomialGroup &group, int member) const {
    return shared_.coefficients + group.first_coefficient + static_cast<size_t>(member) * group.n_coefficients;
  }

  // One wire after the other; what is left after each stays in `partial`.
  V evaluate(const PolynomialGroup &group, int member) const {
    if (group.n_coefficients == 0) return splat(R{0});
    const R *from = coefficients(group, member);
    if (group.n_levels == 0) return splat(from[0]);
    const int *wires = group.wires + member * group.n_levels;
    add_level(group.levels[0], from, w_.bloch + 3 * wires[0], w_.partial);
    V *last = w_.partial;
    for (int i = 1; i < group.n_levels; ++i) {
      add_level(group.levels[i], static_cast<const V *>(last), w_.bloch + 3 * wires[i], last + group.levels[i].n_in);
      last += group.levels[i].n_in;
    }
    return last[0];
  }

  void evaluate_polynomials(const Part &part) {
    find_bloch(part);
    for (int g = 0; g < part.n_groups; ++g)
      for (int m = 0; m < part.groups[g].n_members; ++m)
        w_.values[part.first_value + part.groups[g].values[m]] = evaluate(part.groups[g], m);
  }

  void differentiate_polynomials(const Part &part) {
    find_bloch(part);
    std::memset(w_.to_bloch, 0, 3 * part.n_qubits * sizeof(V));
    for (int g = 0; g < part.n_groups; ++g) {
      const PolynomialGroup &group = part.groups[g];
      for (int m = 0; m < group.n_members; ++m) {
        const V gradient = w_.value_gradients[part.first_value + group.values[m]];
        if (group.n_coefficients) differentiate(group, m, gradient);
      }
    }
    bloch_backward(part);
  }

  void differentiate(const PolynomialGroup &group, int member, V gradient) {
    V *to_coefficients = w_.coefficient_gradient + (coefficients(group, member) - shared_.coefficients);
    if (group.n_levels == 0) {
      to_coefficients[0] += gradient;
      return;
    }
    evaluate(group, member);
    const int *wires = group.wires + member * group.n_levels;
    V *to = w_.partial;
    for (int i = 1; i < group.n_levels; ++i) to += group.levels[i].n_in;
    to[0] = gradient;
    for (int i = group.n_levels - 1; i > 0; --i) {
      V *from = to - group.levels[i].n_in;
      level_backward(group.levels[i], static_cast<const V *>(from), w_.bloch + 3 * wires[i],
                     w_.to_bloch + 3 * wires[i], to, from);
      to = from;
    }
    level_backward(group.levels[0], coefficients(group, member), w_.bloch + 3 * wires[0], w_.to_bloch + 3 * wires[0], to,
                   to_coefficients);
  }

  void store_gradient(int64_t block) {
    const int64_t start = block * kWidth, left = call_.batch - start;
    const int lanes = left < kWidth ? static_cast<int>(left) : kWidth;
    for (int i = 0; i < plan_.n_inputs; ++i) w_.x[i] = splat(R{0});
    for (int j = plan_.n_shared; j < plan_.n_angles; ++j) {
      const Angle &a = plan_.angles[j];
      for (int i = 0; i < a.n_inputs; ++i)
        w_.x[a.inputs[i]] += static_cast<R>(a.input_factors[i]) * w_.angle_gradient[j];
      if (a.n_weights) w_.lane_sum[j] += w_.angle_gradient[j];
    }
    store_rows(w_.x, static_cast<R *>(call_.to_inputs) + start * plan_.n_inputs, plan_.n_inputs, lanes);
  }

  void flush() {
    for (int j = 0; j < plan_.n_angles; ++j) {
      V &lanes = j < plan_.n_shared ? w_.angle_gradient[j] : w_.lane_sum[j];
      w_.angle_sum[j] += sum<R>(lanes);
      lanes = splat(R{0});
    }
    for (size_t s = 0; s < plan_.table_size; ++s) {
      w_.table_sum[s] += sum<R>(w_.table_gradient[s]);
      w_.table_gradient[s] = splat(R{0});
    }
    for (size_t k = 0; k < plan_.n_coefficients; ++k) {
      w_.coefficient_sum[k] += sum<R>(w_.coefficient_gradient[k]);
      w_.coefficient_gradient[k] = splat(R{0});
    }
  }
};

}  // namespace qpeft::QPEFT_ISA
