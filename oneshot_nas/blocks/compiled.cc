// Operators for MXNet 1.9 on the CPU, forward and backward: depthwise convolution with stride 1 or 2, the even and the odd
// channels of an array, non-linearities, the gate of squeeze-and-excitation, and BatchNorm with a non-linearity.
//
// Depthwise convolution: MXNet's own weight gradient of 5x5 and 7x7 depthwise convolutions takes most of a training step. Here
// every image plane is copied, zero-padded, into stride x stride phase planes of fixed pitch: phase (a, b) holds the rows
// a, a + stride, ... and the columns b, b + stride, ... A kernel position is then a constant offset into one phase, so forward
// and input gradient are sums of shifted vectors and the weight gradient is a set of long dot products, all over contiguous
// memory that fits the first-level cache. With the attribute frozen=1 there is no weight gradient.
//
// The others are bound by memory. Each makes one pass over it in either direction: MXNet's make six for the even and odd
// channels, eleven for x * sigmoid(x), and its clip and the gradient of a broadcast product are not vectorised. BatchNorm goes
// channel by channel, whose values stay in the second-level cache between its passes; oneDNN's is several times slower unless
// memory is in its own order, which what comes from the operators here is not.
//
// Results do not depend on the number of threads: every plane (forward) or channel (backward) belongs to one thread.

#include <mxnet/lib_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using namespace mxnet::ext;
using Attributes = std::unordered_map<std::string, std::string>;

namespace {

constexpr int kLanes = 16;          // floats of one vector
constexpr int kTile = 4 * kLanes;   // floats kept in registers while the kernel positions are summed

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vector at(const float* address) { return *reinterpret_cast<const Vector*>(address); }

long rounded(long length) { return (length + kTile - 1) / kTile * kTile; }

template <int K, int kStride>
struct Geometry {
  long images, channels, height, width;
  static constexpr long pad() { return K / 2; }
  static constexpr long reach() { return (K - 1) / kStride; }  // furthest kernel position inside a phase, in rows or columns
  long outHeight() const { return (height - 1) / kStride + 1; }
  long outWidth() const { return (width - 1) / kStride + 1; }
  long pitch() const { return outWidth() + reach(); }
  long length() const { return rounded(outHeight() * pitch()); }                    // one output plane at this pitch
  long phaseLength() const { return rounded((outHeight() + reach()) * pitch()); }
  long phaseSize() const { return phaseLength() + length() - outHeight() * pitch() + reach() * (pitch() + 1) + kTile; }
  // Offset of padded row or column r inside its phase, and of kernel position (i, j) from an output's place.
  long offset(unsigned long i, unsigned long j) const {
    return (i % kStride * kStride + j % kStride) * phaseSize() + i / kStride * pitch() + j / kStride;
  }
};

// Copies an image plane into the phases, whose borders stay zero, or back out of them.
template <bool kIn, int K, int kStride>
void exchange(const Geometry<K, kStride>& g, float* plane, float* phases) {
  for (long h = 0; h < g.height; ++h)
    for (int b = 0; b < kStride; ++b) {
      float* row = plane + h * g.width;
      float* place = phases + g.offset(h + g.pad(), b + g.pad());
      if (kStride == 1)
        std::memcpy(kIn ? place : row, kIn ? row : place, g.width * sizeof(float));
      else
        for (long w = b; w < g.width; w += 2) (kIn ? place[w / 2] : row[w]) = kIn ? row[w] : place[w / 2];
    }
}

// Copies an output plane to or from rows of the phases' pitch; what lies between the rows stays as it is.
template <int K, int kStride>
void spread(const Geometry<K, kStride>& g, const float* plane, float* flat) {
  for (long h = 0; h < g.outHeight(); ++h)
    std::memcpy(flat + h * g.pitch(), plane + h * g.outWidth(), g.outWidth() * sizeof(float));
}

template <int K, int kStride>
void gather(const Geometry<K, kStride>& g, const float* flat, float* plane) {
  for (long h = 0; h < g.outHeight(); ++h)
    std::memcpy(plane + h * g.outWidth(), flat + h * g.pitch(), g.outWidth() * sizeof(float));
}

// Kernel positions (i, j) = (a, b), (a, b + step), ... : out[t] = sum of weight[i][j] * in[t + offsets[i][j]]
template <int K, int kStep>
void correlate(const float* in, const float* weight, const long* offsets, int a, int b, long length, float* out) {
  for (long t = 0; t < length; t += kTile) {
    Vector sum[kTile / kLanes] = {};
    for (int i = a; i < K; i += kStep) {
#pragma GCC unroll 8
      for (int j = b; j < K; j += kStep) {
        const float value = weight[i * K + j];
        const float* window = in + t + offsets[i * K + j];
#pragma GCC unroll 8
        for (int v = 0; v < kTile / kLanes; ++v) sum[v] += value * at(window + v * kLanes);
      }
    }
    std::memcpy(out + t, sum, sizeof(sum));
  }
}

// total[i][j] += sum over t of grad[t] * in[t + offsets[i][j]]
template <int K>
void dots(const float* in, const float* grad, const long* offsets, long length, float* total) {
  for (int i = 0; i < K; ++i) {
    Vector sum[K] = {};
    for (long t = 0; t < length; t += kLanes) {
      const Vector value = at(grad + t);
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) sum[j] += value * at(in + t + offsets[i * K + j]);
    }
    for (int j = 0; j < K; ++j)
      for (int v = 0; v < kLanes; ++v) total[i * K + j] += sum[j][v];
  }
}

