// The C interface against cases that write_cases.py has written: native_test <file>
//
// One process tests one kernel, the one that QPEFT_ISA names; it ends with 77 where the processor lacks it, and with 1
// after a failure. Every case holds a plan, values, and what a reference in double precision makes of them.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

extern "C" {
int qpeft_native_abi();
const char *qpeft_native_isa();
double qpeft_native_peak(double seconds);
void qpeft_native_use_openmp(void *parallel, void *number);
void *qpeft_plan_create(const int64_t *ints, int64_t n_ints, const double *numbers, int64_t n_numbers);
int64_t qpeft_plan_bytes(const void *plan, int is_double, int backward, int n_threads);
void qpeft_plan_pass_nonfinite(void *plan);
void qpeft_plan_destroy(void *plan);
int64_t qpeft_forward(const void *plan, int is_double, int64_t batch, const void *inputs, int64_t input_row,
                      int64_t input_column, int double_weights, const void *weights, void *outputs, int n_threads);
int64_t qpeft_backward(const void *plan, int is_double, int64_t batch, const void *gradient, int64_t gradient_row,
                       int64_t gradient_column, const void *inputs, int64_t input_row, int64_t input_column,
                       int double_weights, const void *weights, void *to_inputs, void *to_weights, int n_threads);
}

// CMakeLists.txt defines QPEFT_SANITIZED and QPEFT_FINDS_RACES, as 0 or 1. Sanitizers count memory themselves.
#if !QPEFT_SANITIZED && !defined(_WIN32)
#define QPEFT_COUNTS_MEMORY 1
std::atomic<int64_t> blocks_left{INT64_MAX};  // blocks of memory that can be had

