// AdamW, one pass over parameter, gradient and moments; the formula stands beside the CPU's.
struct Moved {
    float p, m, v;
};

__device__ __forceinline__ Moved moved(
    float p, float g, float m, float v, float keep, float new1, float beta2, float new2, float root, float eps, float size) {
    m += new1 * (g - m);
    v = beta2 * v + new2 * g * g;
    float floor = sqrtf(v) * root + eps;
    return {p * keep - size * m / floor, m, v};
}

extern "C" __global__ void step_f32(
    float* p, const float* g, float* m, float* v, i64 n, float scale, float keep, float new1, float beta2, float new2,
    float root, float eps, float size) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n) return;
    Moved next = moved(p[at], g[at] * scale, m[at], v[at], keep, new1, beta2, new2, root, eps, size);
    p[at] = next.p;
    m[at] = next.m;
    v[at] = next.v;
}

// A bfloat16 parameter with the rest of its 32-bit master: bits = (p << 16) + rest, rest a signed 16-bit number, so that
// p is the master rounded to the nearest. Eight numbers a thread, all loads before the first use.
extern "C" __global__ void __launch_bounds__(256) step_bf16(
    bf16* p, short* rest, const float* g, float* m, float* v, i64 n, float scale, float keep, float new1, float beta2,
    float new2, float root, float eps, float size) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= n) return;
    int count = n - at < 8 ? (int)(n - at) : 8;
    bool whole = count == 8;
    alignas(16) u16 high[8];
    alignas(16) short low[8];
    Eight gs, ms, vs;
    if (whole) {
        uint4 packed_high = *reinterpret_cast<const uint4*>(p + at), packed_low = *reinterpret_cast<const uint4*>(rest + at);
        gs = load8(g + at);
        ms = load8(m + at);
        vs = load8(v + at);
        *reinterpret_cast<uint4*>(high) = packed_high;
        *reinterpret_cast<uint4*>(low) = packed_low;
    } else {
        for (int i = 0; i < count; i++) {
            high[i] = p[at + i].bits;
            low[i] = rest[at + i];
            gs.x[i] = g[at + i];
            ms.x[i] = m[at + i];
            vs.x[i] = v[at + i];
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (i < count) {
            float master = __uint_as_float(((u32)high[i] << 16) + (u32)(int)low[i]);
            Moved next = moved(master, gs.x[i] * scale, ms.x[i], vs.x[i], keep, new1, beta2, new2, root, eps, size);
            u32 bits = __float_as_uint(next.p);
            high[i] = (u16)((bits + 0x8000u) >> 16);
            low[i] = (short)(bits - ((u32)high[i] << 16));
            ms.x[i] = next.m;
            vs.x[i] = next.v;
        }
    }
    if (whole) {
        *reinterpret_cast<uint4*>(p + at) = *reinterpret_cast<uint4*>(high);
        *reinterpret_cast<uint4*>(rest + at) = *reinterpret_cast<uint4*>(low);
        store8(m + at, ms);
        store8(v + at, vs);
    } else {
        for (int i = 0; i < count; i++) {
            p[at + i].bits = high[i];
            rest[at + i] = low[i];
            m[at + i] = ms.x[i];
            v[at + i] = vs.x[i];
        }
    }
}

// One double for each block of 256 threads: the sum of squares of its 16384 numbers.
extern "C" __global__ void __launch_bounds__(256) squares(double* sums, const float* x, i64 n) {
    i64 first = (i64)blockIdx.x * 16384;
    float sum[1] = {0.0f};
#pragma unroll 4
    for (int i = 0; i < 8; i++) {
        i64 at = first + (i * 256 + threadIdx.x) * 8;
        if (at + 8 <= n) {
            Eight v = load8(x + at);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[0] += v.x[j] * v.x[j];
        } else {
            for (; at < n; at++) sum[0] += x[at] * x[at];
        }
    }
    block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum[0];
}

// total[0] = sum of count doubles, one block of 256 threads.
extern "C" __global__ void total(double* total, const double* sums, int count) {
    __shared__ double parts[256];
    double sum = 0.0;
    for (int at = threadIdx.x; at < count; at += 256) sum += sums[at];
    parts[threadIdx.x] = sum;
    __syncthreads();
    for (int step = 128; step > 0; step >>= 1) {
        if (threadIdx.x < step) parts[threadIdx.x] += parts[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) total[0] = parts[0];
}