template <int K, int kStride>
void forward(const Geometry<K, kStride>& g, float* x, const float* weight, float* y) {
  const long plane = g.height * g.width, smaller = g.outHeight() * g.outWidth(), planes = g.images * g.channels;
  long offsets[K * K];
  for (int i = 0; i < K * K; ++i) offsets[i] = g.offset(i / K, i % K);
#pragma omp parallel
  {
    std::vector<float> in(kStride * kStride * g.phaseSize(), 0.f), out(g.length());
#pragma omp for schedule(static)
    for (long p = 0; p < planes; ++p) {
      exchange<true>(g, x + p * plane, in.data());
      correlate<K, 1>(in.data(), weight + p % g.channels * K * K, offsets, 0, 0, g.length(), out.data());
      gather(g, out.data(), y + p * smaller);
    }
  }
}

template <int K, int kStride>
void backward(const Geometry<K, kStride>& g, const float* dy, float* x, const float* weight, float* dx, float* dw, bool frozen) {
  const long plane = g.height * g.width, smaller = g.outHeight() * g.outWidth(), origin = g.reach() * (g.pitch() + 1);
  long offsets[K * K], backwards[K * K];
  for (int i = 0; i < K * K; ++i) {
    offsets[i] = g.offset(i / K, i % K);
    backwards[i] = -(i / K / kStride * g.pitch() + i % K / kStride);  // from a place in any phase to the output's
  }
#pragma omp parallel
  {
    std::vector<float> in(kStride * kStride * g.phaseSize(), 0.f), out(in.size()), grad(origin + g.phaseSize(), 0.f);
#pragma omp for schedule(static)
    for (long c = 0; c < g.channels; ++c) {
      float total[K * K] = {0};
      for (long n = 0; n < g.images; ++n) {
        spread(g, dy + (n * g.channels + c) * smaller, grad.data() + origin);
        if (!frozen) {
          exchange<true>(g, x + (n * g.channels + c) * plane, in.data());
          dots<K>(in.data(), grad.data() + origin, offsets, g.length(), total);
        }
        for (int a = 0; a < kStride; ++a)
          for (int b = 0; b < kStride; ++b) {
            const long first = (g.pad() - a + kStride - 1) / kStride * g.pitch();  // rows of padding are left out
            correlate<K, kStride>(grad.data() + origin + first, weight + c * K * K, backwards, a, b,
                                  rounded((g.height + g.pad() - 1 - a) / kStride * g.pitch() + g.pitch() - first),
                                  out.data() + (a * kStride + b) * g.phaseSize() + first);
          }
        exchange<false>(g, dx + (n * g.channels + c) * plane, out.data());
      }
      if (!frozen) std::memcpy(dw + c * K * K, total, sizeof(total));
    }
  }
}

