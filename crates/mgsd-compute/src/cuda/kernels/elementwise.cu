// Filling, copying between types, scaled addition. n numbers, eight a thread.
template <class A> __device__ void fill_body(A* to, float value, i64 n) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= n) {
        Eight v;
#pragma unroll
        for (int i = 0; i < 8; i++) v.x[i] = value;
        store8(to + at, v);
    } else {
        for (; at < n; at++) to[at] = narrow<A>(value);
    }
}

template <class A, class B> __device__ void copy_body(A* to, const B* from, i64 n) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= n) {
        store8(to + at, load8(from + at));
    } else {
        for (; at < n; at++) to[at] = narrow<A>(widen(from[at]));
    }
}

template <class A, class B> __device__ void add_body(A* to, const B* from, float scale, i64 n) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= n) {
        Eight a = load8(to + at), b = load8(from + at);
#pragma unroll
        for (int i = 0; i < 8; i++) a.x[i] += scale * b.x[i];
        store8(to + at, a);
    } else {
        for (; at < n; at++) to[at] = narrow<A>(widen(to[at]) + scale * widen(from[at]));
    }
}

extern "C" __global__ void fill_f32(float* to, float value, i64 n) { fill_body(to, value, n); }
extern "C" __global__ void fill_bf16(bf16* to, float value, i64 n) { fill_body(to, value, n); }
extern "C" __global__ void copy_f32_bf16(float* to, const bf16* from, i64 n) { copy_body(to, from, n); }
extern "C" __global__ void copy_bf16_f32(bf16* to, const float* from, i64 n) { copy_body(to, from, n); }
extern "C" __global__ void add_f32_f32(float* to, const float* from, float scale, i64 n) { add_body(to, from, scale, n); }
extern "C" __global__ void add_f32_bf16(float* to, const bf16* from, float scale, i64 n) { add_body(to, from, scale, n); }
extern "C" __global__ void add_bf16_f32(bf16* to, const float* from, float scale, i64 n) { add_body(to, from, scale, n); }
extern "C" __global__ void add_bf16_bf16(bf16* to, const bf16* from, float scale, i64 n) { add_body(to, from, scale, n); }
