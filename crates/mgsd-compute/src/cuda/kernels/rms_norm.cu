// RMSNorm over groups of `width` numbers. A narrow group (up to 256 wide) belongs to a warp, a wide one to a block.
// `partials`: one row of `width` sums for each worker (warp or block), added up afterwards in order.

// Wide groups: a thread keeps the numbers threadIdx * 8 + piece * blockDim * 8.

template <int PIECES> __device__ __forceinline__ void forward_pieces(T* out, const T* x, const float* weight, int width, float eps) {
    i64 base = (i64)blockIdx.x * width;
    Eight kept[PIECES];
    float sum[1] = {0.0f};
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        int at = (piece * blockDim.x + threadIdx.x) * 8;
        if (at < width) {
            kept[piece] = load8(x + base + at);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[0] += kept[piece].x[i] * kept[piece].x[i];
        }
    }
    block_sum(sum);
    float r = rsqrtf(sum[0] / width + eps);
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        int at = (piece * blockDim.x + threadIdx.x) * 8;
        if (at < width) {
            Eight w = load8(weight + at);
#pragma unroll
            for (int i = 0; i < 8; i++) w.x[i] *= kept[piece].x[i] * r;
            store8(out + base + at, w);
        }
    }
}

// The next group's numbers are asked for before this one's are used.
template <int PIECES> __device__ __forceinline__ void backward_pieces(
    T* dx, float* partials, const T* dout, const T* x, const float* weight, int groups, int width, float eps, int add) {
    Packed<T> next[PIECES][3];
    const auto ask = [&](int group) {
        i64 base = (i64)group * width;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int at = (piece * blockDim.x + threadIdx.x) * 8;
            if (at < width && group < groups) {
                load_packed(next[piece][0], x + base + at);
                load_packed(next[piece][1], dout + base + at);
                if (add) load_packed(next[piece][2], dx + base + at);
            }
        }
    };
    Eight sums[PIECES];
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int i = 0; i < 8; i++) sums[piece].x[i] = 0.0f;
    ask(blockIdx.x);
    for (int group = blockIdx.x; group < groups; group += gridDim.x) {
        i64 base = (i64)group * width;
        Packed<T> here[PIECES][3];
        float sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
#pragma unroll
            for (int which = 0; which < 3; which++) here[piece][which] = next[piece][which];
        }
        ask(group + gridDim.x);
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int at = (piece * blockDim.x + threadIdx.x) * 8;
            if (at < width) {
                Eight kept = unpack(here[piece][0]), slopes = unpack(here[piece][1]), w = load8(weight + at);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    sum[0] += kept.x[i] * kept.x[i];
                    sum[1] += w.x[i] * slopes.x[i] * kept.x[i];
                }
            }
        }
        block_sum(sum);
        float r = rsqrtf(sum[0] / width + eps);
        float back = r * r * r * sum[1] / width;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int at = (piece * blockDim.x + threadIdx.x) * 8;
            if (at < width) {
                Eight kept = unpack(here[piece][0]), slopes = unpack(here[piece][1]), w = load8(weight + at), old;
                if (add) old = unpack(here[piece][2]);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    float slope = slopes.x[i] * r;
                    sums[piece].x[i] += slope * kept.x[i];
                    w.x[i] = slope * w.x[i] - kept.x[i] * back + (add ? old.x[i] : 0.0f);
                }
                store8(dx + base + at, w);
            }
        }
    }
    if (partials) {
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int at = (piece * blockDim.x + threadIdx.x) * 8;
            if (at < width) store8(partials + (i64)blockIdx.x * width + at, sums[piece]);
        }
    }
}

// By the pieces that a thread keeps; so many blocks are to run side by side on a multiprocessor.
#define WIDE(PIECES, BLOCKS)                                                                                            \
    extern "C" __global__ void __launch_bounds__(512, BLOCKS) forward_wide_##PIECES(                                    \
        T* out, const T* x, const float* weight, int groups, int width, float eps) {                                    \
        forward_pieces<PIECES>(out, x, weight, width, eps);                                                             \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(512, BLOCKS) backward_wide_##PIECES(                                   \
        T* dx, float* partials, const T* dout, const T* x, const float* weight, int groups, int width, float eps,       \
        int add) {                                                                                                      \
        backward_pieces<PIECES>(dx, partials, dout, x, weight, groups, width, eps, add);                                \
    }
WIDE(1, 2)
WIDE(2, 1)
WIDE(4, 1)

// Narrow groups: a lane keeps the numbers lane * 4 + k * 128. Blocks of (32, warps) threads.
extern "C" __global__ void __launch_bounds__(512) forward_narrow(T* out, const T* x, const float* weight, int groups, int width, float eps) {
    int group = blockIdx.x * blockDim.y + threadIdx.y;
    if (group >= groups) return;
    i64 base = (i64)group * width;
    Four kept[2];
    float sum = 0.0f;
#pragma unroll
    for (int piece = 0; piece < 2; piece++) {
        int at = (piece * 32 + threadIdx.x) * 4;
        if (at < width) {
            kept[piece] = load4(x + base + at);
#pragma unroll
            for (int i = 0; i < 4; i++) sum += kept[piece].x[i] * kept[piece].x[i];
        }
    }
    float r = rsqrtf(warp_sum(sum) / width + eps);
#pragma unroll
    for (int piece = 0; piece < 2; piece++) {
        int at = (piece * 32 + threadIdx.x) * 4;
        if (at < width) {
            Four w = load4(weight + at);
#pragma unroll
            for (int i = 0; i < 4; i++) w.x[i] *= kept[piece].x[i] * r;
            store4(out + base + at, w);
        }
    }
}

extern "C" __global__ void __launch_bounds__(512) backward_narrow(
    T* dx, float* partials, const T* dout, const T* x, const float* weight, int groups, int width, float eps, int add) {
    int worker = blockIdx.x * blockDim.y + threadIdx.y, workers = gridDim.x * blockDim.y;
    Four sums[2];
#pragma unroll
    for (int piece = 0; piece < 2; piece++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[piece].x[i] = 0.0f;
    for (int group = worker; group < groups; group += workers) {
        i64 base = (i64)group * width;
        Four kept[2], slopes[2];
        float square = 0.0f, dot = 0.0f;
#pragma unroll
        for (int piece = 0; piece < 2; piece++) {
            int at = (piece * 32 + threadIdx.x) * 4;
            if (at < width) {
                kept[piece] = load4(x + base + at);
                slopes[piece] = load4(dout + base + at);
                Four w = load4(weight + at);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    square += kept[piece].x[i] * kept[piece].x[i];
                    dot += w.x[i] * slopes[piece].x[i] * kept[piece].x[i];
                }
            }
        }
        float r = rsqrtf(warp_sum(square) / width + eps);
        float back = r * r * r * warp_sum(dot) / width;
#pragma unroll
        for (int piece = 0; piece < 2; piece++) {
            int at = (piece * 32 + threadIdx.x) * 4;
            if (at < width) {
                Four w = load4(weight + at), old;
                if (add) old = load4(dx + base + at);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float slope = slopes[piece].x[i] * r;
                    sums[piece].x[i] += slope * kept[piece].x[i];
                    w.x[i] = slope * w.x[i] - kept[piece].x[i] * back + (add ? old.x[i] : 0.0f);
                }
                store4(dx + base + at, w);
            }
        }
    }
    if (partials) {
#pragma unroll
        for (int piece = 0; piece < 2; piece++) {
            int at = (piece * 32 + threadIdx.x) * 4;
            if (at < width) store4(partials + (i64)worker * width + at, sums[piece]);
        }
    }
}