MXReturnValue inferType(const Attributes&, std::vector<int>* in, std::vector<int>* out) {
  if (in->at(0) != kFloat32 && in->at(0) != -1) {
    MX_ERROR_MSG << "the compiled operators of oneshot_nas take float32 only";
    return MX_FAIL;
  }
  for (int& type : *in) type = kFloat32;
  for (int& type : *out) type = kFloat32;
  return MX_SUCCESS;
}

template <int kInputs, int kOutputs>
MXReturnValue arity(const Attributes&, int* inputs, int* outputs) {
  *inputs = kInputs;
  *outputs = kOutputs;
  return MX_SUCCESS;
}

MXReturnValue depthwiseShape(const Attributes& attributes, std::vector<std::vector<unsigned>>* in,
                         std::vector<std::vector<unsigned>>* out) {
  const unsigned kernel = std::stoi(attributes.at("kernel")), stride = std::stoi(attributes.at("stride"));
  const std::vector<unsigned> x = in->at(0);
  if (x.size() != 4 || (kernel != 3 && kernel != 5 && kernel != 7) || (stride != 1 && stride != 2)) {
    MX_ERROR_MSG << "oneshot_nas_depthwise takes data (N, C, H, W), a kernel of 3, 5 or 7 and a stride of 1 or 2";
    return MX_FAIL;
  }
  in->at(1) = {x[1], 1, kernel, kernel};
  out->at(0) = {x[0], x[1], (x[2] - 1) / stride + 1, (x[3] - 1) / stride + 1};
  return MX_SUCCESS;
}

// Calls run(geometry of x) with the kernel and the stride of the attributes.
template <typename Run>
MXReturnValue dispatch(const Attributes& attributes, const MXTensor& x, const Run& run) {
  const int key = 10 * std::stoi(attributes.at("kernel")) + std::stoi(attributes.at("stride"));
  const long n = x.shape[0], c = x.shape[1], h = x.shape[2], w = x.shape[3];
  switch (key) {
    case 31: run(Geometry<3, 1>{n, c, h, w}); break;
    case 32: run(Geometry<3, 2>{n, c, h, w}); break;
    case 51: run(Geometry<5, 1>{n, c, h, w}); break;
    case 52: run(Geometry<5, 2>{n, c, h, w}); break;
    case 71: run(Geometry<7, 1>{n, c, h, w}); break;
    case 72: run(Geometry<7, 2>{n, c, h, w}); break;
  }
  return MX_SUCCESS;
}

MXReturnValue depthwiseForward(const Attributes& attributes, std::vector<MXTensor>* in, std::vector<MXTensor>* out, const OpResource&) {
  return dispatch(attributes, in->at(0), [&](const auto& g) {
    forward(g, in->at(0).data<float>(), in->at(1).data<float>(), out->at(0).data<float>());
  });
}

// Inputs: output gradient, data, weight, output; outputs: gradients of data and weight, which is not written when frozen.
MXReturnValue depthwiseBackward(const Attributes& attributes, std::vector<MXTensor>* in, std::vector<MXTensor>* out, const OpResource&) {
  const auto frozen = attributes.find("frozen");
  return dispatch(attributes, in->at(1), [&](const auto& g) {
    backward(g, in->at(0).data<float>(), in->at(1).data<float>(), in->at(2).data<float>(), out->at(0).data<float>(),
             out->at(1).data<float>(), frozen != attributes.end() && frozen->second == "1");
  });
}

MXReturnValue halvesShape(const Attributes&, std::vector<std::vector<unsigned>>* in, std::vector<std::vector<unsigned>>* out) {
  std::vector<unsigned> x = in->at(0);
  if (x.size() != 4 || x[1] % 2 != 0) {
    MX_ERROR_MSG << "oneshot_nas_halves takes data (N, C, H, W) with an even number of channels";
    return MX_FAIL;
  }
  x[1] /= 2;
  out->at(0) = out->at(1) = x;
  return MX_SUCCESS;
}

