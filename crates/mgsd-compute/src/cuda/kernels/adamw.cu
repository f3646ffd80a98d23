// AdamW, one pass over parameter, gradient and moments; the formula stands beside the CPU's.
struct Moved {
    float p, m, v;
};

__device__ __forceinline__ Moved moved(
    float p, float g, float m, float v, float keep, float new1, float beta2, float new2, float root, float eps, float size) {
    m += new1 * (g - m);
    v = beta2 * v + new2 * g * g;
    // Square root and division to about two units in the last place.
    float floor;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(floor) : "f"(v));
    return {p * keep - __fdividef(size * m, floor * root + eps), m, v};
}

// Many tensors in one launch. Block b works on the tensor t with starts[t] <= b < starts[t + 1].
__device__ __forceinline__ int tensor_of(const u32* starts, int tensors, u32 block) {
    int low = 0, high = tensors;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (starts[middle] <= block) low = middle;
        else high = middle;
    }
    return low;
}

// Numbers of a tensor that a block of 256 threads works on.
#define STEP 2048
#define SQUARES 16384

// Per tensor six words: parameter, rest, gradient, first and second moment, how many numbers. With a rest the parameter
// is bfloat16, the rounded half of a 32-bit master: bits = (p << 16) + rest, rest a signed 16-bit number. Without one it
// is a 32-bit float.
extern "C" __global__ void __launch_bounds__(256) step_many(
    const u64* table, const u32* starts, int tensors, float scale, float keep, float new1, float beta2, float new2,
    float root, float eps, float size) {
    int tensor = tensor_of(starts, tensors, blockIdx.x);
    const u64* row = table + (i64)tensor * 6;
    float *g = (float*)row[2], *m = (float*)row[3], *v = (float*)row[4];
    i64 n = (i64)row[5], first = (i64)(blockIdx.x - starts[tensor]) * STEP;
    if (row[1]) {
        u16* p = (u16*)row[0];
        u16* rest = (u16*)row[1];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            i64 at = first + half * (STEP / 2) + threadIdx.x * 4;
            if (at + 4 <= n) {
                uint2 high = *reinterpret_cast<const uint2*>(p + at), low = *reinterpret_cast<const uint2*>(rest + at);
                Four gs = load4(g + at), ms = load4(m + at), vs = load4(v + at);
                u32 highs[4] = {high.x & 0xffffu, high.x >> 16, high.y & 0xffffu, high.y >> 16};
                u32 lows[4] = {low.x & 0xffffu, low.x >> 16, low.y & 0xffffu, low.y >> 16};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float master = __uint_as_float((highs[i] << 16) + (u32)(int)(short)lows[i]);
                    Moved next = moved(master, gs.x[i] * scale, ms.x[i], vs.x[i], keep, new1, beta2, new2, root, eps, size);
                    u32 bits = __float_as_uint(next.p);
                    highs[i] = ((bits + 0x8000u) >> 16) & 0xffffu;
                    lows[i] = (bits - (highs[i] << 16)) & 0xffffu;
                    ms.x[i] = next.m;
                    vs.x[i] = next.v;
                }
                *reinterpret_cast<uint2*>(p + at) = make_uint2(highs[0] | highs[1] << 16, highs[2] | highs[3] << 16);
                *reinterpret_cast<uint2*>(rest + at) = make_uint2(lows[0] | lows[1] << 16, lows[2] | lows[3] << 16);
                store4(m + at, ms);
                store4(v + at, vs);
            } else {
                for (; at < n; at++) {
                    float master = __uint_as_float(((u32)p[at] << 16) + (u32)(int)(short)rest[at]);
                    Moved next = moved(master, g[at] * scale, m[at], v[at], keep, new1, beta2, new2, root, eps, size);
                    u32 bits = __float_as_uint(next.p), high = ((bits + 0x8000u) >> 16) & 0xffffu;
                    p[at] = (u16)high;
                    rest[at] = (u16)(bits - (high << 16));
                    m[at] = next.m;
                    v[at] = next.v;
                }
            }
        }
    } else {
        float* p = (float*)row[0];
        for (int i = 0; i < STEP / 256; i++) {
            i64 at = first + i * 256 + threadIdx.x;
            if (at >= n) break;
            Moved next = moved(p[at], g[at] * scale, m[at], v[at], keep, new1, beta2, new2, root, eps, size);
            p[at] = next.p;
            m[at] = next.m;
            v[at] = next.v;
        }
    }
}

// One double for each block: the sum of squares of its numbers. Per tensor two words: where it lies, how many numbers.
extern "C" __global__ void __launch_bounds__(256) squares_many(
    double* sums, const u64* table, const u32* starts, int tensors) {
    int tensor = tensor_of(starts, tensors, blockIdx.x);
    const float* x = (const float*)table[2 * tensor];
    i64 n = (i64)table[2 * tensor + 1], first = (i64)(blockIdx.x - starts[tensor]) * SQUARES;
    float sum[1] = {0.0f};
#pragma unroll 8
    for (int i = 0; i < SQUARES / 1024; i++) {
        i64 at = first + i * 1024 + threadIdx.x * 4;
        if (at + 4 <= n) {
            Four v = load4(x + at);
#pragma unroll
            for (int j = 0; j < 4; j++) sum[0] += v.x[j] * v.x[j];
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