void *operator new(size_t bytes) {
  if (blocks_left-- > 0)
    if (void *memory = std::malloc(bytes ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void *memory) noexcept { std::free(memory); }
void operator delete(void *memory, size_t) noexcept { std::free(memory); }

extern "C" int posix_memalign(void **memory, size_t alignment, size_t bytes) noexcept {
  if (blocks_left-- <= 0) return ENOMEM;
  *memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  return *memory ? 0 : ENOMEM;
}
#endif

namespace {

enum Status : int64_t { kDone = -1, kWeights = -2, kMemory = -3 };

int failures = 0;

__attribute__((format(printf, 2, 3))) void expect(bool holds, const char *format, ...) {
  if (holds || ++failures > 20) return;
  va_list values;
  va_start(values, format);
  std::vfprintf(stderr, format, values);
  std::fputc('\n', stderr);
  va_end(values);
}

// --- cases ------------------------------------------------------------------------------------------------------

struct Case {
  std::string name, circuit;
  int64_t batch, n_qubits, n_inputs, n_weights, n_outputs, times = 1;
  std::vector<int64_t> ints;
  std::vector<double> numbers, inputs, weights, gradient;  // a gradient of the outputs
  std::vector<double> outputs, to_inputs, to_weights;      // expected
};

std::vector<Case> read_cases(const char *path) {
  std::ifstream file(path, std::ios::binary);
  auto read = [&](auto &values, int64_t size) {
    values.resize(static_cast<size_t>(size));
    file.read(reinterpret_cast<char *>(values.data()), size * static_cast<int64_t>(sizeof(values[0])));
  };
  std::vector<Case> cases;
  std::vector<int64_t> head;
  while (read(head, 8), file.good()) {
    Case c;
    read(c.circuit, head[0]);
    c.name = c.circuit.substr(0, c.circuit.find(':'));
    c.batch = head[1], c.n_qubits = head[2], c.n_inputs = head[3], c.n_weights = head[4], c.n_outputs = head[5];
    read(c.ints, head[6]);
    read(c.numbers, head[7]);
    read(c.inputs, c.batch * c.n_inputs);
    read(c.weights, c.n_weights);
    read(c.gradient, c.batch * c.n_outputs);
    read(c.outputs, c.batch * c.n_outputs);
    read(c.to_inputs, c.batch * c.n_inputs);
    read(c.to_weights, c.n_weights);
    expect(file.good(), "%s ends within a case", path);
    cases.push_back(std::move(c));
  }
  expect(!cases.empty() && file.gcount() == 0, "%s holds no cases, or something else", path);
  return cases;
}

// All samples over and over again, until they are at least so many.
Case repeated(const Case &c, int64_t least) {
  const int64_t times = (least + c.batch - 1) / c.batch;
  Case result = c;
  for (auto *values : {&result.inputs, &result.gradient, &result.outputs, &result.to_inputs}) {
    const std::vector<double> once = *values;
    for (int64_t i = 1; i < times; ++i) values->insert(values->end(), once.begin(), once.end());
  }
  result.batch = times * c.batch;
  result.times = times;
  for (double &value : result.to_weights) value *= static_cast<double>(times);
  return result;
}

// Of so many samples, several threads get a share.
Case for_threads(const Case &c) { return repeated(c, int64_t{70000} >> c.n_qubits); }

class Plan {
 public:
  Plan(const std::vector<int64_t> &ints, const std::vector<double> &numbers)
      : plan_(qpeft_plan_create(ints.data(), static_cast<int64_t>(ints.size()), numbers.data(),
                                static_cast<int64_t>(numbers.size()))) {}
  explicit Plan(const Case &c) : Plan(c.ints, c.numbers) { expect(plan_, "%s: the plan is refused", c.name.c_str()); }
  Plan(const Plan &) = delete;
  ~Plan() { qpeft_plan_destroy(plan_); }
  operator const void *() const { return plan_; }
  void pass_nonfinite() { qpeft_plan_pass_nonfinite(plan_); }

 private:
  void *plan_;
};

// --- calls ------------------------------------------------------------------------------------------------------

enum Layout { kDense, kShifted, kTransposed, kSpread, kLayouts };

// Values (rows, columns) in a layout; memory ends with the last of them, so that the address sanitizer sees its end.
template <class R>
struct Matrix {
  std::vector<R> memory;
  int64_t offset = 0, row, column;

  Matrix(const std::vector<double> &values, int64_t rows, int64_t columns, Layout layout = kDense)
      : row(columns), column(1) {
    if (layout == kShifted) offset = 1;
    if (layout == kTransposed) row = 1, column = rows;
    if (layout == kSpread) offset = 2, row = 2 * (3 * columns + 1), column = 3;
    const int64_t size = rows > 0 && columns > 0 ? offset + (rows - 1) * row + (columns - 1) * column + 1 : 0;
    memory.assign(static_cast<size_t>(size), std::numeric_limits<R>::quiet_NaN());
    for (int64_t i = 0; i < rows * columns; ++i) at(i / columns, i % columns) = static_cast<R>(values[i]);
  }
  R &at(int64_t i, int64_t j) { return memory[static_cast<size_t>(offset + i * row + j * column)]; }
  const R *from(int64_t start) const { return memory.empty() ? nullptr : memory.data() + offset + start * row; }
};

// R is the type of inputs and outputs, W that of weights.
template <class R, class W = R>
struct Results {
  int64_t forward, backward;  // status
  std::vector<R> outputs, to_inputs;
  std::vector<W> to_weights;
};

template <class R>
bool same_bits(const std::vector<R> &a, const R *b) {
  return a.empty() || std::memcmp(a.data(), b, a.size() * sizeof(R)) == 0;
}

template <class R>
bool same_bits(const Results<R> &a, const Results<R> &b) {
  return same_bits(a.outputs, b.outputs.data()) && same_bits(a.to_inputs, b.to_inputs.data()) &&
         same_bits(a.to_weights, b.to_weights.data());
}

// Samples start ... stop - 1 forward and backward.
template <class R, class W = R>
Results<R, W> call(const Plan &plan, const Case &c, const Matrix<R> &inputs, const Matrix<R> &gradient, int64_t start,
                   int64_t stop, int n_threads) {
  const int64_t batch = stop - start;
  const std::vector<W> weights(c.weights.begin(), c.weights.end());
  const R unset = std::numeric_limits<R>::quiet_NaN();
  Results<R, W> results;
  results.outputs.assign(static_cast<size_t>(batch * c.n_outputs), unset);
  results.to_inputs.assign(static_cast<size_t>(batch * c.n_inputs), unset);
  results.to_weights.assign(static_cast<size_t>(c.n_weights), static_cast<W>(unset));
  const int is_double = sizeof(R) == 8, double_weights = sizeof(W) == 8;
  results.forward = qpeft_forward(plan, is_double, batch, inputs.from(start), inputs.row, inputs.column,
                                  double_weights, weights.data(), results.outputs.data(), n_threads);
  results.backward = qpeft_backward(plan, is_double, batch, gradient.from(start), gradient.row, gradient.column,
                                    inputs.from(start), inputs.row, inputs.column, double_weights, weights.data(),
                                    results.to_inputs.data(), results.to_weights.data(), n_threads);
  return results;
}

template <class R, class W = R>
Results<R, W> call(const Plan &plan, const Case &c, int n_threads, Layout layout = kDense) {
  const Matrix<R> inputs(c.inputs, c.batch, c.n_inputs, layout), gradient(c.gradient, c.batch, c.n_outputs, layout);
  return call<R, W>(plan, c, inputs, gradient, 0, c.batch, n_threads);
}

// Within 1e-10 or 1e-5 of the largest expected number (at least 1), and what the last bits of large angles can do.
template <class R>
void compare(const Case &c, const Results<R> &found, const char *how) {
  const double tolerance = sizeof(R) == 8 ? 1e-10 : 1e-5;
  const double epsilon = 4 * static_cast<double>(std::numeric_limits<R>::epsilon());
  double of_weights = 0, all = 0;
  for (const double weight : c.weights) of_weights += epsilon * std::abs(weight);
  std::vector<double> last_bits(static_cast<size_t>(c.batch), of_weights);
  for (int64_t i = 0; i < c.batch * c.n_inputs; ++i) last_bits[i / c.n_inputs] += epsilon * std::abs(c.inputs[i]);
  for (const double bits : last_bits) all += bits;
  auto check = [&](const char *what, const auto &values, const std::vector<double> &expected, int64_t columns) {
    double largest = 1;
    for (const double value : expected) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < expected.size(); ++i) {
      const double limit = columns ? tolerance * largest + last_bits[i / columns]
                                   : tolerance * std::max(largest, static_cast<double>(c.times)) + all;
      const double difference = std::abs(static_cast<double>(values[i]) - expected[i]);
      expect(difference <= limit, "%s: %s, float%d, %s: number %zu is off by %g, %g expected", c.name.c_str(), what,
             static_cast<int>(8 * sizeof(R)), how, i, difference, expected[i]);
      if (!(difference <= limit)) return;
    }
  };
  expect(found.forward == kDone && found.backward == kDone, "%s: status %lld and %lld", c.name.c_str(),
         static_cast<long long>(found.forward), static_cast<long long>(found.backward));
  check("outputs", found.outputs, c.outputs, c.n_outputs);
  check("gradient of inputs", found.to_inputs, c.to_inputs, c.n_inputs);
  check("gradient of weights", found.to_weights, c.to_weights, 0);
}

// --- tests ------------------------------------------------------------------------------------------------------

// The expected numbers in every layout; each sample has the same bits by itself and among any others.
template <class R>
void test_numbers(const Case &c) {
  const Plan plan(c);
  const Results<R> whole = call<R>(plan, c, 1);
  compare(c, whole, "dense");
  for (int layout = kShifted; layout < kLayouts; ++layout)
    expect(same_bits(whole, call<R>(plan, c, 1, static_cast<Layout>(layout))), "%s: layout %d gives other bits",
           c.name.c_str(), layout);
  using Other = std::conditional_t<sizeof(R) == 8, float, double>;
  const Results<R, Other> mixed = call<R, Other>(plan, c, 1);
  const std::vector<float> a(whole.to_weights.begin(), whole.to_weights.end());
  const std::vector<float> b(mixed.to_weights.begin(), mixed.to_weights.end());
  expect(same_bits(whole.outputs, mixed.outputs.data()) && same_bits(a, b.data()), "%s: the type of the weights matters",
         c.name.c_str());
  const Matrix<R> inputs(c.inputs, c.batch, c.n_inputs), gradient(c.gradient, c.batch, c.n_outputs);
  for (const int64_t size : {1, 3, 16}) {
    for (int64_t start = 0; start < c.batch; start += size) {
      const int64_t stop = std::min(start + size, c.batch);
      const Results<R> slice = call<R>(plan, c, inputs, gradient, start, stop, 1);
      expect(same_bits(slice.outputs, whole.outputs.data() + start * c.n_outputs) &&
                 same_bits(slice.to_inputs, whole.to_inputs.data() + start * c.n_inputs),
             "%s: samples %d to %d of %d have other bits by themselves (float%d)", c.name.c_str(),
             static_cast<int>(start), static_cast<int>(stop), static_cast<int>(c.batch),
             static_cast<int>(8 * sizeof(R)));
    }
  }
}

thread_local int member = 0;

int member_number() { return member; }

// As a nested region of OpenMP: it is given one thread less than it asks for.
void narrow_parallel(void (*run)(void *), void *data, unsigned n_threads, unsigned) {
  std::vector<std::thread> threads;
  for (unsigned i = 1; i + 1 < n_threads; ++i)
    threads.emplace_back([=] {
      member = static_cast<int>(i);
      run(data);
    });
  run(data);
  for (std::thread &thread : threads) thread.join();
}

// Enough samples for every thread: the same numbers, and the same bits again for the same number of threads, whether
// they are the library's own or another's, and while others use the plan.
template <class R>
void test_threads(const Case &once) {
  const Case c = for_threads(once);
  const Plan plan(c);
  const Results<R> alone = call<R>(plan, c, 1);
  compare(c, alone, "many samples");
  for (const int n_threads : {2, 5}) {
    const Results<R> first = call<R>(plan, c, n_threads);
    compare(c, first, "several threads");
    expect(same_bits(first.outputs, alone.outputs.data()) && same_bits(first.to_inputs, alone.to_inputs.data()),
           "%s: %d threads give other bits than one", c.name.c_str(), n_threads);
    expect(same_bits(first, call<R>(plan, c, n_threads)), "%s: %d threads give other bits the second time",
           c.name.c_str(), n_threads);
    Results<R> at_once[3];
    std::vector<std::thread> callers;
    for (Results<R> &results : at_once) callers.emplace_back([&] { results = call<R>(plan, c, n_threads); });
    for (std::thread &caller : callers) caller.join();
    for (const Results<R> &results : at_once)
      expect(same_bits(first, results), "%s: calls at the same time give other bits", c.name.c_str());
    qpeft_native_use_openmp(reinterpret_cast<void *>(narrow_parallel), reinterpret_cast<void *>(member_number));
    const Results<R> narrow = call<R>(plan, c, n_threads);
    qpeft_native_use_openmp(nullptr, nullptr);
    expect(same_bits(first, narrow), "%s: fewer threads than asked for give other bits", c.name.c_str());
  }
}

// The first call of a thread, whose memory is still to be had.
template <class R>
void test_new_thread(const Case &c) {
  std::thread([&] { compare(c, call<R>(Plan(c), c, 1), "a new thread"); }).join();
}

// The status names the first sample with a wrong angle, whichever thread and lane has it.
template <class R>
void test_not_finite(const Case &once) {
  const Case c = for_threads(once);
  const Plan plan(c);
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const Matrix<R> gradient(c.gradient, c.batch, c.n_outputs);
  auto expect_status = [&](const Case &wrong, int64_t stop, int64_t status) {
    const Matrix<R> inputs(wrong.inputs, c.batch, c.n_inputs);
    for (const int n_threads : {1, 5}) {
      const Results<R> found = call<R>(plan, wrong, inputs, gradient, 0, stop, n_threads);
      expect(found.forward == status && found.backward == status,
             "%s: status %lld and %lld instead of %lld (%d threads, %d samples)", c.name.c_str(),
             static_cast<long long>(found.forward), static_cast<long long>(found.backward),
             static_cast<long long>(status), n_threads, static_cast<int>(stop));
    }
  };
  for (const int64_t sample : {int64_t{0}, int64_t{5}, c.batch - 1}) {
    Case wrong = c;
    for (size_t i = static_cast<size_t>(sample * c.n_inputs); i < wrong.inputs.size(); i += 3) wrong.inputs[i] = nan;
    expect_status(wrong, c.batch, sample);
    if (sample == 5) expect_status(wrong, sample, kDone);
  }
  for (const double value : {nan, infinity, -infinity}) {
    Case wrong = c;  // in the later of two samples the earlier of two inputs, both in one vector
    wrong.inputs[2 * c.n_inputs] = wrong.inputs[2 * c.n_inputs - 1] = value;
    expect_status(wrong, 20, 1);
    wrong.weights.back() = value;
    expect_status(wrong, 20, kWeights);
  }
}

// A plan that passes them on: such a sample is NaN, and others keep their bits.
template <class R>
void test_passing_not_finite(const Case &c, double value) {
  constexpr int64_t kWrong = 5;
  Case wrong = c;
  wrong.inputs[kWrong * c.n_inputs] = value;
  Plan plan(c);
  const Results<R> good = call<R>(plan, c, 1);
  plan.pass_nonfinite();
  const Results<R> found = call<R>(plan, wrong, 1);
  expect(found.forward == kDone && found.backward == kDone, "%s: NaN is not passed on", c.name.c_str());
  auto check = [&](const std::vector<R> &a, const std::vector<R> &b, int64_t columns) {
    bool any_nan = false, same = true;
    for (int64_t i = 0; i < c.batch * columns; ++i) {
      if (i / columns == kWrong) any_nan = any_nan || std::isnan(a[i]);
      if (i / columns != kWrong) same = same && a[i] == b[i];
    }
    expect(any_nan && same, "%s: NaN in one sample is lost, or changes another", c.name.c_str());
  };
  check(found.outputs, good.outputs, c.n_outputs);
  check(found.to_inputs, good.to_inputs, c.n_inputs);
  expect(std::isnan(found.to_weights[0]), "%s: NaN is lost in the gradient of weights", c.name.c_str());
  wrong = c;
  wrong.weights.assign(wrong.weights.size(), value);
  for (const R output : call<R>(plan, wrong, 1).outputs) expect(std::isnan(output), "%s: NaN is lost", c.name.c_str());
}

// Runs a plan as it stands, whatever it holds, unless that takes much memory.
void run_changed(const std::vector<int64_t> &ints, const std::vector<double> &numbers) {
  constexpr int64_t kMost = 1000, kBatch = 17;
  const Plan plan(ints, numbers);
  if (!plan || ints[0] > kMost || ints[1] > kMost) return;
  if (qpeft_plan_bytes(plan, 1, 1, 1) > int64_t{1} << 26) return;
  // an output takes at least one of the numbers
  const std::vector<double> values(static_cast<size_t>(kBatch * kMost), 0.5);
  const std::vector<double> gradient(static_cast<size_t>(kBatch) * ints.size(), 0.5);
  std::vector<double> outputs(gradient.size()), to_inputs(values.size()), to_weights(static_cast<size_t>(kMost));
  for (int is_double = 0; is_double < 2; ++is_double) {
    qpeft_forward(plan, is_double, kBatch, values.data(), ints[0], 1, 1, values.data(), outputs.data(), 1);
    qpeft_backward(plan, is_double, kBatch, gradient.data(), 1, 1, values.data(), ints[0], 1, 1, values.data(),
                   to_inputs.data(), to_weights.data(), 1);
  }
}

bool accepted(const std::vector<int64_t> &ints, const std::vector<double> &numbers) {
  return Plan(ints, numbers) != nullptr;
}

// Arrays that are not a plan are refused; what is accepted runs within its memory, whatever its numbers are.
void test_malformed(const Case &c, std::mt19937_64 &random) {
  const char *name = c.name.c_str();
  const size_t step = 1 + c.ints.size() / 200;
  for (size_t size = 0; size < c.ints.size(); size += step)
    expect(!accepted({c.ints.begin(), c.ints.begin() + static_cast<int64_t>(size)}, c.numbers),
           "%s: the first %zu whole numbers are accepted", name, size);
  for (size_t size = 0; size < c.numbers.size(); ++size)
    expect(!accepted(c.ints, {c.numbers.begin(), c.numbers.begin() + static_cast<int64_t>(size)}),
           "%s: the first %zu real numbers are accepted", name, size);
  std::vector<int64_t> ints = c.ints;
  std::vector<double> numbers = c.numbers;
  ints.push_back(0);
  numbers.push_back(0);
  expect(!accepted(ints, c.numbers) && !accepted(c.ints, numbers), "%s: a number too many is accepted", name);

  auto any_number = [&](int64_t old) -> int64_t {
    switch (random() % 6) {
      case 0: return old + 1;
      case 1: return old - 1;
      case 2: return static_cast<int64_t>(random() % 64);
      case 3: return -static_cast<int64_t>(random() % 64);
      case 4: return static_cast<int64_t>(int64_t{1} << random() % 63);
      default: return static_cast<int64_t>(random());
    }
  };
  for (int change = 0; change < 100; ++change) {
    ints = c.ints;
    for (uint64_t count = 1 + random() % 2; count > 0; --count) {
      int64_t &number = ints[random() % ints.size()];
      number = any_number(number);
    }
    run_changed(ints, c.numbers);
  }
  for (int other = 0; other < 20; ++other) {
    ints.resize(random() % 200);
    for (int64_t &number : ints) number = any_number(static_cast<int64_t>(random() % 8));
    numbers.assign(random() % 20, 1.0);
    run_changed(ints, numbers);
  }
}

#ifdef QPEFT_COUNTS_MEMORY
// Makes a call with memory for no block, one block, two, ... until there is enough, each in a new thread, which has none.
template <class F>
void with_little_memory(F &&call_and_check) {
  bool enough = false;
  for (int64_t blocks = 0; !enough; ++blocks)
    std::thread([&] {
      blocks_left = blocks;
      call_and_check([&] { return enough = blocks_left.exchange(INT64_MAX) >= 0; });
    }).join();
}

// Without memory the status says so, unless it was for a thread that others can stand in for.
template <class R>
void test_no_memory(const Case &once) {
  const Case c = for_threads(once);
  const char *name = c.name.c_str();
  const Plan plan(c);
  Results<R> found = call<R>(plan, c, 3);
  const Results<R> expected = found;
  const Matrix<R> inputs(c.inputs, c.batch, c.n_inputs), gradient(c.gradient, c.batch, c.n_outputs);
  const int is_double = sizeof(R) == 8;
  auto check = [&](int64_t status, bool enough) {
    expect(status == kDone || (status == kMemory && !enough), "%s: status %lld", name, static_cast<long long>(status));
    if (status == kDone) expect(same_bits(found, expected), "%s: other bits with little memory", name);
  };
  with_little_memory([&](auto &&ended) {
    void *created = qpeft_plan_create(c.ints.data(), static_cast<int64_t>(c.ints.size()), c.numbers.data(),
                                      static_cast<int64_t>(c.numbers.size()));
    expect(ended() == (created != nullptr), "%s: a plan is made without memory, or not made with it", name);
    qpeft_plan_destroy(created);
  });
  with_little_memory([&](auto &&ended) {
    const int64_t status = qpeft_forward(plan, is_double, c.batch, inputs.from(0), inputs.row, inputs.column, 1,
                                         c.weights.data(), found.outputs.data(), 3);
    check(status, ended());
  });
  const std::vector<R> weights(c.weights.begin(), c.weights.end());
  with_little_memory([&](auto &&ended) {
    const int64_t status =
        qpeft_backward(plan, is_double, c.batch, gradient.from(0), gradient.row, gradient.column, inputs.from(0),
                       inputs.row, inputs.column, is_double, weights.data(), found.to_inputs.data(),
                       found.to_weights.data(), 3);
    check(status, ended());
  });
}
#endif

}  // namespace

int main(int n_arguments, char **arguments) {
  if (n_arguments != 2) {
    std::fprintf(stderr, "usage: %s <file written by write_cases.py>\n", arguments[0]);
    return 1;
  }
  const char *wanted = std::getenv("QPEFT_ISA");
  if (wanted && *wanted && std::strcmp(wanted, qpeft_native_isa()) != 0) {
    std::printf("skipped: this processor has no %s\n", wanted);
    return 77;
  }
  expect(qpeft_native_abi() > 0, "qpeft_native_abi() gave %d", qpeft_native_abi());
  expect(qpeft_native_peak(1e-3) > 0, "no peak");
  const std::vector<Case> cases = read_cases(arguments[1]);
  std::mt19937_64 random(1);
  for (size_t i = 0; i < cases.size(); ++i) {
    const Case &c = cases[i];
    const int before = failures;
    test_numbers<float>(c);
    test_numbers<double>(c);
    test_new_thread<double>(c);
    if (!QPEFT_FINDS_RACES) test_malformed(c, random);
    if (c.batch > 0 && i % 3 == 0 && c.name != "deep") {
      test_threads<float>(c);
      test_threads<double>(c);
    }
    if (c.name.rfind("qtha_block", 0) == 0) {  // every input and weight is read
      test_not_finite<float>(c);
      test_not_finite<double>(c);
      test_passing_not_finite<float>(c, INFINITY);
      test_passing_not_finite<double>(c, NAN);
#ifdef QPEFT_COUNTS_MEMORY
      test_no_memory<float>(c);
      test_no_memory<double>(c);
#endif
    }
    expect(failures == before, "which is %s", c.circuit.c_str());
  }
  std::printf("%zu cases on %s: %d failures\n", cases.size(), qpeft_native_isa(), failures);
  return failures ? 1 : 0;
}