// Copies channel c of `whole` to (or from) channel c / 2 of half c % 2.
template <bool kSplit>
void halves(const MXTensor& shape, float* whole, float* even, float* odd) {
  const long planes = shape.shape[0] * shape.shape[1], plane = shape.shape[2] * shape.shape[3];
#pragma omp parallel for schedule(static)
  for (long p = 0; p < planes; ++p) {
    float* half = (p % 2 ? odd : even) + p / 2 * plane;
    std::memcpy(kSplit ? half : whole + p * plane, kSplit ? whole + p * plane : half, plane * sizeof(float));
  }
}

MXReturnValue halvesForward(const Attributes&, std::vector<MXTensor>* in, std::vector<MXTensor>* out, const OpResource&) {
  halves<true>(in->at(0), in->at(0).data<float>(), out->at(0).data<float>(), out->at(1).data<float>());
  return MX_SUCCESS;
}

// Inputs: gradients of the even and the odd half, then data and outputs.
MXReturnValue halvesBackward(const Attributes&, std::vector<MXTensor>* in, std::vector<MXTensor>* out, const OpResource&) {
  halves<false>(in->at(2), out->at(0).data<float>(), in->at(0).data<float>(), in->at(1).data<float>());
  return MX_SUCCESS;
}

// The functions below take vectors and have no branches: a compiler leaves branches in scalar code that treats NaN rightly, and
// on activations every other one is mispredicted, which made relu6 thirteen times slower than relu.
typedef std::int32_t Whole __attribute__((vector_size(kLanes * sizeof(std::int32_t)), aligned(4), may_alias));

constexpr long kChunk = 256 * kLanes;  // elements of a thread's turn

inline Vector all(float value) { return Vector{} + value; }

// x where it lies between the bounds, NaN included.
inline Vector bounded(Vector x, float low, float high) {
  x = x < low ? all(low) : x;
  return x > high ? all(high) : x;
}

// e^x with a relative error below 2e-7, infinite above 88.3, never below 1e-38; NaN stays NaN.
inline Vector exponential(Vector x) {
  x = bounded(x, -87.3f, 88.8f);
  const Vector shifted = x * 1.44269504f + 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vector power = shifted - 12582912.f;
  const Vector rest = (x - power * 0.693359375f) + power * 2.12194440e-4f;
  Vector sum = rest * 1.98756915e-4f + 1.39819995e-3f;
  sum = sum * rest + 8.33345205e-3f;
  sum = sum * rest + 4.16657962e-2f;
  sum = sum * rest + 1.66666665e-1f;
  sum = sum * rest + 5.00000012e-1f;
  sum = sum * rest * rest + rest + 1.f;
  return sum * (Vector)(((Whole)shifted - (0x4b400000 - 127)) << 23);  // times 2^power, made of its bits
}

inline Vector sigmoid(Vector x) { return 1.f / (1.f + exponential(-x)); }

// Each with its derivative; where it has none, MXNet's choice.
struct Relu6 {
  static Vector value(Vector x) { return bounded(x, 0.f, 6.f); }
  static Vector slope(Vector x) {
    const Vector low = x < 0.f ? all(0.f) : all(1.f);
    return x > 6.f ? all(0.f) : low;
  }
};
struct Swish {
  static Vector value(Vector x) { return x * sigmoid(x); }
  static Vector slope(Vector x) {
    const Vector gate = sigmoid(x);
    return gate + x * gate * (1.f - gate);
  }
};
struct HardSwish {
  static Vector gate(Vector x) { return bounded(x * (1.f / 6.f) + 0.5f, 0.f, 1.f); }
  static Vector value(Vector x) { return x * gate(x); }
  static Vector slope(Vector x) {
    const Vector line = gate(x), zero = all(0.f), inner = x * (1.f / 6.f);
    const Vector above = line > 0.f ? inner : zero;
    return line + (line < 1.f ? above : zero);
  }
};

struct Identity {
  static Vector value(Vector x) { return x; }
  static Vector slope(Vector) { return all(1.f); }
};
struct Relu {
  static Vector value(Vector x) { return x < 0.f ? all(0.f) : x; }
  static Vector slope(Vector x) { return x > 0.f ? all(1.f) : all(0.f); }
};

