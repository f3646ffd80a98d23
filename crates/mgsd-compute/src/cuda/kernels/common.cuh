// What all kernels share. T is the type of activations: bfloat16 or 32-bit float. Sums are made in 32-bit floats.
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define INFINITY __int_as_float(0x7f800000)

#if !BF16
// With 32-bit floats accuracy counts, not speed.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#endif

struct alignas(2) bf16 {
    u16 bits;
};

#if BF16
typedef bf16 T;
#else
typedef float T;
#endif

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <class A> __device__ __forceinline__ A narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Eight numbers at once: 16 bytes of bfloat16 or 32 of float. Addresses are multiples of that.
struct Eight {
    float x[8];
};

__device__ __forceinline__ void store8(float* to, const Eight& v) {
    reinterpret_cast<float4*>(to)[0] = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(v.x[4], v.x[5], v.x[6], v.x[7]);
}

__device__ __forceinline__ void store8(bf16* to, const Eight& v) {
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(v.x[2 * i + 1]), "f"(v.x[2 * i]));
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Eight numbers as they lie in memory: for what is asked for long before it is used.
template <class A> struct Packed;
template <> struct Packed<float> {
    float4 a, b;
};
template <> struct Packed<bf16> {
    uint4 a;
};

__device__ __forceinline__ void load_packed(Packed<float>& v, const float* from) {
    v.a = reinterpret_cast<const float4*>(from)[0], v.b = reinterpret_cast<const float4*>(from)[1];
}

__device__ __forceinline__ void load_packed(Packed<bf16>& v, const bf16* from) { v.a = *reinterpret_cast<const uint4*>(from); }

__device__ __forceinline__ Eight unpack(const Packed<float>& v) {
    return {{v.a.x, v.a.y, v.a.z, v.a.w, v.b.x, v.b.y, v.b.z, v.b.w}};
}

__device__ __forceinline__ Eight unpack(const Packed<bf16>& v) {
    Eight y;
    u32 words[4] = {v.a.x, v.a.y, v.a.z, v.a.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        y.x[2 * i] = __uint_as_float(words[i] << 16);
        y.x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
    return y;
}

template <class A> __device__ __forceinline__ Eight load8(const A* from) {
    Packed<A> v;
    load_packed(v, from);
    return unpack(v);
}

// Four numbers at once.
struct Four {
    float x[4];
};

__device__ __forceinline__ Four load4(const float* from) {
    float4 a = *reinterpret_cast<const float4*>(from);
    return {{a.x, a.y, a.z, a.w}};
}

__device__ __forceinline__ Four load4(const bf16* from) {
    uint2 a = *reinterpret_cast<const uint2*>(from);
    return {{__uint_as_float(a.x << 16), __uint_as_float(a.x & 0xffff0000u), __uint_as_float(a.y << 16),
             __uint_as_float(a.y & 0xffff0000u)}};
}

__device__ __forceinline__ void store4(float* to, const Four& v) {
    *reinterpret_cast<float4*>(to) = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
}

__device__ __forceinline__ void store4(bf16* to, const Four& v) {
    u32 low, high;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(low) : "f"(v.x[1]), "f"(v.x[0]));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(high) : "f"(v.x[3]), "f"(v.x[2]));
    *reinterpret_cast<uint2*>(to) = make_uint2(low, high);
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// Sums over the whole block, for every thread; the order depends on the block's size alone.
template <int COUNT> __device__ __forceinline__ void block_sum(float (&x)[COUNT]) {
    __shared__ float parts[COUNT][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        float sum = warp_sum(x[i]);
        if (lane == 0) parts[i][warp] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; i++) x[i] = warp_sum(lane < warps ? parts[i][lane] : 0.0f);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }
