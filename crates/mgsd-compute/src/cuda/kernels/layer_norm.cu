// LayerNorm over groups of `width` numbers, one block a group. `partials`: for each block a row of `width` sums for the
// weight, and after those of all blocks as many rows for the bias.
#define PIECES 4

extern "C" __global__ void __launch_bounds__(512) forward(
    T* out, const T* x, const float* weight, const float* bias, int groups, int width, float eps) {
    i64 base = (i64)blockIdx.x * width;
    Eight kept[PIECES];
    float sum[1] = {0.0f}, square[1] = {0.0f};
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        int at = (piece * blockDim.x + threadIdx.x) * 8;
        if (at < width) {
            kept[piece] = load8(x + base + at);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[0] += kept[piece].x[i];
        }
    }
    block_sum(sum);
    float mean = sum[0] / width;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        int at = (piece * blockDim.x + threadIdx.x) * 8;
        if (at < width) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                kept[piece].x[i] -= mean;
                square[0] += kept[piece].x[i] * kept[piece].x[i];
            }
        }
    }
    block_sum(square);
    float r = rsqrtf(square[0] / width + eps);
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        int at = (piece * blockDim.x + threadIdx.x) * 8;
        if (at < width) {
            Eight w = load8(weight + at), b = load8(bias + at);
#pragma unroll
            for (int i = 0; i < 8; i++) w.x[i] = kept[piece].x[i] * r * w.x[i] + b.x[i];
            store8(out + base + at, w);
        }
    }
}

// h = (x - mean) r: dx = r (w dout - mean(w dout) - h mean(w dout h))
extern "C" __global__ void __launch_bounds__(512) backward(
    T* dx, float* partials, const T* dout, const T* x, const float* weight, int groups, int width, float eps, int add) {
    Eight to_weight[PIECES], to_bias[PIECES];
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int i = 0; i < 8; i++) to_weight[piece].x[i] = to_bias[piece].x[i] = 0.0f;
    for (int group = blockIdx.x; group < groups; group += gridDim.x) {
        i64 base = (i64)group * width;
        Eight kept[PIECES];
        float sum[1] = {0.0f}, square[1] = {0.0f}, slopes[2] = {0.0f, 0.0f};
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int at = (piece * blockDim.x + threadIdx.x) * 8;
            if (at < width) {
                kept[piece] = load8(x + base + at);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[0] += kept[piece].x[i];
            }
        }
        block_sum(sum);
        float mean = sum[0] / width;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int at = (piece * blockDim.x + threadIdx.x) * 8;
            if (at < width) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    kept[piece].x[i] -= mean;
                    square[0] += kept[piece].x[i] * kept[piece].x[i];
                }
            }
        }
        block_sum(square);
        float r = rsqrtf(square[0] / width + eps);
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int at = (piece * blockDim.x + threadIdx.x) * 8;
            if (at < width) {
                Eight w = load8(weight + at), d = load8(dout + base + at);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    kept[piece].x[i] *= r;
                    slopes[0] += w.x[i] * d.x[i];
                    slopes[1] += w.x[i] * d.x[i] * kept[piece].x[i];
                    to_weight[piece].x[i] += d.x[i] * kept[piece].x[i];
                    to_bias[piece].x[i] += d.x[i];
                }
            }
        }
        block_sum(slopes);
        float level = slopes[0] / width, back = slopes[1] / width;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int at = (piece * blockDim.x + threadIdx.x) * 8;
            if (at < width) {
                Eight w = load8(weight + at), d = load8(dout + base + at), old;
                if (add) old = load8(dx + base + at);
#pragma unroll
                for (int i = 0; i < 8; i++)
                    w.x[i] = r * (w.x[i] * d.x[i] - level - kept[piece].x[i] * back) + (add ? old.x[i] : 0.0f);
                store8(dx + base + at, w);
            }
        }
    }
    if (partials) {
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int at = (piece * blockDim.x + threadIdx.x) * 8;
            if (at < width) {
                store8(partials + (i64)blockIdx.x * width + at, to_weight[piece]);
                store8(partials + (i64)(gridDim.x + blockIdx.x) * width + at, to_bias[piece]);
            }
        }
    }
}