// Calls run(load, store) for the `count` elements from `start` on, at most kLanes of them. What is missing is loaded as `fill`.
template <typename Run>
inline void onVector(long start, long count, const Run& run) {
  const std::size_t bytes = count * sizeof(float);
  run([=](const float* from, float fill = 0.f) {
        Vector value = all(fill);
        std::memcpy(&value, from + start, bytes);
        return value;
      },
      [=](float* to, Vector value) { std::memcpy(to + start, &value, bytes); });
}

// Calls run(load, store) for every vector of the elements from `start` to `end`.
template <typename Run>
inline void forVectors(long start, long end, const Run& run) {
  for (; start + kLanes <= end; start += kLanes) onVector(start, kLanes, run);
  if (start < end) onVector(start, end - start, run);
}

// The same for all of `size` elements, by several threads.
template <typename Run>
void forAllVectors(long size, const Run& run) {
#pragma omp parallel for schedule(static)
  for (long start = 0; start < size; start += kChunk) forVectors(start, std::min(size, start + kChunk), run);
}

inline double total(Vector sums) {
  double sum = 0;
  for (int v = 0; v < kLanes; ++v) sum += sums[v];
  return sum;
}

template <typename Run>
MXReturnValue dispatchActivation(const Attributes& attributes, const Run& run) {
  const std::string& kind = attributes.at("kind");
  if (kind == "none") run(Identity());
  else if (kind == "relu") run(Relu());
  else if (kind == "relu6") run(Relu6());
  else if (kind == "swish") run(Swish());
  else if (kind == "hswish") run(HardSwish());
  else {
    MX_ERROR_MSG << "the compiled operators of oneshot_nas know none, relu, relu6, swish and hswish, not " << kind;
    return MX_FAIL;
  }
  return MX_SUCCESS;
}

MXReturnValue sameShape(const Attributes&, std::vector<std::vector<unsigned>>* in, std::vector<std::vector<unsigned>>* out) {
  out->at(0) = in->at(0);
  return MX_SUCCESS;
}

MXReturnValue activationForward(const Attributes& attributes, std::vector<MXTensor>* in, std::vector<MXTensor>* out,
                                const OpResource&) {
  return dispatchActivation(attributes, [&](auto function) {
    const float* x = in->at(0).data<float>();
    float* y = out->at(0).data<float>();
    forAllVectors(in->at(0).size(), [=](auto load, auto store) { store(y, function.value(load(x))); });
  });
}

// Inputs: output gradient, data, output.
MXReturnValue activationBackward(const Attributes& attributes, std::vector<MXTensor>* in, std::vector<MXTensor>* out,
                                 const OpResource&) {
  return dispatchActivation(attributes, [&](auto function) {
    const float *dy = in->at(0).data<float>(), *x = in->at(1).data<float>();
    float* dx = out->at(0).data<float>();
    forAllVectors(in->at(1).size(), [=](auto load, auto store) { store(dx, load(dy) * function.slope(load(x))); });
  });
}

MXReturnValue scaleShape(const Attributes&, std::vector<std::vector<unsigned>>* in, std::vector<std::vector<unsigned>>* out) {
  const std::vector<unsigned> x = in->at(0);
  if (x.size() != 4) {
    MX_ERROR_MSG << "oneshot_nas_scale takes data (N, C, H, W) and a gate (N, C, 1, 1)";
    return MX_FAIL;
  }
  in->at(1) = {x[0], x[1], 1, 1};
  out->at(0) = x;
  return MX_SUCCESS;
}

// Every plane times its gate.
MXReturnValue scaleForward(const Attributes&, std::vector<MXTensor>* in, std::vector<MXTensor>* out, const OpResource&) {
  const long planes = in->at(1).size(), plane = in->at(0).shape[2] * in->at(0).shape[3];
  const float *x = in->at(0).data<float>(), *gate = in->at(1).data<float>();
  float* y = out->at(0).data<float>();
#pragma omp parallel for schedule(static)
  for (long p = 0; p < planes; ++p) {
    const float value = gate[p];
    forVectors(p * plane, (p + 1) * plane, [=](auto load, auto store) { store(y, value * load(x)); });
  }
  return MX_SUCCESS;
}

