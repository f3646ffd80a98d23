// GELU by the error function or by tanh, eight numbers a thread; n is a multiple of eight.
#define INNER 0.7978845608028654f
#define CUBIC 0.044715f

__device__ __forceinline__ float by_erf(float x) { return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f)); }

__device__ __forceinline__ float slope_erf(float x) {
    float below = 0.5f * (1.0f + erff(x * 0.7071067811865476f));
    return below + x * 0.3989422804014327f * __expf(-0.5f * x * x);
}

// (1 + tanh(a)) / 2 = sigmoid(2 a)
__device__ __forceinline__ float by_tanh(float x) { return x * sigmoid(2.0f * INNER * x * (1.0f + CUBIC * x * x)); }

__device__ __forceinline__ float slope_tanh(float x) {
    float s = sigmoid(2.0f * INNER * x * (1.0f + CUBIC * x * x));
    return s + 2.0f * x * s * (1.0f - s) * INNER * (1.0f + 3.0f * CUBIC * x * x);
}

#define FORWARD(NAME, FUNCTION)                                                    \
    extern "C" __global__ void NAME(T* out, const T* x, i64 n) {                   \
        i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;                 \
        if (at >= n) return;                                                       \
        Eight v = load8(x + at);                                                   \
        _Pragma("unroll") for (int i = 0; i < 8; i++) v.x[i] = FUNCTION(v.x[i]);   \
        store8(out + at, v);                                                       \
    }
#define BACKWARD(NAME, SLOPE)                                                               \
    extern "C" __global__ void NAME(T* dx, const T* dout, const T* x, i64 n) {              \
        i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;                          \
        if (at >= n) return;                                                                \
        Eight v = load8(x + at), d = load8(dout + at);                                      \
        _Pragma("unroll") for (int i = 0; i < 8; i++) d.x[i] *= SLOPE(v.x[i]);              \
        store8(dx + at, d);                                                                 \
    }

FORWARD(forward_erf, by_erf)
FORWARD(forward_tanh, by_tanh)
BACKWARD(backward_erf, slope_erf)
BACKWARD(backward_tanh, slope_tanh)
