// RMSNorm of a head and its rotary embedding (rotate-half), for the kernels that need them: with x a head, w the weight, r
// = 1 / √(mean(x²) + eps), y = r w x and a, b the first and second half of y, the result is (a cos - b sin, b cos + a
// sin). `cos`, `sin`: f32 [rows, HEAD_DIM / 2]; weights f32 [HEAD_DIM].
//
// A few lanes work on one head, each on four neighbours of its first half and the same four of the second. In front of it
// stand `pack`, `first_of` and `second_of`.

#define HALF (HEAD_DIM / 2)
#define USED (HALF / 4)
#define LANES (USED <= 1 ? 1 : USED <= 2 ? 2 : USED <= 4 ? 4 : USED <= 8 ? 8 : 16)
// Heads that a block of THREADS works on at a time.
#define AT_ONCE (THREADS / LANES)

// Numbers `at..at + 4` and `at + HALF..at + HALF + 4` of a head.
struct Fours {
    float a[4], b[4];
};

__device__ __forceinline__ void load_four(float (&x)[4], const float *from) {
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = from[i];
}
__device__ __forceinline__ void store_four(float *to, const float (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = x[i];
}
#if BF16
__device__ __forceinline__ void load_four(float (&x)[4], const unsigned short *from) {
    const uint2 both = *(const uint2 *)from;
    x[0] = first_of(both.x), x[1] = second_of(both.x), x[2] = first_of(both.y), x[3] = second_of(both.y);
}
__device__ __forceinline__ void store_four(unsigned short *to, const float (&x)[4]) {
    *(uint2 *)to = make_uint2(pack(x[0], x[1]), pack(x[2], x[3]));
}
#endif

template <typename N> __device__ __forceinline__ Fours load_fours(const N *head, int at, bool active) {
    Fours x;
#pragma unroll
    for (int i = 0; i < 4; i++) x.a[i] = x.b[i] = 0.0f;
    if (active) {
        load_four(x.a, head + at);
        load_four(x.b, head + at + HALF);
    }
    return x;
}

template <typename N> __device__ __forceinline__ void store_fours(N *head, int at, const Fours &x) {
    store_four(head + at, x.a);
    store_four(head + at + HALF, x.b);
}

// Number by number, so that both stay in registers.
__device__ __forceinline__ Fours either(bool first, const Fours &one, const Fours &other) {
    Fours x;
#pragma unroll
    for (int i = 0; i < 4; i++) x.a[i] = first ? one.a[i] : other.a[i], x.b[i] = first ? one.b[i] : other.b[i];
    return x;
}

__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

// `angles` holds cos and sin. `sign` -1 turns back.
__device__ __forceinline__ void rotate(Fours &x, const Fours &angles, float sign) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float a = x.a[i], b = x.b[i], c = angles.a[i], s = sign * angles.b[i];
        x.a[i] = a * c - b * s;
        x.b[i] = b * c + a * s;
    }
}

__device__ __forceinline__ float inverse_rms(const Fours &x, float eps) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) sum = fmaf(x.a[i], x.a[i], fmaf(x.b[i], x.b[i], sum));
    return 1.0f / sqrtf(sum_of_lanes(sum) / HEAD_DIM + eps);
}

__device__ __forceinline__ Fours norm_rotate(const Fours &x, const Fours &weight, const Fours &angles, float eps) {
    const float r = inverse_rms(x, eps);
    Fours y;
#pragma unroll
    for (int i = 0; i < 4; i++) y.a[i] = x.a[i] * r * weight.a[i], y.b[i] = x.b[i] * r * weight.b[i];
    rotate(y, angles, 1.0f);
    return y;
}

__device__ __forceinline__ Fours angles_of(const float *cos, const float *sin, int row, int at, bool active) {
    Fours angles;
#pragma unroll
    for (int i = 0; i < 4; i++) angles.a[i] = angles.b[i] = 0.0f;
    if (active) {
        load_four(angles.a, cos + (long long)row * HALF + at);
        load_four(angles.b, sin + (long long)row * HALF + at);
    }
    return angles;
}