// Inputs: output gradient, data, gate, output; outputs: gradients of data and gate.
MXReturnValue scaleBackward(const Attributes&, std::vector<MXTensor>* in, std::vector<MXTensor>* out, const OpResource&) {
  const long planes = in->at(2).size(), plane = in->at(1).shape[2] * in->at(1).shape[3];
  const float *dy = in->at(0).data<float>(), *x = in->at(1).data<float>(), *gate = in->at(2).data<float>();
  float *dx = out->at(0).data<float>(), *dgate = out->at(1).data<float>();
#pragma omp parallel for schedule(static)
  for (long p = 0; p < planes; ++p) {
    Vector sums = {};
    const float value = gate[p];
    forVectors(p * plane, (p + 1) * plane, [&](auto load, auto store) {
      const Vector top = load(dy);
      sums += top * load(x);
      store(dx, value * top);
    });
    dgate[p] = total(sums);
  }
  return MX_SUCCESS;
}

MXReturnValue normShape(const Attributes&, std::vector<std::vector<unsigned>>* in, std::vector<std::vector<unsigned>>* out) {
  const std::vector<unsigned> x = in->at(0);
  if (x.size() != 4) {
    MX_ERROR_MSG << "oneshot_nas_norm takes data (N, C, H, W)";
    return MX_FAIL;
  }
  for (int i = 1; i < 5; ++i) in->at(i) = {x[1]};
  in->at(5) = {1, 1, 1, 1};
  out->at(0) = x;
  out->at(1) = out->at(2) = {x[1]};
  return MX_SUCCESS;
}

MXReturnValue normMutates(const Attributes&, std::vector<int>* indices) {
  *indices = {3, 4};
  return MX_SUCCESS;
}

// Calls run(start, end) for the elements of channel c in every image.
template <typename Run>
inline void forPlanes(long images, long channels, long c, long plane, const Run& run) {
  for (long n = 0; n < images; ++n) run((n * channels + c) * plane, (n * channels + c + 1) * plane);
}

bool normalisesBatch(MXTensor& flag) { return std::abs(*flag.data<float>()) < 2.f; }

// Inputs: data, gamma, beta, running mean, running variance, and what is below 2 in training. Outputs: the non-linearity of the
// normalised data; mean and inverse deviation by which it was normalised. Training moves the running statistics, biased variance.
MXReturnValue normForward(const Attributes& attributes, std::vector<MXTensor>* in, std::vector<MXTensor>* out, const OpResource&) {
  const long images = in->at(0).shape[0], channels = in->at(0).shape[1], plane = in->at(0).shape[2] * in->at(0).shape[3];
  const float eps = std::stof(attributes.at("eps")), kept = std::stof(attributes.at("momentum"));
  const float *x = in->at(0).data<float>(), *gamma = in->at(1).data<float>(), *beta = in->at(2).data<float>();
  float *runningMean = in->at(3).data<float>(), *runningVar = in->at(4).data<float>();
  float *y = out->at(0).data<float>(), *means = out->at(1).data<float>(), *deviations = out->at(2).data<float>();
  const bool training = normalisesBatch(in->at(5));
  return dispatchActivation(attributes, [=](auto function) {
#pragma omp parallel for schedule(static)
    for (long c = 0; c < channels; ++c) {
      const auto average = [=](float fill, auto term) {
        double sum = 0;
        forPlanes(images, channels, c, plane, [&](long start, long end) {
          Vector sums = {};
          forVectors(start, end, [&](auto load, auto) { sums += term(load(x, fill)); });
          sum += total(sums);
        });
        return static_cast<float>(sum / (images * plane));
      };
      if (training) {
        const float mean = average(0.f, [](Vector value) { return value; });
        const float variance = average(mean, [=](Vector value) { return (value - mean) * (value - mean); });
        means[c] = mean;
        deviations[c] = 1.f / std::sqrt(variance + eps);
        runningMean[c] = kept * runningMean[c] + (1.f - kept) * mean;
        runningVar[c] = kept * runningVar[c] + (1.f - kept) * variance;
      } else {
        means[c] = runningMean[c];
        deviations[c] = 1.f / std::sqrt(runningVar[c] + eps);
      }
      const float scale = gamma[c] * deviations[c], mean = means[c], shift = beta[c];
      forPlanes(images, channels, c, plane, [=](long start, long end) {
        forVectors(start, end, [=](auto load, auto store) { store(y, function.value((load(x) - mean) * scale + shift)); });
      });
    }
  });
}

