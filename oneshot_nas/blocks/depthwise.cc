// Depthwise convolution with stride 1 for MXNet 1.9 on the CPU: forward, input gradient and weight gradient.
//
// MXNet's own weight gradient of 5x5 and 7x7 depthwise convolutions takes most of a training step. Here every image plane
// is copied into a zero-padded buffer of fixed pitch. A kernel position (i, j) is then a constant offset i * pitch + j, so
// forward and input gradient are sums of shifted vectors and the weight gradient is a set of long dot products, all over
// contiguous memory that fits the first-level cache.
//
// Results do not depend on the number of threads: every plane (forward) or channel (backward) belongs to one thread.

#include <mxnet/lib_api.h>

#include <cstring>
#include <vector>

using namespace mxnet::ext;
using Attributes = std::unordered_map<std::string, std::string>;

namespace {

constexpr int kLanes = 16;          // floats of one vector
constexpr int kTile = 4 * kLanes;   // floats kept in registers while the kernel positions are summed

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vector at(const float* address) { return *reinterpret_cast<const Vector*>(address); }

struct Geometry {
  long images, channels, height, width;
  int kernel;
  long pad() const { return kernel / 2; }
  long pitch() const { return width + 2 * pad(); }
  long length() const { return (height * pitch() + kTile - 1) / kTile * kTile; }  // one flattened output plane, rounded up
  long size() const { return length() + 2 * pad() * pitch() + 2 * pad() + kTile; }
};

Geometry geometry(const MXTensor& x, int kernel) { return {x.shape[0], x.shape[1], x.shape[2], x.shape[3], kernel}; }

// Copies a plane into the middle of a zeroed, padded buffer.
void load(const Geometry& g, const float* plane, float* buffer) {
  for (long h = 0; h < g.height; ++h)
    std::memcpy(buffer + (h + g.pad()) * g.pitch() + g.pad(), plane + h * g.width, g.width * sizeof(float));
}

void store(const Geometry& g, const float* flat, float* plane) {
  for (long h = 0; h < g.height; ++h) std::memcpy(plane + h * g.width, flat + h * g.pitch(), g.width * sizeof(float));
}

// out[t] = sum over (i, j) of weight[i][j] * in[t + i * pitch + j]
template <int K>
void correlate(const Geometry& g, const float* in, const float* weight, float* out) {
  const long pitch = g.pitch();
  for (long t = 0; t < g.length(); t += kTile) {
    Vector sum[kTile / kLanes] = {};
    for (int i = 0; i < K; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) {
        const float value = weight[i * K + j];
        const float* window = in + t + i * pitch + j;
#pragma GCC unroll 8
        for (int v = 0; v < kTile / kLanes; ++v) sum[v] += value * at(window + v * kLanes);
      }
    }
    std::memcpy(out + t, sum, sizeof(sum));
  }
}

// total[i][j] += sum over t of grad[t] * in[t + i * pitch + j]
template <int K>
void dots(const Geometry& g, const float* in, const float* grad, float* total) {
  const long pitch = g.pitch();
  for (int i = 0; i < K; ++i) {
    Vector sum[K] = {};
    const float* row = in + i * pitch;
    for (long t = 0; t < g.length(); t += kLanes) {
      const Vector value = at(grad + t);
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) sum[j] += value * at(row + t + j);
    }
    for (int j = 0; j < K; ++j)
      for (int v = 0; v < kLanes; ++v) total[i * K + j] += sum[j][v];
  }
}

template <int K>
void forward(const Geometry& g, const float* x, const float* weight, float* y) {
  const long plane = g.height * g.width, planes = g.images * g.channels;
#pragma omp parallel
  {
    std::vector<float> in(g.size(), 0.f), out(g.length());
#pragma omp for schedule(static)
    for (long p = 0; p < planes; ++p) {
      load(g, x + p * plane, in.data());
      correlate<K>(g, in.data(), weight + p % g.channels * K * K, out.data());
      store(g, out.data(), y + p * plane);
    }
  }
}

template <int K>
void backward(const Geometry& g, const float* dy, const float* x, const float* weight, float* dx, float* dw) {
  const long plane = g.height * g.width;
#pragma omp parallel
  {
    std::vector<float> in(g.size(), 0.f), grad(g.size(), 0.f), out(g.length());
#pragma omp for schedule(static)
    for (long c = 0; c < g.channels; ++c) {
      float flipped[K * K], total[K * K] = {0};
      for (int i = 0; i < K * K; ++i) flipped[i] = weight[c * K * K + K * K - 1 - i];
      for (long n = 0; n < g.images; ++n) {
        const long at = (n * g.channels + c) * plane;
        load(g, x + at, in.data());
        load(g, dy + at, grad.data());
        dots<K>(g, in.data(), grad.data() + g.pad() * g.pitch() + g.pad(), total);
        correlate<K>(g, grad.data(), flipped, out.data());
        store(g, out.data(), dx + at);
      }
      std::memcpy(dw + c * K * K, total, sizeof(total));
    }
  }
}

MXReturnValue parseAttrs(const Attributes&, int* inputs, int* outputs) {
  *inputs = 2;
  *outputs = 1;
  return MX_SUCCESS;
}

MXReturnValue inferType(const Attributes&, std::vector<int>* in, std::vector<int>* out) {
  if (in->at(0) != kFloat32 && in->at(0) != -1) {
    MX_ERROR_MSG << "oneshot_nas_depthwise takes float32 only";
    return MX_FAIL;
  }
  in->at(0) = in->at(1) = out->at(0) = kFloat32;
  return MX_SUCCESS;
}

MXReturnValue inferShape(const Attributes& attributes, std::vector<std::vector<unsigned>>* in,
                         std::vector<std::vector<unsigned>>* out) {
  const unsigned kernel = std::stoi(attributes.at("kernel"));
  if (in->at(0).size() != 4 || (kernel != 3 && kernel != 5 && kernel != 7)) {
    MX_ERROR_MSG << "oneshot_nas_depthwise takes data (N, C, H, W) and a kernel of 3, 5 or 7";
    return MX_FAIL;
  }
  in->at(1) = {in->at(0)[1], 1, kernel, kernel};
  out->at(0) = in->at(0);
  return MX_SUCCESS;
}

MXReturnValue runForward(const Attributes& attributes, std::vector<MXTensor>* in, std::vector<MXTensor>* out, const OpResource&) {
  const Geometry g = geometry(in->at(0), std::stoi(attributes.at("kernel")));
  const auto run = g.kernel == 3 ? forward<3> : g.kernel == 5 ? forward<5> : forward<7>;
  run(g, in->at(0).data<float>(), in->at(1).data<float>(), out->at(0).data<float>());
  return MX_SUCCESS;
}

// Inputs: output gradient, data, weight, output; outputs: gradients of data and weight.
MXReturnValue runBackward(const Attributes& attributes, std::vector<MXTensor>* in, std::vector<MXTensor>* out, const OpResource&) {
  const Geometry g = geometry(in->at(1), std::stoi(attributes.at("kernel")));
  const auto run = g.kernel == 3 ? backward<3> : g.kernel == 5 ? backward<5> : backward<7>;
  run(g, in->at(0).data<float>(), in->at(1).data<float>(), in->at(2).data<float>(), out->at(0).data<float>(),
      out->at(1).data<float>());
  return MX_SUCCESS;
}

}  // namespace

REGISTER_OP(oneshot_nas_depthwise)
    .setForward(runForward, "cpu")
    .setBackward(runBackward, "cpu")
    .setParseAttrs(parseAttrs)
    .setInferType(inferType)
    .setInferShape(inferShape);

MXReturnValue initialize(int version) {
  if (version >= 10700) return MX_SUCCESS;
  MX_ERROR_MSG << "oneshot_nas_depthwise needs MXNet 1.7 or newer";
  return MX_FAIL;
}