// Inputs: gradients of the three outputs, the six inputs, the outputs. Outputs: gradients of the inputs, the first three written.
MXReturnValue normBackward(const Attributes& attributes, std::vector<MXTensor>* in, std::vector<MXTensor>* out, const OpResource&) {
  const long images = in->at(3).shape[0], channels = in->at(3).shape[1], plane = in->at(3).shape[2] * in->at(3).shape[3];
  const float *dy = in->at(0).data<float>(), *x = in->at(3).data<float>(), *gamma = in->at(4).data<float>();
  const float *beta = in->at(5).data<float>(), *means = in->at(10).data<float>(), *deviations = in->at(11).data<float>();
  float *dx = out->at(0).data<float>(), *dgamma = out->at(1).data<float>(), *dbeta = out->at(2).data<float>();
  const bool training = normalisesBatch(in->at(8));
  return dispatchActivation(attributes, [=](auto function) {
#pragma omp parallel for schedule(static)
    for (long c = 0; c < channels; ++c) {
      const float mean = means[c], deviation = deviations[c], scale = gamma[c] * deviation, shift = beta[c];
      double sum = 0, product = 0;
      forPlanes(images, channels, c, plane, [&](long start, long end) {
        Vector sums = {}, products = {};
        forVectors(start, end, [&](auto load, auto store) {
          const Vector rest = load(x) - mean, inner = load(dy) * function.slope(rest * scale + shift);
          sums += inner;
          products += inner * rest;
          store(dx, inner);
        });
        sum += total(sums);
        product += total(products);
      });
      dgamma[c] = product * deviation;
      dbeta[c] = sum;
      const float less = training ? sum / (images * plane) : 0.f;
      const float slope = training ? product / (images * plane) * deviation * deviation : 0.f;
      forPlanes(images, channels, c, plane, [=](long start, long end) {
        forVectors(start, end, [=](auto load, auto store) {
          store(dx, scale * (load(dx) - less - (load(x) - mean) * slope));
        });
      });
    }
  });
}

}  // namespace

REGISTER_OP(oneshot_nas_activation)
    .setForward(activationForward, "cpu")
    .setBackward(activationBackward, "cpu")
    .setParseAttrs(arity<1, 1>)
    .setInferType(inferType)
    .setInferShape(sameShape);

REGISTER_OP(oneshot_nas_norm)
    .setForward(normForward, "cpu")
    .setBackward(normBackward, "cpu")
    .setParseAttrs(arity<6, 3>)
    .setInferType(inferType)
    .setInferShape(normShape)
    .setMutateInputs(normMutates);

REGISTER_OP(oneshot_nas_scale)
    .setForward(scaleForward, "cpu")
    .setBackward(scaleBackward, "cpu")
    .setParseAttrs(arity<2, 1>)
    .setInferType(inferType)
    .setInferShape(scaleShape);

REGISTER_OP(oneshot_nas_depthwise)
    .setForward(depthwiseForward, "cpu")
    .setBackward(depthwiseBackward, "cpu")
    .setParseAttrs(arity<2, 1>)
    .setInferType(inferType)
    .setInferShape(depthwiseShape);

REGISTER_OP(oneshot_nas_halves)
    .setForward(halvesForward, "cpu")
    .setBackward(halvesBackward, "cpu")
    .setParseAttrs(arity<1, 2>)
    .setInferType(inferType)
    .setInferShape(halvesShape);

MXReturnValue initialize(int version) {
  if (version >= 10700) return MX_SUCCESS;
  MX_ERROR_MSG << "the compiled operators of oneshot_nas need MXNet 1.7 or newer";
  return MX_FAIL;
}
